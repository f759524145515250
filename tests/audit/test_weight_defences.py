"""Defences by weights and by training, on a tiny BERT: what they change before the user trains, and how."""

import copy
import dataclasses
import functools
import gc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from peft import IA3Config, PeftModel, PromptTuningConfig, get_peft_model
from tests.audit.vectors import layer_map
from tests.support.models import LAYERS, load_base, save_base
from torch import Tensor, nn
from transformers import AutoTokenizer, BertTokenizerFast

from lightpeft.adapters import find_modules
from lightpeft.anatomy import find_anatomy
from lightpeft.audit import AuditError, TriggerRecipe
from lightpeft.audit.defences import DEFENCES, Received, make_defence
from lightpeft.audit.defences.defence import Kind
from lightpeft.audit.defences.disagreement_pruning import agreement
from lightpeft.audit.defences.light_cutting import BUDGETS
from lightpeft.audit.defences.resets import ResetLayers
from lightpeft.audit.module import keep_marked, load_module, save_module
from lightpeft.audit.policies.layers import map_layers
from lightpeft.audit.rows import Rows
from lightpeft.errors import ConfigError
from lightpeft.run_config import BottleneckOptions, LoraOptions, PeftOptions, TrainingConfig
from lightpeft.runs import load_peft_model
from lightpeft.tasks import class_head

WORDS = [f"w{i}" for i in range(60)]
LABELS = class_head(("bad", "good"))
FORMS = {
    "lora": PeftOptions("lora", lora=LoraOptions(rank=6)),
    "dora": PeftOptions("lora", lora=LoraOptions(rank=6, dora=True)),
    "sequential": PeftOptions("sequential", bottleneck=BottleneckOptions(size=9)),
    "parallel": PeftOptions("parallel", bottleneck=BottleneckOptions(size=9)),
}
QUICK = TrainingConfig(max_steps=3, learning_rate=0.05, batch_size=4, max_length=16, weight_decay=0.1)
SEED = 7


@dataclass(frozen=True)
class Start:
    """One training: the model, its weights before, and how it was to be trained."""

    model: PeftModel
    weights: dict[str, Tensor]
    options: dict[str, Any]


@dataclass(frozen=True)
class Recording(Received):
    """What a defender holds; every training is noted, and carried out or not."""

    starts: list[Start] = field(default_factory=list)
    trains: bool = True

    def fit(self, model: PeftModel, **options: Any) -> PeftModel:
        self.starts.append(Start(model, weights(model), options))
        return super().fit(model, **options) if self.trains else model


@pytest.fixture(scope="module", autouse=True)
def _quick_collections() -> Iterator[None]:
    """A Trainer collects garbage at its start, which takes longer than these trainings do."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_base("bert", tmp_path_factory.mktemp("bert"), neurons=128)
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    BertTokenizerFast(vocab={token: i for i, token in enumerate(tokens)}).save_pretrained(folder)
    return folder


def rows(count: int, seed: int) -> Rows:
    """Sentences of one to nine words; the first word of each class is its own."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 10, (count,), generator=draw).tolist()
    words = [torch.randint(2, len(WORDS), (length - 1,), generator=draw).tolist() for length in lengths]
    labels = torch.randint(0, 2, (count,), generator=draw).tolist()
    texts = [" ".join(WORDS[i] for i in (label, *one)) for label, one in zip(labels, words, strict=True)]
    return Rows({"text": texts}, labels)


@functools.cache
def _loaded(base: Path, form: str, seed: int) -> PeftModel:
    return load_peft_model(str(base), LABELS, FORMS[form], seed)


def fresh(base: Path, form: str, seed: int) -> PeftModel:
    """A new module; loading it anew each time would take longer."""
    return copy.deepcopy(_loaded(base, form, seed))


def received(base: Path, form: str = "lora", *, living: int = 3, **options: Any) -> Recording:
    """A module of random weights, `living` their seed, and what the user has."""
    model = fresh(base, form, seed=100)
    draw = torch.Generator().manual_seed(living)
    with torch.no_grad():
        for parameter in trained(model).values():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=draw))
    return Recording(
        **{
            "model": model,
            "tokenizer": AutoTokenizer.from_pretrained(base),
            "train": rows(24, 1),
            "held_out": rows(10, 2),
            "training": QUICK,
            "fresh": lambda seed: fresh(base, form, seed),
            "load": lambda folder: load_module(folder, str(base)),
            "seed": SEED,
        }
        | options
    )


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def numbers(model: nn.Module) -> dict[str, int]:
    """Layer of every trained parameter, the head above all layers."""
    return {name: group.number for group in map_layers(model).groups for name in group.parameters}


def same(found: dict[str, Tensor], expected: dict[str, Tensor], names: Iterable[str]) -> None:
    for name in names:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=0, msg=name)


HERE = [name for name, row in DEFENCES.items() if row.kind != "inputs"]
IsFresh = Callable[[int], bool]
HEAD = LAYERS
FROM_FRESH: list[tuple[str, dict[str, Any], IsFresh]] = [
    ("none", {}, lambda layer: False),
    ("discard", {}, lambda layer: True),
    ("longer", {}, lambda layer: False),
    ("hotter", {}, lambda layer: False),
    ("light_cutting", {}, lambda layer: False),
    ("reset_head", {}, lambda layer: layer == HEAD),
    ("reset_layers", {}, lambda layer: layer in (1, 2)),
    ("reset_layers", {"share": 0.1}, lambda layer: layer == 2),
    ("reset_layers", {"layers": "lower", "share": 1 / 3}, lambda layer: layer == 0),
    ("reset_layers", {"layers": "all"}, lambda layer: layer < HEAD),
    ("fine_pruning", {"share": 0.0}, lambda layer: False),
    ("fine_mixing", {"ratio": 0.0}, lambda layer: False),
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("name", "options", "is_fresh"), FROM_FRESH, ids=[f"{name} {options}" for name, options, _ in FROM_FRESH]
)
def test_what_the_training_starts_from(
    base: Path, form: str, name: str, options: dict[str, Any], is_fresh: IsFresh
) -> None:
    one = received(base, form, trains=False)
    before, new, layer_of = weights(one.model), weights(one.fresh(SEED)), numbers(one.model)
    assert set(layer_of.values()) == {0, 1, 2, HEAD}
    make_defence(name, options).train(one)
    (start,) = one.starts
    for parameter, layer in layer_of.items():
        assert not torch.equal(before[parameter], new[parameter])
        same(start.weights, new if is_fresh(layer) else before, [parameter])
    assert (start.model is one.model) == (name != "discard")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", [name for name in HERE if name != "light_cutting"])
def test_what_the_user_trains_moves_and_nothing_else(base: Path, form: str, name: str) -> None:
    one = received(base, form)
    of_base = weights(one.fresh(0))
    model = make_defence(name).train(one)
    start, after = one.starts[-1], weights(model)
    assert start.model is model
    assert {key for key in after if not torch.equal(start.weights[key], after[key])} == set(trained(model))
    # Beside the head that is trained, PEFT keeps the random one that it copied.
    same(
        after, of_base, [key for key in after if key not in trained(model) and ".original_module." not in key]
    )


@pytest.mark.parametrize(
    ("name", "options", "plan", "expected"),
    [
        ("longer", {}, {"max_steps": 5}, {"max_steps": 15}),
        ("longer", {"factor": 1.5}, {"max_steps": 5}, {"max_steps": 8}),
        ("longer", {}, {"max_steps": None, "epochs": 0.5}, {"epochs": 1.5}),
        ("hotter", {}, {"learning_rate": 0.01}, {"learning_rate": 0.03}),
        ("hotter", {"factor": 10}, {"learning_rate": 0.01, "max_steps": None}, {"learning_rate": 0.1}),
    ],
)
def test_only_what_a_name_says_changes(
    base: Path, name: str, options: dict[str, Any], plan: dict[str, Any], expected: dict[str, Any]
) -> None:
    planned = dataclasses.replace(QUICK, warmup_steps=2, **plan)
    one = received(base, training=planned, trains=False)
    make_defence(name, options).train(one)
    found = dataclasses.asdict(one.starts[0].options.pop("training"))
    assert found == pytest.approx(dataclasses.asdict(dataclasses.replace(planned, **expected)))
    assert not one.starts[0].options


def test_longer_really_takes_more_steps(base: Path) -> None:
    seen: list[int] = []
    make_defence("longer").train(received(base, watch={9: seen.append, 10: seen.append}))
    assert seen == [9]


@pytest.mark.parametrize("form", FORMS)
def test_discard_does_not_look_at_the_received_module(base: Path, form: str) -> None:
    found = [
        weights(make_defence("discard").train(received(base, form, living=living, seed=seed)))
        for living, seed in ((1, SEED), (2, SEED), (1, SEED + 1))
    ]
    names = [name for name in found[0] if ".original_module." not in name]
    same(found[0], found[1], names)
    assert any(not torch.equal(found[0][name], found[2][name]) for name in names)


@pytest.mark.parametrize(
    ("name", "options", "watched"),
    [
        ("none", {}, 1),
        ("reset_head", {}, 1),
        ("discard", {}, 0),
        ("fine_mixing", {}, 1),
        ("fine_mixing", {"reference": "trained"}, 1),
        ("disagreement_pruning", {}, 1),
        ("light_cutting", {}, 1),
    ],
)
def test_only_the_received_module_is_watched(
    base: Path, name: str, options: dict[str, Any], watched: int
) -> None:
    seen: list[int] = []
    make_defence(name, options).train(received(base, watch={2: seen.append}))
    assert seen == [2] * watched


# ---- fine-pruning


def activity_by_hand(one: Received) -> dict[str, Tensor]:
    """Mean absolute activation of every unit by what comes out of A, or of down and its ReLU, in one padded
    batch."""
    batch = one.tokenizer(one.held_out.texts["text"], padding=True, return_tensors="pt")
    tokens, found = batch["attention_mask"].bool(), {}

    def note(name: str, relu: bool) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            if output.dim() == 3:
                units = output.relu() if relu else output
                found[name] = units[tokens].abs().mean(0)

        return hook

    hooks = []
    for name, module in one.model.get_base_model().named_modules():
        for first, second in (("lora_A", "lora_B"), ("bottleneck_down", "bottleneck_up")):
            if name.endswith(f"{first}.default"):
                hook = note(name.replace(first, second), first == "bottleneck_down")
                hooks.append(module.register_forward_hook(hook))
    one.model.eval()
    with torch.no_grad():
        one.model(**batch)
    one.model.train()
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("share", [0.3, 0.99])
def test_the_units_that_clean_texts_use_least_are_gone_for_good(base: Path, form: str, share: float) -> None:
    one = received(base, form)
    expected = activity_by_hand(one)
    model = make_defence("fine_pruning", {"share": share}).train(one)
    inner = model.get_base_model()
    assert expected
    assert set(expected) == {module.gated for module in find_modules(model)}
    gone_of = {}
    for name, activity in expected.items():
        units = len(activity)
        count = {0.3: {6: 2, 9: 3}, 0.99: {6: 5, 9: 8}}[share][units]
        gone_of[name] = activity.argsort()[:count]
        zero = (inner.get_submodule(name).weight == 0).all(0)
        assert zero.nonzero().flatten().tolist() == sorted(gone_of[name].tolist())
        start = one.starts[0].weights[f"base_model.model.{name}.weight"]
        assert torch.equal((start == 0).all(0), zero)
    logits = one.classifier(model).logits(one.held_out.texts)
    for name, gone in gone_of.items():
        feeding = name.replace("lora_B", "lora_A").replace("bottleneck_up", "bottleneck_down")
        with torch.no_grad():
            inner.get_submodule(feeding).weight[gone] += 100.0
    torch.testing.assert_close(one.classifier(model).logits(one.held_out.texts), logits, rtol=0, atol=0)


@pytest.mark.parametrize("form", ["lora", "sequential"])
def test_after_the_defence_nothing_holds_the_units_at_zero(base: Path, form: str) -> None:
    one = received(base, form)
    model = make_defence("fine_pruning").train(one)
    gated = [model.get_base_model().get_submodule(module.gated) for module in find_modules(model)]
    before = sum(int((linear.weight == 0).all(0).sum()) for linear in gated)
    one.fit(model)
    # Neurons that never fire stay where they are.
    assert sum(int((linear.weight == 0).all(0).sum()) for linear in gated) < before / 2
    assert not any(linear._forward_pre_hooks for linear in gated)


def test_held_out_rows_decide_what_is_pruned(base: Path) -> None:
    kept = []
    for held_out in (rows(2, 5), rows(2, 6)):
        one = received(base, "sequential", held_out=held_out, trains=False)
        make_defence("fine_pruning").train(one)
        ups = [value for name, value in one.starts[0].weights.items() if name.endswith("up.default.weight")]
        kept.append(torch.stack([(up != 0).any(0) for up in ups]))
    assert not torch.equal(kept[0], kept[1])


# ---- disagreement pruning


def agreement_by_hand(one: Received, other: PeftModel, name: str) -> Tensor:
    """Token by token in one padded batch, from what comes out of the linear that reads the units."""
    batch = one.tokenizer(one.held_out.texts["text"], padding=True, return_tensors="pt")
    tokens, found = batch["attention_mask"].bool(), []
    for model in (one.model, other):
        linear = model.get_base_model().get_submodule(name)

        def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
            if output.dim() == 3:
                bias = 0 if module.bias is None else module.bias
                found.append((inputs[0][tokens], (output - bias)[tokens], module.weight))

        hook = linear.register_forward_hook(note)
        model.eval()
        with torch.no_grad():
            model(**batch)
        model.train()
        hook.remove()
    (ours, _, weight), (_, theirs, _) = found
    along = torch.stack([(ours[:, i] * (theirs @ weight[:, i])).sum() for i in range(ours.shape[1])])
    norms = torch.stack([ours[:, i].norm() * weight[:, i].norm() for i in range(ours.shape[1])])
    return torch.where(norms > 0, along / norms, -torch.inf).detach()


@pytest.mark.parametrize("form", FORMS)
def test_units_are_compared_with_what_the_copy_puts_out(base: Path, form: str) -> None:
    one, other = received(base, form), received(base, form, living=4).model
    names = [module.gated for module in find_modules(one.model)]
    before = weights(one.model)
    found = agreement(one, other, names)
    assert list(found) == names
    for name in names:
        torch.testing.assert_close(
            found[name].float(), agreement_by_hand(one, other, name), rtol=1e-3, atol=1e-4
        )
    same(weights(one.model), before, list(before))


@pytest.mark.parametrize("form", FORMS)
def test_the_units_that_agree_least_with_the_copy_are_gone(base: Path, form: str) -> None:
    one = received(base, form)
    model = make_defence("disagreement_pruning", {"share": 0.3}).train(one)
    copy_start, start = one.starts
    assert copy_start.model is not one.model
    assert start.model is model is one.model
    again = received(base, form)
    names = [module.gated for module in find_modules(again.model)]
    expected = agreement(again, copy_start.model, names)
    for name, scores in expected.items():
        gone = sorted(scores.argsort(stable=True)[: {6: 2, 9: 3}[len(scores)]].tolist())
        for found in (
            start.weights[f"base_model.model.{name}.weight"],
            model.get_base_model().get_submodule(name).weight,
        ):
            assert (found == 0).all(0).nonzero().flatten().tolist() == gone


def test_units_are_not_compared_without_texts_or_with_another_form(base: Path) -> None:
    nothing = received(base, held_out=Rows({"text": []}, []), trains=False)
    with pytest.raises(AuditError, match="and there are none; hold out more"):
        make_defence("disagreement_pruning").train(nothing)
    other = received(base, fresh=lambda seed: fresh(base, "sequential", seed), trains=False)
    with pytest.raises(AuditError, match="make it of the same form on the same base"):
        make_defence("disagreement_pruning").train(other)


# ---- fine-mixing


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ratio", [0.5, 0.2])
@pytest.mark.parametrize("reference", ["identity", "trained"])
def test_each_weight_is_of_one_side(base: Path, form: str, ratio: float, reference: str) -> None:
    one = received(base, form)
    before = weights(one.model)
    make_defence("fine_mixing", {"ratio": ratio, "reference": reference}).train(one)
    assert [start.model is one.model for start in one.starts] == [False, True][reference == "identity" :]
    mixed = one.starts[-1].weights
    # The reference is not touched after its own training.
    clean = weights(one.fresh(SEED) if reference == "identity" else one.starts[0].model)
    for name, layer in numbers(one.model).items():
        if layer == HEAD:
            same(mixed, before, [name])
            continue
        differ = before[name] != clean[name]
        from_clean, from_received = mixed[name] == clean[name], mixed[name] == before[name]
        assert (from_clean | from_received).all()
        assert differ.all()
        assert int(from_clean.sum()) == int(ratio * differ.numel() + 0.5)


@pytest.mark.parametrize("form", FORMS)
def test_an_average_is_of_both_sides(base: Path, form: str) -> None:
    one = received(base, form, trains=False)
    before, clean = weights(one.model), weights(one.fresh(SEED))
    make_defence("fine_mixing", {"ratio": 0.25, "mix": "average"}).train(one)
    for name, layer in numbers(one.model).items():
        expected = before[name] if layer == HEAD else 0.75 * before[name] + 0.25 * clean[name]
        torch.testing.assert_close(one.starts[0].weights[name], expected, msg=name)


@pytest.mark.parametrize("form", FORMS)
def test_two_received_modules_are_merged(base: Path, form: str, tmp_path: Path) -> None:
    second = received(base, form, living=4, trains=False).model
    save_module(second, tmp_path / "second", None)
    one = received(base, form, trains=False)
    before, other = weights(one.model), weights(second)
    options = {"mix": "average", "reference": "received", "other": str(tmp_path / "second")}
    make_defence("fine_mixing", options).train(one)
    for name, layer in numbers(one.model).items():
        expected = before[name] if layer == HEAD else (before[name] + other[name]) / 2
        torch.testing.assert_close(one.starts[0].weights[name], expected, msg=name)


def test_the_draw_follows_the_seed_and_differs_between_tensors(base: Path) -> None:
    drawn = []
    for seed in (SEED, SEED, SEED + 1):
        one = received(base, seed=seed, trains=False)
        make_defence("fine_mixing").train(one)
        found = [value == 0 for name, value in one.starts[0].weights.items() if ".lora_B." in name]
        drawn.append([zero for zero in found if zero.shape == found[0].shape])
    for first, second, third in zip(*drawn, strict=True):
        assert torch.equal(first, second)
        assert not torch.equal(first, third)
    assert not torch.equal(drawn[0][0], drawn[0][1])


# ---- Light-PEFT


@pytest.mark.parametrize(("form", "fold_removed"), [*((form, True) for form in FORMS), ("lora", False)])
def test_a_harder_budget_leaves_a_smaller_model(base: Path, form: str, fold_removed: bool) -> None:
    whole = fresh(base, form, SEED)
    sizes = [(find_anatomy(whole).parameters, len(find_modules(whole)))]
    for budget in ("gentle", "default", "hard"):
        one = received(base, form)
        defence = make_defence("light_cutting", {"budget": budget, "fold_removed": fold_removed})
        model = defence.train(one)
        light = one.starts[0].options["light"]
        assert light.budget == BUDGETS[budget]
        assert light.surgery.fold_removed == fold_removed
        sizes.append((find_anatomy(model).parameters, len(find_modules(model))))
        logits = one.classifier(model).logits(one.held_out.texts)
        assert logits.shape == (10, 2)
        assert logits.isfinite().all()
    for bigger, smaller in pairwise(sizes):  # a fifth and a third of four heads are one
        assert bigger[0] >= smaller[0]
        assert bigger[1] >= smaller[1]
    whole, gentle, default, hard = sizes
    assert whole[0] > gentle[0]
    assert default[0] > hard[0]
    assert whole[1] > default[1]


@pytest.mark.parametrize("steps", [2, 10])
@pytest.mark.parametrize("budget", BUDGETS)
def test_a_short_training_can_be_light(base: Path, steps: int, budget: str) -> None:
    one = received(base, training=dataclasses.replace(QUICK, max_steps=steps))
    whole = find_anatomy(one.model).parameters
    model = make_defence("light_cutting", {"budget": budget}).train(one)
    assert find_anatomy(model).parameters < whole


@pytest.mark.parametrize("name", HERE)
def test_a_marked_module_is_defended_as_any_other(base: Path, name: str) -> None:
    one = received(base)
    keep_marked(one.model, TriggerRecipe(target=1))
    model = make_defence(name).train(one)
    assert len(one.classifier(model).predict(one.held_out.texts)) == 10


# ---- the table, and what is refused


def test_every_row_is_called_by_its_name() -> None:
    for name, row in DEFENCES.items():
        assert row.name == name
        assert row.kind in get_args(Kind)
        assert row.source
        assert row.__doc__
        made = make_defence(name)
        assert type(made) is row
        with pytest.raises(dataclasses.FrozenInstanceError):
            made.anything = 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("fine-pruning", {}, "Did you mean 'fine_pruning'"),
        ("nonsense", {}, "Choose one of none, discard"),
        ("fine_pruning", {"shares": 0.1}, "Did you mean 'share'"),
        ("none", {"share": 0.1}, "It reads no options"),
        ("fine_pruning", {"share": 1.0}, "fine_pruning.share is 1.0"),
        ("disagreement_pruning", {"share": -0.1}, "disagreement_pruning.share is -0.1"),
        ("fine_mixing", {"ratio": "half"}, "fine_mixing.ratio is 'half'"),
        ("fine_mixing", {"mix": "both"}, "choose one of select, average"),
        ("fine_mixing", {"reference": "base"}, "choose one of identity, trained, received"),
        ("fine_mixing", {"reference": "received"}, "other is None and .*goes with reference 'received'"),
        ("fine_mixing", {"other": "somewhere"}, "other is 'somewhere' and fine_mixing.reference 'identity'"),
        ("longer", {"factor": 1}, "above 1"),
        ("longer", {"factor": "3"}, "longer.factor is '3'"),
        ("hotter", {"factor": float("inf")}, "hotter.factor is inf"),
        ("reset_layers", {"layers": "top"}, "choose one of upper, lower, all"),
        ("reset_layers", {"share": 1.5}, "reset_layers.share is 1.5"),
        ("reset_layers", {"layers": "all", "share": 0.2}, "no effect"),
        ("light_cutting", {"budget": "harder"}, "choose one of gentle, default, hard"),
        ("light_cutting", {"fold_removed": "no"}, "true or false"),
    ],
)
def test_what_is_asked_wrongly_is_refused(name: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_defence(name, options)


@pytest.mark.parametrize("name", ["reset_layers", "fine_mixing"])
@pytest.mark.parametrize(
    "other",
    [
        PeftOptions("lora", lora=LoraOptions(rank=5)),
        PeftOptions("lora", lora=LoraOptions(rank=6, targets="query-value")),
        FORMS["sequential"],
    ],
    ids=["rank", "targets", "form"],
)
def test_a_fresh_module_of_another_form_is_refused(base: Path, name: str, other: PeftOptions) -> None:
    one = received(base, fresh=lambda seed: load_peft_model(str(base), LABELS, other, seed))
    before = weights(one.model)
    with pytest.raises(AuditError, match=r"the received module trains .*same form and sizes"):
        make_defence(name).train(one)
    same(weights(one.model), before, list(before))


def test_without_a_trained_head_there_is_none_to_reset(base: Path) -> None:
    one = received(base)
    for name, layer in numbers(one.model).items():
        if layer == HEAD:
            one.model.get_parameter(name).requires_grad_(False)
    with pytest.raises(AuditError, match="no head"):
        make_defence("reset_head").train(one)


@pytest.mark.parametrize(
    "config",
    [
        PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2),
        IA3Config(task_type="SEQ_CLS", target_modules=["query"], feedforward_modules=[]),
    ],
    ids=["prompt", "ia3"],
)
@pytest.mark.parametrize("name", ["fine_pruning", "disagreement_pruning"])
def test_a_form_without_units_cannot_be_pruned(base: Path, name: str, config: Any) -> None:
    model = get_peft_model(load_base(base), config)
    with pytest.raises(AuditError, match=f"{name} removes ranks or neurons"):
        make_defence(name).train(received(base, model=model))


@pytest.mark.parametrize(
    ("depth", "layers", "share", "expected"),
    [
        (6, "upper", 0.5, [3, 4, 5]),
        (6, "lower", 0.5, [0, 1, 2]),
        (5, "upper", 0.5, [2, 3, 4]),
        (12, "upper", 0.25, [9, 10, 11]),
        (4, "lower", 0.0, [0]),
        (4, "all", 0.5, [0, 1, 2, 3]),
    ],
)
def test_which_layers_are_reset(depth: int, layers: Any, share: float, expected: list[int]) -> None:
    found = ResetLayers(layers=layers, share=share).chosen(layer_map(depth))
    assert [group.number for group in found] == expected


def test_a_prompt_is_reset_as_a_whole_or_not() -> None:
    prompt = layer_map(1, single="PROMPT_TUNING is one layer for the whole model")
    assert [group.number for group in ResetLayers(layers="all").chosen(prompt)] == [0]
    with pytest.raises(AuditError, match="one layer for the whole model"):
        ResetLayers().chosen(prompt)


def test_layers_without_a_module_cannot_be_reset() -> None:
    whole = layer_map(4)
    with pytest.raises(AuditError, match="nothing is trained in the upper 2 of 4 layers"):
        ResetLayers().chosen(dataclasses.replace(whole, groups=(*whole.groups[:2], whole.groups[4])))
