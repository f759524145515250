"""The frozen prefix by itself: when it is off and why, what it leaves alone, and how it goes."""

import copy
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from tests.support.frozen import examples_run, freeze_lowest
from tests.support.models import load_base, make_batch, save_base, with_lora
from tests.support.probing import random_scores
from tests.support.zoo import BY_NAME
from torch import Tensor, nn

import lightpeft
from lightpeft import Budget, PrefixConfig, find_anatomy, make_plan
from lightpeft.anatomy import lowest_stack
from lightpeft.training.prefix import Ahead, FrozenPrefix, RowCache, freeze_prefix, frozen_layer_names

GIB = 2**30


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base("bert", tmp_path_factory.mktemp("base"), dropout=0.1)


@pytest.fixture
def model(base: Path) -> PeftModel:
    model = with_lora(load_base(base))
    freeze_lowest(model, 2)
    return model.train()


def cached(model: nn.Module, folder: Path, **options: Any) -> FrozenPrefix:
    return FrozenPrefix(model, cache=RowCache(GIB, 0, folder), **options)


def prompts(base: Path) -> PeftModel:
    return get_peft_model(load_base(base), PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3))


def prefixes(base: Path) -> PeftModel:
    return get_peft_model(load_base(base), PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3))


def embeddings(base: Path) -> PeftModel:
    config = LoraConfig(
        target_modules=["value"], layers_to_transform=[2], modules_to_save=["word_embeddings"]
    )
    return get_peft_model(load_base(base), config)


def all_hidden_states(base: Path) -> PeftModel:
    model = with_lora(load_base(base, output_hidden_states=True))
    freeze_lowest(model)
    return model


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (prompts, "inputs_embeds is computed by something that is trained"),
        (prefixes, "keys and values of earlier tokens are handed in"),
        (embeddings, "embeddings.word_embeddings.modules_to_save.default is trained below them"),
        (all_hidden_states, "output_hidden_states is set, which reads every layer"),
    ],
)
def test_it_is_off_where_the_lower_layers_are_no_constant(
    make: Callable[[Path], PeftModel],
    why: str,
    base: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    model = make(base).train()
    prefix = cached(model, tmp_path)
    loss = model(**make_batch("bert", labels=True)).loss
    assert not prefix.is_attached
    assert f"frozen prefix: off, because {why}" in caplog.text
    loss.backward()
    assert any(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("config", "passes", "says", "caches"),
    [
        (PrefixConfig(), 3.0, "the lowest 2 layers run without graph and dropout, from a cache", True),
        (PrefixConfig(), None, "from a cache", True),
        (PrefixConfig(), 1.0, "because one pass over the data is left", False),
        (PrefixConfig(cache=False), 3.0, "because prefix.cache is off", False),
    ],
)
def test_one_line_says_what_happens(
    config: PrefixConfig,
    passes: float | None,
    says: str,
    caches: bool,
    model: PeftModel,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    prefix = freeze_prefix(model, config, Ahead(passes, 4, tmp_path), lambda: False)
    assert prefix is not None
    assert prefix.caches is caches
    assert says in caplog.text


def test_nothing_is_frozen_where_the_lowest_layer_is_trained_or_nobody_asks(
    base: Path, model: PeftModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    ahead = Ahead(3.0, 4, tmp_path)
    trained = with_lora(load_base(base))
    assert freeze_prefix(trained, PrefixConfig(), ahead, lambda: False) is None
    assert "none, because the lowest layer is trained" in caplog.text
    assert freeze_prefix(model, PrefixConfig(frozen=False), ahead, lambda: False) is None


def test_the_cache_goes_where_examples_do_not_come_again(
    model: PeftModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    prefix = cached(model, tmp_path, rows=8)
    for seed in range(4):
        model(**make_batch("bert", labels=True, seed=seed))
    assert "no cache from here on, because of 12 examples only 0 had been seen before" in caplog.text
    assert prefix.is_attached
    assert not prefix.caches


def test_no_dropout_and_no_graph_below(model: PeftModel, tmp_path: Path) -> None:
    prefix, batch = cached(model, tmp_path), make_batch("bert", labels=True)
    seen: list[Tensor] = []
    live = model.get_submodule("base_model.model.bert.encoder.layer.2")
    live.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for _ in range(3):
        model.train()
        model(**batch).loss.backward()
    assert not any(hidden.requires_grad for hidden in seen)
    real = batch["attention_mask"].bool()
    for hidden in seen[1:]:
        torch.testing.assert_close(hidden[real], seen[0][real], rtol=0, atol=0)
    assert prefix.is_attached


def test_no_mask_is_drawn_for_what_nobody_reads(model: PeftModel, tmp_path: Path) -> None:
    """The embeddings' dropout rests while their output is not read, and is back when the prefix is gone."""
    dropout, batch = model.get_base_model().bert.embeddings.dropout, make_batch("bert", labels=True)
    drawing: list[bool] = []
    dropout.register_forward_pre_hook(lambda module, _args: drawing.append(module.training))
    model(**batch)
    prefix = cached(model, tmp_path)
    for _ in range(3):
        model(**batch)
        assert dropout.training
    assert drawing[0]
    assert not any(drawing[1:])

    def fails(*_: Any) -> None:
        raise KeyboardInterrupt

    broken = dropout.register_forward_pre_hook(fails)
    with pytest.raises(KeyboardInterrupt):
        model(**batch)
    broken.remove()
    assert not dropout.training
    prefix.remove()
    assert dropout.training
    drawing.clear()
    model(**batch)
    assert drawing == [True]


def test_a_dropout_that_is_used_again_above_drops_there(tmp_path: Path) -> None:
    """T5's encoder has one module before its layers and after them."""
    animal = BY_NAME["t5"]
    model = animal.with_lora("eager").train()
    freeze_lowest(model)
    dropout, batch = model.get_base_model().encoder.dropout, animal.batch(padded=True, labels=True)
    drawing: list[bool] = []
    prefix = cached(model, tmp_path)
    model(**batch)
    dropout.register_forward_pre_hook(lambda module, _args: drawing.append(module.training))
    model(**batch)
    assert drawing == [False, True]
    prefix.remove()


def test_evaluation_uses_it_and_equals_the_model_alone(model: PeftModel, tmp_path: Path) -> None:
    batch = make_batch("bert", labels=True)
    with torch.no_grad():
        expected = model.eval()(**batch).logits
        cached(model, tmp_path)
        model.train()(**make_batch("bert", labels=True, seed=9))
        with examples_run(model) as runs:
            for _ in range(3):
                found = model.eval()(**batch).logits
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
            model.train()(**batch)
    assert runs == [4], "known examples went through the frozen layer"


def test_what_was_seen_in_inference_mode_can_be_trained_on(model: PeftModel, tmp_path: Path) -> None:
    batch = make_batch("bert", labels=True)
    cached(model, tmp_path)
    with torch.inference_mode():
        model.eval()(**batch)
    model.train()(**batch).loss.backward()


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(model: PeftModel, reentrant: bool, tmp_path: Path) -> None:
    batch = make_batch("bert", labels=True)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.train()(**batch).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    cached(model, tmp_path)
    for _ in range(2):
        model.zero_grad()
        with examples_run(model) as runs:
            model.train()(**batch).loss.backward()
        found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)
    assert runs == [], "backward ran a frozen layer again"


def test_it_leaves_nothing_behind(model: PeftModel, tmp_path: Path) -> None:
    before = {name: sorted(vars(module)) for name, module in model.named_modules()}
    prefix = cached(model, tmp_path)
    model(**make_batch("bert", labels=True))
    prefix.remove()
    assert {name: sorted(vars(module)) for name, module in model.named_modules()} == before
    assert all(module.training for module in model.modules())
    with examples_run(model) as runs:
        model(**make_batch("bert", labels=True))
    assert runs == [4]


def test_it_leaves_when_training_was_broken_off(model: PeftModel, tmp_path: Path) -> None:
    over = False
    prefix = cached(model, tmp_path, is_over=lambda: over)
    model(**make_batch("bert", labels=True))
    over = True
    model(**make_batch("bert", labels=True))
    assert not prefix.is_attached


def test_a_copy_of_the_model_runs_alone(model: PeftModel, tmp_path: Path) -> None:
    prefix, batch = cached(model, tmp_path), make_batch("bert", labels=True)
    model(**batch)
    twin = copy.deepcopy(model).eval()
    with torch.no_grad():
        twin.base_model.model.bert.encoder.layer[0].output.dense.weight.zero_()
        with examples_run(twin) as runs:
            changed = twin(**batch).logits
        same = model.eval()(**batch).logits
    assert runs == [4]
    assert prefix.is_attached
    assert not torch.allclose(changed, same)


def test_suspended_it_leaves_the_model_to_itself(model: PeftModel, tmp_path: Path) -> None:
    batch = make_batch("bert", labels=True)
    prefix = cached(model, tmp_path)
    model(**batch)
    with prefix.suspended(), examples_run(model) as runs:
        model(**batch)
    assert runs == [4]


def test_an_error_in_the_layers_leaves_the_model_in_order(
    model: PeftModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached(model, tmp_path)
    dense = model.get_submodule("base_model.model.bert.encoder.layer.1.output")

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory, say")

    handle = dense.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        model(**make_batch("bert", labels=True))
    assert model.training
    handle.remove()
    model(**make_batch("bert", labels=True)).loss.backward()


def test_frozen_layers_are_counted_from_below(base: Path) -> None:
    model = with_lora(load_base(base))
    assert frozen_layer_names(model) == ()
    freeze_lowest(model, 2)
    assert frozen_layer_names(model) == ("bert.encoder.layer.0", "bert.encoder.layer.1")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.base_model.model.bert.encoder.layer[1].output.dense.weight.requires_grad_(True)
    assert frozen_layer_names(model) == ("bert.encoder.layer.0",)


def test_a_skipped_layer_in_the_prefix_computes_the_same(base: Path, tmp_path: Path) -> None:
    """It has no trainable parameter, so it is in the prefix wherever it is the lowest."""
    model = with_lora(load_base(base))
    anatomy = find_anatomy(model)
    budget = Budget(heads=0, neurons=0, modules=0, ranks=0, layers=1 / len(anatomy.layers))
    scores = replace(random_scores(model), layers=(0.1, *[1.0] * (len(anatomy.layers) - 1)))
    lightpeft.cut(model, make_plan(scores, anatomy, budget))
    assert frozen_layer_names(model) == tuple(lowest_stack(model)[:1])
    batch = make_batch("bert", labels=True)
    model.eval()
    expected = model(**batch).logits
    prefix = cached(model, tmp_path)
    for _ in range(2):
        torch.testing.assert_close(model(**batch).logits, expected)
    assert prefix.is_attached
    prefix.remove()
    torch.testing.assert_close(model(**batch).logits, expected, rtol=0, atol=0)
