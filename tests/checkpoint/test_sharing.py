"""Several light checkpoints on one base in memory: what they share, and that none changes another."""

import copy
import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tests.support.forms import FORM_ROWS
from tests.support.models import (
    NAMES,
    assert_identical,
    hook_count,
    load_base,
    make_batch,
    save_base,
    snapshot,
    with_lora,
)
from tests.support.plans import random_plan, random_scores
from tests.support.probing import random_scores as scores_of_any
from tests.support.zoo import BY_NAME, Animal
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

import lightpeft
from lightpeft import Budget, CheckpointError, LightTasks, find_anatomy, make_plan
from lightpeft.checkpoint import bind_files

TASKS = {"mood": 2, "topic": 3, "degree": 1}
"""Labels of the tasks; one is regression."""


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def labels(count: int) -> dict[str, Any]:
    if count == 1:
        return {"num_labels": 1, "problem_type": "regression"}
    names = {index: f"label {index}" for index in range(count)}
    return {"id2label": names, "label2id": {value: key for key, value in names.items()}}


def light(base: Path, folder: Path, seed: int, count: int = 2, **options: Any) -> Path:
    """A light checkpoint with everything in it: folded gates and pairs, shifted biases, a trained head."""
    model = with_lora(load_base(base, head_seed=seed, **labels(count)), seed=seed, **options)
    scores = random_scores(model, seed, gates=True, means=True)
    lightpeft.cut(model, random_plan(model, seed), scores=scores)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.requires_grad and ("modules_to_save" in key or key.endswith("bias")):
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    return lightpeft.save(model, folder)


def checkpoints(base: Path, folder: Path) -> dict[str, Path]:
    return {name: light(base, folder / name, seed, count) for seed, (name, count) in enumerate(TASKS.items())}


@torch.no_grad()
def logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    was_training = model.training
    model.eval()
    found: Tensor = model(**{key: value for key, value in batch.items() if key != "labels"}).logits
    model.train(was_training)
    return found


def alone(folders: dict[str, Path], batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every task's logits with a base of its own."""
    return {name: logits(lightpeft.load(folder), batch) for name, folder in folders.items()}


def assert_each(tasks: LightTasks, expected: dict[str, Tensor], batch: dict[str, Tensor]) -> None:
    for name in tasks.names:
        assert torch.equal(logits(tasks.use(name), batch), expected[name]), name


def train(model: PeftModel, batch: dict[str, Tensor], steps: int = 3) -> None:
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    for _ in range(steps):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def addresses(model: nn.Module) -> set[int]:
    return {parameter.untyped_storage().data_ptr() for parameter in model.parameters()} - {0}


def unique_bytes(*models: nn.Module) -> int:
    tensors = [t for model in models for t in (*model.parameters(), *model.buffers())]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


@pytest.fixture
def untouched() -> Iterator[Any]:
    """Takes a base and a batch, and afterwards checks that everything about the base is as it was."""
    watched: list[Any] = []

    def state(base: PreTrainedModel, batch: dict[str, Tensor]) -> dict[str, Any]:
        return {
            "config": base.config.to_dict(),
            "training": [module.training for module in base.modules()],
            "gradients": [parameter.requires_grad for parameter in base.parameters()],
            "objects": [id(parameter) for parameter in base.parameters()],
            "addresses": [parameter.data_ptr() for parameter in base.parameters()],
            "hooks": hook_count(base),
            "attributes": sorted(key for module in base.modules() for key in vars(module)),
        }

    def watch(base: PreTrainedModel, batch: dict[str, Tensor]) -> PreTrainedModel:
        watched.append((base, batch, state(base, batch), snapshot(base), logits(base, batch)))
        return base

    yield watch
    for base, batch, before, tensors, expected in watched:
        assert state(base, batch) == before
        assert_identical(base.state_dict(), tensors)
        assert torch.equal(logits(base, batch), expected)


@pytest.mark.parametrize("order", [("mood", "topic", "degree"), ("degree", "topic", "mood")], ids=str)
def test_tasks_do_not_change_each_other(
    order: tuple[str, ...], name: str, tmp_path: Path, untouched: Any
) -> None:
    """Whatever is added, used, trained, merged or removed, and with other numbers of labels."""
    batch = make_batch(name)
    path = save_base(name, tmp_path / "base")
    folders = checkpoints(path, tmp_path)
    expected = alone(folders, batch)
    assert [expected[key].shape[1] for key in TASKS] == list(TASKS.values())
    tasks = LightTasks(untouched(load_base(path), batch))
    for key in order:
        tasks.add(key, folders[key])
        assert_each(tasks, expected, batch)
    tasks.remove(order[0])
    trained = tasks.add(order[0], folders[order[0]], is_trainable=True)
    rows = len(batch["input_ids"])
    wanted = torch.zeros(rows) if TASKS[order[0]] == 1 else torch.zeros(rows).long()
    train(trained, batch | {"labels": wanted})
    assert not torch.equal(logits(trained, batch), expected[order[0]])
    tasks.remove(order[0])
    assert_each(tasks, expected, batch)
    merged = tasks.use(order[1]).merge_and_unload()
    torch.testing.assert_close(logits(merged, batch), expected[order[1]], rtol=1e-4, atol=1e-4)
    tasks.remove(order[1])
    for key in order[:2]:
        tasks.add(key, folders[key])
    assert_each(tasks, expected, batch)


def test_merging_and_unmerging_stays_in_the_task(tmp_path: Path, untouched: Any) -> None:
    batch, path = make_batch("bert"), save_base("bert", tmp_path / "base")
    folders = checkpoints(path, tmp_path)
    expected = alone(folders, batch)
    base = untouched(load_base(path), batch)
    loaded = {key: lightpeft.load(folder, base) for key, folder in folders.items()}
    loaded["mood"].merge_adapter()
    assert torch.equal(logits(loaded["topic"], batch), expected["topic"])
    loaded["mood"].unmerge_adapter()
    assert torch.equal(logits(loaded["degree"], batch), expected["degree"])


def test_on_a_base_in_memory_the_same_model_comes_out(name: str, tmp_path: Path) -> None:
    path, batch = save_base(name, tmp_path / "base"), make_batch(name)
    for key, folder in checkpoints(path, tmp_path).items():
        mine, other = lightpeft.load(folder), lightpeft.load(folder, load_base(path, head_seed=9))
        assert_identical(other.state_dict(), mine.state_dict())
        assert torch.equal(logits(other, batch), logits(mine, batch))
        assert other.config.to_dict() == mine.config.to_dict(), key
        again = lightpeft.load(lightpeft.save(other, tmp_path / "again"))
        assert_identical(again.state_dict(), mine.state_dict())


def test_what_is_not_cut_is_shared_and_what_peft_may_write_is_not(name: str, tmp_path: Path) -> None:
    path = save_base(name, tmp_path / "base")
    base = load_base(path)
    model = lightpeft.load(light(path, tmp_path / "light", 1), base)
    embeddings = model.get_base_model().get_input_embeddings()
    assert embeddings.weight.data_ptr() == base.get_input_embeddings().weight.data_ptr()
    assert embeddings.weight is not base.get_input_embeddings().weight
    wrapped = [module for module in model.modules() if hasattr(module, "lora_A")]
    assert wrapped
    for module in wrapped:
        assert not addresses(module) & addresses(base)
    copied = [module for key, module in model.named_modules() if key.endswith("modules_to_save.default")]
    assert copied
    for module in copied:
        assert not addresses(module) & addresses(base)
    small = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    assert not {parameter.data_ptr() for parameter in small} & addresses(base)


def test_linears_without_a_cut_or_an_adapter_are_shared(tmp_path: Path) -> None:
    path = save_base("bert", tmp_path / "base")
    model = with_lora(load_base(path), targets=("query",))
    budget = Budget(heads=0, neurons=0.5, modules=0, ranks=0)
    lightpeft.cut(model, random_plan(model, budget=budget))
    base = load_base(path)
    loaded = lightpeft.load(lightpeft.save(model, tmp_path / "light"), base)
    layer, original = (m.bert.encoder.layer[0] for m in (loaded.get_base_model(), base))
    assert layer.attention.self.key.weight.data_ptr() == original.attention.self.key.weight.data_ptr()
    for part in ("attention.self.query.base_layer", "intermediate.dense"):
        own = layer.get_submodule(part).weight
        assert own.data_ptr() not in addresses(base)


def test_three_tasks_hold_less_than_the_bound(tmp_path: Path) -> None:
    """Shaped like MiniLM: base + three tasks < 1.6 × one cut model + base."""
    config = AutoConfig.for_model(
        "bert", hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )
    assert config.vocab_size == 30522
    base = AutoModelForSequenceClassification.from_config(config)
    tasks = LightTasks(base)
    for seed in range(3):
        model = like_minilm(copy.deepcopy(base), seed)
        tasks.add(str(seed), lightpeft.save(model, tmp_path / str(seed)))
    one, found = unique_bytes(model), tasks.memory()
    assert unique_bytes(base, *(tasks.use(key) for key in tasks.names)) < 1.6 * one + unique_bytes(base)
    assert found.total < 1.6 * one + unique_bytes(base)


def like_minilm(base: PreTrainedModel, seed: int) -> PeftModel:
    """LoRA on all linears, and a third of everything gone."""
    linears = [f"bert.encoder.{key}" for key, m in base.bert.encoder.named_modules() if type(m) is nn.Linear]
    model = with_lora(base, rank=8, targets=tuple(linears), seed=seed)
    scores = scores_of_any(model, seed)
    lightpeft.cut(model, make_plan(scores, find_anatomy(model), Budget()), scores=scores)
    return model


def test_the_report_counts_each_byte_once(tmp_path: Path) -> None:
    path = save_base("bert", tmp_path / "base")
    base, tasks = load_base(path), LightTasks(path)
    assert tasks.memory().total == 0
    for key, folder in checkpoints(path, tmp_path).items():
        tasks.add(key, folder)
    found = tasks.memory()
    models = [tasks.use(key) for key in tasks.names]
    assert found.tasks.keys() == TASKS.keys()
    assert found.total == found.base + sum(found.tasks.values())
    assert found.base >= unique_bytes(base) > max(found.tasks.values())
    assert found.total >= unique_bytes(*models)
    assert found.separate > sum(found.tasks.values())
    assert found.full_copies == 3 * found.base
    tasks.remove("mood")
    assert tasks.memory().total == found.total - found.tasks["mood"]


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_trained_biases_do_not_leak_into_the_base(bias: str, tmp_path: Path, untouched: Any) -> None:
    path, batch = save_base("bert", tmp_path / "base"), make_batch("bert", labels=True)
    folders = {str(seed): light(path, tmp_path / str(seed), seed, bias=bias) for seed in (1, 2)}
    expected = alone(folders, batch)
    tasks = LightTasks(untouched(load_base(path), batch))
    trained = lightpeft.load(folders["1"], tasks.base, is_trainable=True)
    for key, folder in folders.items():
        tasks.add(key, folder)
    train(trained, batch)
    assert_each(tasks, expected, batch)


@pytest.mark.parametrize("form", ["dora", "sequential", "parallel"])
def test_other_forms_keep_apart_too(form: str, tmp_path: Path, untouched: Any) -> None:
    keep_apart(BY_NAME["bert"], form, tmp_path, untouched)


def test_tied_embeddings_stay_tied_and_shared(tmp_path: Path, untouched: Any) -> None:
    animal = BY_NAME["llama"]
    options = dict(animal.options) | {"tie_word_embeddings": True}
    tied = Animal("llama", animal.task, options, animal.outs, generates=True)
    for model in keep_apart(tied, "lora", tmp_path, untouched):
        base = model.get_base_model()
        assert base.lm_head.weight is base.model.embed_tokens.weight


def keep_apart(animal: Animal, form: str, tmp_path: Path, untouched: Any) -> list[PeftModel]:
    """Two tasks of one base, one of them trained and merged where that can be."""
    batch = animal.batch(padded=True, labels=True)
    folders, expected = [], []
    for seed in (1, 2):
        model = FORM_ROWS[form].put_on(animal, animal.build())
        scores = scores_of_any(model, seed)
        lightpeft.cut(model, make_plan(scores, find_anatomy(model), Budget()), scores=scores)
        folders.append(lightpeft.save(model, tmp_path / str(seed)))
        expected.append(logits(lightpeft.load(folders[-1], animal.build()), batch))
    base = untouched(animal.build(), batch)
    models = [lightpeft.load(folder, base) for folder in folders]
    assert [torch.equal(logits(m, batch), e) for m, e in zip(models, expected, strict=True)] == [True, True]
    train(lightpeft.load(folders[0], base, is_trainable=True), batch)
    if FORM_ROWS[form].linear:
        copy_of_one = lightpeft.load(folders[0], base).merge_and_unload()
        torch.testing.assert_close(logits(copy_of_one, batch), expected[0], rtol=1e-4, atol=1e-4)
    assert [torch.equal(logits(m, batch), e) for m, e in zip(models, expected, strict=True)] == [True, True]
    embeddings = [model.get_base_model().get_input_embeddings().weight.data_ptr() for model in models]
    assert {*embeddings} == {base.get_input_embeddings().weight.data_ptr()}
    return models


def test_lora_on_an_embedding_has_its_own_copy(tmp_path: Path, untouched: Any) -> None:
    path, batch = save_base("bert", tmp_path / "base"), make_batch("bert")
    model = with_lora(load_base(path), targets=("query", "word_embeddings"))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_embedding" in key:
                parameter.add_(torch.randn_like(parameter))
    lightpeft.cut(model, random_plan(model))
    folder = lightpeft.save(model, tmp_path / "light")
    base = untouched(load_base(path), batch)
    first, second = (lightpeft.load(folder, base) for _ in range(2))
    expected = logits(second, batch)
    torch.testing.assert_close(logits(first.merge_and_unload(), batch), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(logits(second, batch), expected)


def test_an_adapter_file_that_names_a_weight_of_the_base_does_not_write_it(
    tmp_path: Path, untouched: Any
) -> None:
    """PEFT would load it in place, into the memory of all tasks."""
    path, batch = save_base("bert", tmp_path / "base"), make_batch("bert")
    folder = light(path, tmp_path / "light", 1)
    base = untouched(load_base(path), batch)
    tensors = load_file(folder / "adapter_model.safetensors")
    place = "bert.embeddings.word_embeddings.weight"
    tensors[f"base_model.model.{place}"] = torch.ones_like(base.get_parameter(place))
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    bind_files(folder)
    with pytest.raises(CheckpointError, match="does not fit the cut base"):
        lightpeft.load(folder, base)


def test_a_head_that_the_checkpoint_does_not_bring_is_refused(tmp_path: Path, untouched: Any) -> None:
    """It is the folder's own, for three labels; in a base with two there is no such head."""
    path = save_base("bert", tmp_path / "base")
    load_base(path, **labels(3)).save_pretrained(tmp_path / "three")
    model = with_lora(load_base(tmp_path / "three", **labels(3)), task_type=None)
    lightpeft.cut(model, random_plan(model))
    folder = lightpeft.save(model, tmp_path / "light")
    base = untouched(load_base(path), make_batch("bert"))
    with pytest.raises(CheckpointError, match=r"1 of 57 weights differ, classifier\.weight first"):
        lightpeft.load(folder, base)


def test_a_head_beside_the_adapter_is_filled_for_other_labels(name: str, tmp_path: Path) -> None:
    path, batch = save_base(name, tmp_path / "base"), make_batch(name)
    folder = light(path, tmp_path / "light", 1, 3, task_type=None)
    mine, other = lightpeft.load(folder), lightpeft.load(folder, load_base(path))
    assert torch.equal(logits(other, batch), logits(mine, batch))


def test_a_base_that_was_used_otherwise_is_refused(tmp_path: Path) -> None:
    path = save_base("bert", tmp_path / "base")
    folder = light(path, tmp_path / "light", 1)
    wrapped = with_lora(load_base(path))
    cut = load_base(path)
    lightpeft.cut(cut, random_plan(with_lora(load_base(path))))
    for base, message in (
        (wrapped, "PeftModel.*plain base"),
        (wrapped.get_base_model(), r"carries PEFT's Linear at bert.*anew"),
        (cut, "was cut already; load it anew"),
        (nn.Linear(2, 2), "is a Linear; give a transformers model"),
    ):
        with pytest.raises(CheckpointError, match=message):
            lightpeft.load(folder, base)
        with pytest.raises(CheckpointError, match=message):
            LightTasks(base)


def test_another_class_of_base_is_refused_with_both_named(tmp_path: Path) -> None:
    path = save_base("bert", tmp_path / "base")
    tasks = LightTasks(path)
    tasks.add("mood", light(path, tmp_path / "mood", 1))
    animal = BY_NAME["llama"]
    model = animal.with_lora()
    scores = scores_of_any(model)
    lightpeft.cut(model, make_plan(scores, find_anatomy(model), Budget()))
    folder = lightpeft.save(model, tmp_path / "llama")
    with pytest.raises(CheckpointError, match=r"AutoModelForSequenceClassification.*AutoModelForCausalLM"):
        tasks.add("story", folder)
    assert tasks.names == ("mood",)


def test_a_checkpoint_of_another_base_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    path = save_base("bert", tmp_path / "base")
    other = light(save_base("bert", tmp_path / "other", seed=7), tmp_path / "light", 1)
    tasks = LightTasks(path)
    with pytest.raises(CheckpointError, match="not the one that the model was cut from"):
        tasks.add("mood", other)
    assert (tasks.names, tasks.active, tasks.base) == ((), None, None)
    tasks.add("mood", light(path, tmp_path / "mood", 1))
    with pytest.raises(CheckpointError, match="not the one that the model was cut from"):
        tasks.add("topic", other)
    assert (tasks.names, tasks.active) == (("mood",), "mood")


def test_switching_is_one_call(tmp_path: Path) -> None:
    path, batch = save_base("bert", tmp_path / "base"), make_batch("bert")
    folders = checkpoints(path, tmp_path)
    tasks, expected = LightTasks(), alone(folders, batch)
    with pytest.raises(CheckpointError, match=r"no task is active.*none was added"):
        tasks(**batch)
    for key, folder in folders.items():
        tasks.add(key, folder, is_trainable=key == "topic")
    assert (tasks.names, tasks.active) == (tuple(TASKS), "mood")
    assert torch.equal(tasks(**batch).logits, expected["mood"])
    assert not tasks.use("topic").training
    assert tasks.active == "topic"
    assert torch.equal(tasks(**batch).logits, expected["topic"])
    tasks.remove("topic")
    assert tasks.active is None
    with pytest.raises(CheckpointError, match=r"no task is active; choose one .*mood, degree"):
        tasks(**batch)


def test_names_are_checked(tmp_path: Path) -> None:
    path = save_base("bert", tmp_path / "base")
    folder, tasks = light(path, tmp_path / "mood", 1), LightTasks(path)
    tasks.add("mood", folder)
    with pytest.raises(CheckpointError, match="a task 'mood' already"):
        tasks.add("mood", folder)
    for wrong in (tasks.use, tasks.remove):
        with pytest.raises(CheckpointError, match=r"no task 'mod', only: mood\. Did you mean 'mood'\?"):
            wrong("mod")


def test_a_removed_task_leaves_memory(tmp_path: Path) -> None:
    path = save_base("bert", tmp_path / "base")
    tasks = LightTasks(path)
    gone = weakref.ref(tasks.add("mood", light(path, tmp_path / "mood", 1)))
    tasks.remove("mood")
    gc.collect()
    assert gone() is None


def test_attention_is_chosen_for_a_base_that_is_still_to_be_loaded(tmp_path: Path) -> None:
    path = save_base("bert", tmp_path / "base")
    tasks = LightTasks(path, attn_implementation="eager")
    model = tasks.add("mood", light(path, tmp_path / "mood", 1))
    assert model.config._attn_implementation == "eager"
    with pytest.raises(CheckpointError, match="no effect"):
        LightTasks(load_base(path), attn_implementation="eager")
