"""What a cut of an animal of the zoo must hold, in parts that tests and the support table share."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from lightpeft import Plan, Scores, find_anatomy
from lightpeft.anatomy import linear_at
from lightpeft.linears import INPUTS, width
from tests.support.forms import module_names
from tests.support.zoo import Animal


def random_scores(model: PeftModel, seed: int = 0) -> Scores:
    """Scores of every unit of any model, without estimation."""
    generator = torch.Generator().manual_seed(seed)
    base = model.get_base_model()
    ranks = {
        name: torch.rand(base.get_submodule(gated).in_features, generator=generator)
        for name, gated in module_names(model).items()
    }
    layers = find_anatomy(model).layers
    return Scores(
        heads=tuple(torch.rand(layer.heads, generator=generator) for layer in layers),
        neurons=tuple(torch.rand(layer.neurons, generator=generator) for layer in layers),
        ranks=ranks,
        modules={name: float(torch.rand((), generator=generator)) for name in ranks},
        steps=1,
        methods={"base": "fisher", "module": "activation", "rank": "taylor"},
    )


def kept_units(model: PeftModel, plan: Plan) -> dict[str, tuple[int, ...]]:
    """What stays, per output projection."""
    kept = {}
    for layer, wanted in zip(find_anatomy(model).layers, plan.layers, strict=True):
        kept |= {units.out: indices for units, indices in layer.with_kept(wanted.heads, wanted.neurons)}
    return kept


def plan_gates(animal: Animal, model: PeftModel, plan: Plan, *, ranks: bool) -> dict[str, Tensor]:
    """0 for channels of units that go; the places and counts are the zoo's, not lightpeft's."""
    kept, gates, gated = kept_units(model, plan), {}, module_names(model)
    for outs in animal.outs:
        for layer in range(outs.layers):
            name = outs.path.format(layer)
            channels = width(linear_at(model.get_base_model(), name), INPUTS)
            units = torch.zeros(outs.units)
            units[list(kept.pop(name))] = 1
            gates[name] = units.repeat_interleave(channels // outs.units)
    assert not kept, "lightpeft found units that the zoo does not know"
    for module_plan in plan.modules if ranks else ():
        alive = torch.zeros(module_plan.rank_count)
        alive[list(module_plan.ranks)] = 1
        gates[gated[module_plan.name]] = alive
    return gates


@contextmanager
def passed_over(model: PeftModel, plan: Plan) -> Iterator[None]:
    """Layers that are to be skipped put out the hidden states that they are given."""

    def hand_on(_module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return args[0] if isinstance(output, Tensor) else (args[0], *output[1:])

    layers = find_anatomy(model).layers
    modules = {layers[one.index].module for one in plan.layers if one.skipped}
    hooks = [model.get_base_model().get_submodule(name).register_forward_hook(hand_on) for name in modules]
    yield
    for hook in hooks:
        hook.remove()


@torch.no_grad()
def outputs(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """What the model says at the tokens that are not padding."""
    model.eval()
    found = model(**batch)
    if "logits" not in found:
        return torch.cat([found.text_embeds, found.image_embeds])
    logits, mask = found.logits, batch.get("attention_mask")
    alike = mask is not None and logits.shape[:2] == mask.shape and "decoder_input_ids" not in batch
    return logits[mask.bool()] if alike and mask is not None else logits


def agree(found: Tensor, expected: Tensor) -> None:
    """Within 1e-5 of the largest value, which is of order one."""
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(found / scale, expected / scale, rtol=1e-5, atol=1e-5)


def assert_cache_changes_nothing(model: PeftModel, batch: Mapping[str, Tensor]) -> None:
    """Texts of one length each, because padding on the right is not for generating."""
    model.eval()
    inputs = {"input_ids": batch["input_ids"][:1], "attention_mask": batch["attention_mask"][:1]}
    with_cache, without = (
        model.generate(**inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False, use_cache=use)
        for use in (True, False)
    )
    assert torch.equal(with_cache, without)


def step(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch, and the gradients that it gives."""
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), gradients
