"""Scores of ranks and modules of every form of PEFT against plain autograd and plain arithmetic."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import PeftModel
from tests.support.forms import FORM_ROWS, module_names
from tests.support.zoo import BY_NAME, Animal
from torch import Tensor

import lightpeft
from lightpeft import EstimationConfig, Scores
from lightpeft.estimation import Estimator

Batch = dict[str, Tensor]
FORMS = pytest.mark.parametrize("form", list(FORM_ROWS))
ANIMALS = pytest.mark.parametrize("animal", ["bert", "llama", "t5", "bart"])
IGNORED, TARGETS = -100, 7


def batches_of(animal: Animal, count: int) -> list[Batch]:
    """Each with its own padding, of the encoder and of the labels."""
    found = []
    for number in range(count):
        batch = animal.batch(padded=True, labels=True, seed=20 + number)
        batch = {key: value.roll(number, 0) for key, value in batch.items()}
        if animal.task == "seq2seq":
            batch["labels"][number % 3, 3 + number :] = IGNORED
        found.append(batch)
    return found


def estimated(model: PeftModel, batches: list[Batch], **options: Any) -> Scores:
    """Scores of a run in which no weight moves, over the second half of the batches."""
    trained = [p for p in model.parameters() if p.requires_grad]
    config = EstimationConfig(steps=len(batches), window="second_half", **options)
    return lightpeft.estimate(model, batches, config, optimizer=torch.optim.SGD(trained, lr=0.0))


def rank_gradients(model: PeftModel, batch: Batch) -> dict[str, Tensor]:
    """∂L/∂m at m = 1 of gates that multiply the ranks, per linear."""
    base, gates = model.get_base_model(), {}
    with ExitStack() as stack:
        for name, gated in module_names(model).items():
            module = base.get_submodule(gated)
            gates[name] = torch.ones(module.in_features, requires_grad=True)
            hook = module.register_forward_pre_hook(lambda _, args, gate=gates[name]: args[0] * gate)
            stack.callback(hook.remove)
        model.train()
        found = torch.autograd.grad(model(**batch).loss, list(gates.values()))
    return dict(zip(gates, found, strict=True))


@FORMS
@ANIMALS
def test_rank_scores_are_the_gradients_of_gates(animal: str, form: str) -> None:
    zoo = BY_NAME[animal]
    model, batches = zoo.with_peft(form), batches_of(zoo, 4)
    scores = estimated(model, batches, rank_score="taylor")
    late = [rank_gradients(model, batch) for batch in batches[2:]]
    assert scores.ranks.keys() == module_names(model).keys()
    for name, ranks in scores.ranks.items():
        expected = sum(found[name] for found in late).abs() / 2
        torch.testing.assert_close(ranks, expected, rtol=1e-3, atol=1e-6)
    assert max(float(ranks.max()) for ranks in scores.ranks.values()) > 1e-4


@contextmanager
def inputs_of(model: PeftModel, names: set[str]) -> Iterator[dict[str, Tensor]]:
    """The inputs of named modules in the next forward."""
    seen: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for name in names:
            module = model.get_base_model().get_submodule(name)
            note = module.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0]}))
            stack.callback(note.remove)
        yield seen


def share(layer: Any, x: Tensor, block_input: Tensor | None) -> Tensor:
    """‖ΔWx‖ / ‖Wx‖ or ‖adapter(h)‖ / ‖h‖ per token, from the weights."""
    base, scaling = layer.get_base_layer(), layer.scaling["default"]
    weight = base.weight
    if hasattr(layer, "bottleneck_up"):
        h = base(x) if block_input is None else block_input
        down, up = layer.bottleneck_down["default"], layer.bottleneck_up["default"]
        neurons = torch.nn.functional.gelu(h @ down.weight.T + down.bias)
        added = scaling * (neurons @ up.weight.T + up.bias)
        return added.norm(dim=-1) / h.norm(dim=-1)
    delta = scaling * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    if layer.lora_magnitude_vector:
        whole = weight + delta
        factors = layer.lora_magnitude_vector["default"].weight / whole.norm(dim=1)
        delta = factors[:, None] * whole - weight
    return (x @ delta.T).norm(dim=-1) / (x @ weight.T).norm(dim=-1)


def counted(animal: Animal, batch: Batch, tokens: int) -> Tensor:
    """The tokens that are not padding; a decoder reads its start and then the labels without the last."""
    if animal.task == "seq2seq" and tokens == TARGETS:
        labels = batch["labels"] != IGNORED
        return torch.cat([torch.ones_like(labels[:, :1]), labels[:, :-1]], 1)
    return batch["attention_mask"].bool()


@torch.no_grad()
def shares(animal: Animal, model: PeftModel, batches: list[Batch]) -> dict[str, float]:
    """Mean share of every module over the tokens of all batches."""
    base = model.get_base_model()
    layers = {name: base.get_submodule(name) for name in module_names(model)}
    sources = {name: getattr(layer, "input_name", None) for name, layer in layers.items()}
    ratios: dict[str, list[Tensor]] = {name: [] for name in layers}
    model.train()
    for batch in batches:
        with inputs_of(model, {*layers, *filter(None, sources.values())}) as seen:
            model(**batch)
        for name, layer in layers.items():
            source = sources[name]
            found = share(layer, seen[name], None if source is None else seen[source])
            ratios[name].append(found[counted(animal, batch, found.shape[1])])
    return {name: float(torch.cat(found).mean()) for name, found in ratios.items()}


@FORMS
@ANIMALS
def test_module_scores_are_mean_shares_over_real_tokens(animal: str, form: str) -> None:
    """A decoder that is not told its padding has it in its inputs."""
    zoo = BY_NAME[animal]
    model, batches = zoo.with_peft(form), batches_of(zoo, 2)
    scores = estimated(model, batches, module_score="activation")
    assert scores.modules == pytest.approx(shares(zoo, model, batches[1:]), rel=1e-4)
    mixed = [batches[1] | {"attention_mask": batches[0]["attention_mask"]}]
    assert scores.modules != pytest.approx(shares(zoo, model, mixed), rel=1e-4)


@FORMS
@pytest.mark.parametrize("animal", ["t5", "bart"])
def test_a_decoders_padding_is_that_of_its_own_batch(animal: str, form: str) -> None:
    """What came before it, with other padding, leaves no trace."""
    zoo = BY_NAME[animal]
    model, (one, other) = zoo.with_peft(form), batches_of(zoo, 2)
    assert (one["labels"] != IGNORED).tolist() != (other["labels"] != IGNORED).tolist()
    alone = estimated(model, [other], module_score="activation")
    after = estimated(model, [one, other], module_score="activation")
    assert after.modules == pytest.approx(alone.modules, rel=1e-5)
    for place, mean in alone.means.items():
        torch.testing.assert_close(after.means[place], mean, rtol=1e-4, atol=1e-6)


def without_labels(model: PeftModel, batch: Batch, mask: bool) -> Batch:
    """What a collator gives where the Trainer smooths labels and keeps them from the model."""
    config, labels = model.get_base_model().config, batch["labels"]
    start = torch.full_like(labels[:, :1], config.decoder_start_token_id)
    shifted = torch.cat([start, labels[:, :-1]], 1)
    given = {"decoder_input_ids": shifted.masked_fill(shifted == IGNORED, config.pad_token_id)}
    if mask:
        given["decoder_attention_mask"] = (shifted != IGNORED).long()
    return {key: value for key, value in batch.items() if key != "labels"} | given


@pytest.mark.parametrize("mask", [False, True], ids=["inputs", "decoder_attention_mask"])
@pytest.mark.parametrize("animal", ["t5", "bart", "marian", "whisper"])
def test_a_decoders_padding_is_known_without_labels(animal: str, mask: bool) -> None:
    """Label smoothing and one's own loss: the same means and shares as where the model has the labels."""
    zoo = BY_NAME["bart" if animal == "marian" else animal]
    if animal == "marian":  # starts with padding, as T5
        zoo = replace(zoo, options=zoo.options | {"decoder_start_token_id": zoo.options["pad_token_id"]})
    batch = zoo.batch(padded=True, labels=True, seed=21)
    batch["labels"][1, 4:] = IGNORED
    if animal == "bart" and not mask:
        batch["labels"][0, 6] = 2  # its start and end are one token, which is no padding
    found = []
    for reaches in (True, False):
        model = zoo.with_peft("lora")
        estimator = Estimator(model, EstimationConfig(steps=1))
        estimator.attach()
        model.train()
        inputs = batch if reaches else without_labels(model, batch, mask)
        logits = model(**inputs).logits
        torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch["labels"]).backward()
        estimator.end_step(0.0)
        found.append(estimator.scores())
        if reaches and animal in ("t5", "bart"):
            assert found[0].modules == pytest.approx(shares(zoo, model, [batch]), rel=1e-4)
    assert found[0].modules == pytest.approx(found[1].modules, rel=1e-5)
    for place, mean in found[0].means.items():
        torch.testing.assert_close(found[1].means[place], mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("animal", ["t5", "bart"])
def test_cross_attention_reads_the_encoders_tokens(animal: str) -> None:
    """Also where both sides have the same length, so that nothing but the name tells them apart."""
    zoo = BY_NAME[animal]
    model, batch = zoo.with_peft("lora", zoo.attentions[-1]), batches_of(zoo, 2)[1]
    batch = {key: value[:, :TARGETS] for key, value in batch.items()}
    scores = estimated(model, [batch], module_score="activation")
    keys = [n for n in scores.modules if n.endswith(("EncDecAttention.k", "encoder_attn.k_proj"))]
    assert len(keys) == 2
    with torch.no_grad(), inputs_of(model, set(keys)) as seen:
        model(**batch)
        for name in keys:
            found = share(model.get_base_model().get_submodule(name), seen[name], None)
            expected = float(found[batch["attention_mask"].bool()].mean())
            assert scores.modules[name] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("form", ["sequential", "parallel"])
def test_means_of_neurons_are_over_real_tokens(form: str) -> None:
    """They stand for the neurons that go; a linear module needs none."""
    zoo = BY_NAME["bert"]
    model, batches = zoo.with_peft(form), batches_of(zoo, 2)
    scores, gated = estimated(model, batches), module_names(model)
    model.train()
    with torch.no_grad(), inputs_of(model, set(gated.values())) as seen:
        model(**batches[1])
    for place in gated.values():
        expected = seen[place][batches[1]["attention_mask"].bool()].mean(0)
        torch.testing.assert_close(scores.means[place], expected, rtol=1e-4, atol=1e-6)
    plain = estimated(zoo.with_peft("lora"), batches)
    assert not any("lora" in place for place in plain.means)
