"""What estimation should find, computed by plain autograd without any of lightpeft's hooks."""

from collections.abc import Callable, Mapping, Sequence

import torch
from peft import PeftModel
from torch import Tensor

from tests.support.models import HEADS, LAYERS, ROWS
from tests.support.plans import lora_names

Batch = Mapping[str, Tensor]


def gate_gradients(model: PeftModel, batch: Batch) -> dict[str, Tensor]:
    """∂L/∂m at m = 1 for real multiplicative gates on all heads, neurons and ranks, by their module."""
    base, row = model.get_base_model(), ROWS[model.get_base_model().config.model_type]
    units = {row.at(i, "attention_out"): HEADS for i in range(LAYERS)}
    places = {place: base.get_submodule(place).in_features for place in units}
    places |= {row.at(i, "ffn_out"): 0 for i in range(LAYERS)}
    places |= {f"{name}.lora_B.default": 0 for name in lora_names(model)}
    gates, hooks = {}, []
    for place in places:
        module = base.get_submodule(place)
        count = units.get(place, module.in_features)
        gate = torch.ones(count, requires_grad=True)
        gates[place] = gate

        def multiply(module: object, args: tuple[Tensor, ...], gate: Tensor = gate) -> object:
            factors = gate.repeat_interleave(args[0].shape[-1] // len(gate))
            return (args[0] * factors, *args[1:])

        hooks.append(module.register_forward_pre_hook(multiply))
    was_training = model.training
    model.train()
    loss = model(**batch).loss
    found = torch.autograd.grad(loss, list(gates.values()))
    model.train(was_training)
    for hook in hooks:
        hook.remove()
    return dict(zip(gates, found, strict=True))


def base_gradients(model: PeftModel, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
    """Gate gradients of heads and neurons, per layer."""
    row, found = ROWS[model.get_base_model().config.model_type], gate_gradients(model, batch)
    return (
        [found[row.at(i, "attention_out")] for i in range(LAYERS)],
        [found[row.at(i, "ffn_out")] for i in range(LAYERS)],
    )


def weight_gradients(model: PeftModel, batch: Batch) -> dict[str, tuple[Tensor, ...]]:
    """Per LoRA module: A, ∂L/∂A, B, ∂L/∂B."""
    base, found = model.get_base_model(), {}
    model.train()
    loss = model(**batch).loss
    for name in lora_names(model):
        layer = base.get_submodule(name)
        a, b = layer.lora_A.default.weight, layer.lora_B.default.weight
        grad_a, grad_b = torch.autograd.grad(loss, (a, b), retain_graph=True)
        found[name] = (a.detach(), grad_a, b.detach(), grad_b)
    return found


@torch.no_grad()
def contribution_ratios(model: PeftModel, batches: Sequence[Batch], scaling: float) -> dict[str, float]:
    """Mean over the tokens that are not padding of ‖ΔWx‖₂ / ‖Wx‖₂, per LoRA module."""
    base, inputs = model.get_base_model(), {}
    ratios: dict[str, list[Tensor]] = {name: [] for name in lora_names(model)}
    model.train()
    for batch in batches:
        hooks = [
            base.get_submodule(name).register_forward_pre_hook(
                lambda module, args, name=name: inputs.update({name: args[0]})
            )
            for name in ratios
        ]
        model(**batch)
        for hook in hooks:
            hook.remove()
        for name, found in ratios.items():
            layer = base.get_submodule(name)
            delta = scaling * layer.lora_B.default.weight @ layer.lora_A.default.weight
            x = inputs[name][batch["attention_mask"].bool()]
            base_out = x @ layer.get_base_layer().weight.T
            found.append((x @ delta.T).norm(dim=-1) / base_out.norm(dim=-1))
    return {name: float(torch.cat(found).mean()) for name, found in ratios.items()}


def mean_inputs(model: PeftModel, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """Mean input of every output projection over the tokens that are not padding."""
    row = ROWS[model.get_base_model().config.model_type]
    places = [row.at(i, linear) for i in range(LAYERS) for linear in ("attention_out", "ffn_out")]
    return {place: found.mean(0) for place, found in inputs_of(model, places, batches).items()}


@torch.no_grad()
def inputs_of(model: PeftModel, places: Sequence[str], batches: Sequence[Batch]) -> dict[str, Tensor]:
    """What these modules are given, (tokens that are not padding, channels)."""
    base = model.get_base_model()
    seen: dict[str, list[Tensor]] = {place: [] for place in places}

    def note(place: str, tokens: Tensor) -> Callable[..., None]:
        def hook(module: object, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> None:
            seen[place].append((args[0] if args else kwargs["hidden_states"])[tokens])

        return hook

    model.train()
    for batch in batches:
        tokens = batch["attention_mask"].bool()
        hooks = [
            base.get_submodule(place).register_forward_pre_hook(note(place, tokens), with_kwargs=True)
            for place in places
        ]
        model(**batch)
        for hook in hooks:
            hook.remove()
    return {place: torch.cat(found) for place, found in seen.items()}


def fluctuations(model: PeftModel, layer: int, name: str, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """What the output loses, in mean square over that of the layer's hidden states, without each channel.

    Of every channel before the output projections of attention and FFN, by their role.
    """
    base, row = model.get_base_model(), ROWS[model.get_base_model().config.model_type]
    hidden = inputs_of(model, [name], batches)[name].square().sum(-1).mean()
    found = {}
    for role in ("attention_out", "ffn_out"):
        place = row.at(layer, role)
        x = inputs_of(model, [place], batches)[place]
        weight = base.get_submodule(place).get_base_layer().weight
        lost = torch.einsum("tc,oc->tco", x - x.mean(0), weight)
        found[role] = lost.square().sum(-1).mean(0) / hidden
    return found
