"""The last layer for the first token alone: where the head reads no other, and nothing else changes."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tests.support.forms import FORM_ROWS
from tests.support.probing import agree, outputs, random_scores, step
from tests.support.zoo import ANIMALS, BY_NAME, Animal
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

import lightpeft
from lightpeft import Budget, CheckpointError, SurgeryConfig, find_anatomy, make_plan
from lightpeft.anatomy import linear_at
from lightpeft.files import read_json, write_json
from lightpeft.surgery import record_of
from lightpeft.training.prefix import FrozenPrefix, RowCache

READ_FIRST = {
    *("bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert", "modernbert", "mpnet"),
    *("deberta", "deberta-v2", "deberta-v3", "vit"),
}
BUDGET = Budget(heads=0.4, neurons=0.4, modules=0.3, ranks=0.4, heads_scope="global", neurons_scope="global")
WITHOUT_LAYERS = Budget(heads=0.0, neurons=0.0, modules=0.0, ranks=0.0, layers=0.5)
FULL = SurgeryConfig(first_token=False)


def cut_one(
    animal: Animal,
    *,
    attention: str | None = None,
    budget: Budget = BUDGET,
    config: SurgeryConfig | None = None,
    model: PeftModel | None = None,
    batch: dict[str, Tensor] | None = None,
) -> PeftModel:
    model = animal.with_lora(attention or animal.attentions[-1]) if model is None else model
    plan = make_plan(random_scores(model), find_anatomy(model), budget)
    lightpeft.cut(model, plan, config=config, batch=animal.batch(padded=True) if batch is None else batch)
    return model


def narrows(model: nn.Module) -> bool:
    record = record_of(model)
    assert record is not None
    return record.first_token


def last_down(model: PeftModel) -> nn.Module:
    """The FFN's output projection in the highest layer that runs."""
    layer = next(one for one in reversed(find_anatomy(model).layers) if one.neurons)
    assert layer.ffn is not None
    return linear_at(model.get_base_model(), layer.ffn.out)


@contextmanager
def tokens_seen(module: nn.Module) -> Iterator[list[int]]:
    seen: list[int] = []
    handle = module.register_forward_pre_hook(lambda _module, args: seen.append(args[0].shape[1]))
    yield seen
    handle.remove()


def assert_same_step(narrow: PeftModel, full: PeftModel, batch: dict[str, Tensor]) -> None:
    loss, gradients = step(narrow, batch)
    expected, theirs = step(full, batch)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    assert gradients.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(gradients[name], value, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("padded", [True, False], ids=["padded", "full"])
@pytest.mark.parametrize(
    ("animal", "attention"),
    [
        pytest.param(animal, attention, id=f"{animal.name}-{attention}")
        for animal in ANIMALS
        if animal.task in ("text", "image")
        for attention in animal.attentions
    ],
)
def test_losses_and_gradients_are_those_of_all_tokens(animal: Animal, attention: str, padded: bool) -> None:
    batch = animal.batch(padded=padded, labels=True)
    narrow, full = (cut_one(animal, attention=attention, config=config) for config in (None, FULL))
    assert narrows(narrow) is (animal.name in READ_FIRST)
    assert not narrows(full)
    with tokens_seen(last_down(narrow)) as seen:
        assert_same_step(narrow, full, batch)
    assert (seen == [1]) is narrows(narrow)


@pytest.mark.parametrize("form", FORM_ROWS)
def test_with_every_form_of_peft(form: str) -> None:
    animal = BY_NAME["bert"]
    batch = animal.batch(padded=True, labels=True)
    narrow, full = (cut_one(animal, model=animal.with_peft(form), config=config) for config in (None, FULL))
    with tokens_seen(last_down(narrow)) as seen:
        assert_same_step(narrow, full, batch)
    assert (seen == [1]) is narrows(narrow)


@pytest.mark.parametrize(
    "animal", [one for one in ANIMALS if one.task not in ("text", "image")], ids=lambda one: one.name
)
def test_what_generates_or_pools_reads_every_token(animal: Animal) -> None:
    assert not narrows(cut_one(animal))


@torch.no_grad()
@pytest.mark.parametrize("name", sorted(READ_FIRST))
def test_saved_loaded_copied_and_merged_narrow_too(name: str, tmp_path: Path) -> None:
    animal = BY_NAME[name]
    model, batch = cut_one(animal), animal.batch(padded=True)
    expected = outputs(model, batch)
    lightpeft.save(model, tmp_path / "light")
    loaded = lightpeft.load(tmp_path / "light", base=animal.build(animal.attentions[-1]))
    for one in (loaded, copy.deepcopy(loaded)):
        with tokens_seen(last_down(one)) as seen:
            agree(one(**batch).logits, model(**batch).logits)
        assert seen == [1]
        agree(outputs(one, batch), expected)
    merged = loaded.merge_and_unload()
    agree(merged(**batch).logits, model(**batch).logits)


@torch.no_grad()
@pytest.mark.parametrize("name", ["bert", "distilbert", "deberta-v2", "vit"])
def test_whoever_asks_for_states_gets_those_of_every_token(name: str) -> None:
    animal = BY_NAME[name]
    model, full = cut_one(animal), cut_one(animal, config=FULL)
    batch = animal.batch(padded=True)
    for one, other in zip(
        model(**batch, output_hidden_states=True).hidden_states,
        full(**batch, output_hidden_states=True).hidden_states,
        strict=True,
    ):
        agree(one, other)
    inner, theirs = model.get_base_model().base_model, full.get_base_model().base_model
    agree(inner(**batch).last_hidden_state, theirs(**batch).last_hidden_state)
    with pytest.raises((IndexError, ValueError, RuntimeError)):
        model(**{key: value[..., :0] for key, value in batch.items()})
    agree(inner(**batch).last_hidden_state, theirs(**batch).last_hidden_state)


def test_a_hook_on_the_last_layer_sees_one_token_and_no_wrong_ones() -> None:
    animal = BY_NAME["bert"]
    model, batch = cut_one(animal), animal.batch(padded=True)
    shapes: list[torch.Size] = []
    layer = model.get_base_model().bert.encoder.layer[-1]
    layer.register_forward_hook(lambda _module, _args, output: shapes.append(output.shape))
    model(**batch)
    rows = len(batch["input_ids"])
    assert [shape[:2] for shape in shapes] == [(rows, 1)]


class MeanHead(nn.Module):
    """Reads every token."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, states: Tensor, **_: Any) -> Tensor:
        mean = states.mean(1, keepdim=True).expand_as(states)
        found: Tensor = self.head(mean)
        return found


class MaxBeside(nn.Module):
    """Reads the first token, and of one channel the largest over all."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, states: Tensor, **_: Any) -> Tensor:
        found: Tensor = self.head(states) + states[..., :1].amax(1)
        return found


@pytest.mark.parametrize("head", [MeanHead, MaxBeside])
def test_a_head_of_the_user_that_reads_more_is_seen(head: type[nn.Module]) -> None:
    animal = BY_NAME["roberta"]
    model = animal.with_lora()
    model.get_base_model().classifier = head(model.get_base_model().classifier)
    assert not narrows(cut_one(animal, model=model))


def test_a_head_of_zeros_says_nothing() -> None:
    animal = BY_NAME["roberta"]
    model = animal.with_lora()
    nn.init.zeros_(model.get_base_model().classifier.out_proj.weight)
    assert not narrows(cut_one(animal, model=model))


def test_a_loss_that_reads_more_than_the_logits_is_seen() -> None:
    animal = BY_NAME["bert"]
    model = animal.with_lora()
    base, kind = model.get_base_model(), type(model.get_base_model())

    class WithPenalty(kind):  # type: ignore[misc, valid-type]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            states: list[Tensor] = []
            handle = self.bert.register_forward_hook(lambda _m, _a, output: states.append(output[0]))
            output = super().forward(*args, **kwargs)
            handle.remove()
            if output.loss is not None:
                output.loss = output.loss + states[0].square().mean()
            return output

    base.__class__ = WithPenalty
    assert not narrows(cut_one(animal, model=model, batch=animal.batch(padded=True, labels=True)))


def test_examples_of_one_token_say_nothing() -> None:
    animal = BY_NAME["bert"]
    batch = animal.batch(padded=True)
    batch["attention_mask"][:, 1:] = 0
    assert not narrows(cut_one(animal, batch=batch))


def test_a_model_that_cannot_run_on_one_token_runs_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    animal = BY_NAME["bert"]
    model = animal.with_lora()
    output = model.get_base_model().bert.encoder.layer[-1].output
    forward = output.forward

    def strict(hidden: Tensor, residual: Tensor) -> Tensor:
        if hidden.shape[:2] != residual.shape[:2]:
            raise RuntimeError("another number of tokens")
        found: Tensor = forward(hidden, residual)
        return found

    monkeypatch.setattr(output, "forward", strict)
    assert not narrows(cut_one(animal, model=model))
    assert isinstance(model(**animal.batch(padded=True)), SequenceClassifierOutput)


def test_gradient_checkpointing_runs_every_token() -> None:
    animal = BY_NAME["bert"]
    model, batch = cut_one(animal), animal.batch(padded=True, labels=True)
    expected, theirs = step(model, batch)
    model.train()
    model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    loss, gradients = step(model, batch)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    for name, value in theirs.items():
        torch.testing.assert_close(gradients[name], value, rtol=1e-3, atol=1e-6)
    with tokens_seen(last_down(model.eval())) as seen:
        model(**batch)
    assert seen == [1]


def test_the_highest_layer_that_runs_is_narrowed() -> None:
    animal = BY_NAME["bert"]
    model = animal.with_lora()
    anatomy = find_anatomy(model)
    scores = random_scores(model)
    top = anatomy.modules[-1]
    losses = tuple(0.1 if layer.module == top else 1.0 for layer in anatomy.layers)
    plan = make_plan(lightpeft.Scores(**{**vars(scores), "layers": losses}), anatomy, WITHOUT_LAYERS)
    batch = animal.batch(padded=True)
    lightpeft.cut(model, plan, batch=batch)
    assert narrows(model)
    with tokens_seen(last_down(model)) as seen:
        model(**batch)
    assert seen == [1]


def test_with_a_frozen_prefix_from_cache(tmp_path: Path) -> None:
    animal = BY_NAME["bert"]
    budget = Budget(heads=0.4, neurons=0.4, modules=0.3, ranks=0.0, frozen_layers=1)
    narrow, full = cut_one(animal, budget=budget), cut_one(animal, budget=budget, config=FULL)
    batch = animal.batch(padded=True, labels=True)
    prefix = FrozenPrefix(narrow, cache=RowCache(2**20, 0, tmp_path))
    for _ in range(2):
        assert_same_step(narrow, full, batch)
    assert prefix.is_attached
    prefix.remove()


def test_a_file_that_says_something_else_is_refused(tmp_path: Path) -> None:
    animal = BY_NAME["bert"]
    lightpeft.save(cut_one(animal), tmp_path)
    path = tmp_path / "pruning.json"
    write_json(path, read_json(path) | {"first_token": 1})
    with pytest.raises(CheckpointError, match="first_token"):
        lightpeft.load(tmp_path, base=animal.build(), check_files=False)
