"""Bottleneck adapters on every architecture: what they compute, and that they behave as any peft tuner."""

import copy
import json
import pickle
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    PeftConfig,
    PeftModel,
    get_peft_model,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from peft.utils import PeftType
from peft.utils.save_and_load import get_peft_model_state_dict
from tests.support.models import checkpoint_activations, hook_count
from tests.support.zoo import ANIMALS, BERT, BY_NAME, NEURONS, WIDTH, Animal
from torch import Tensor, nn
from transformers import BertConfig, BertForQuestionAnswering, BertForTokenClassification

from lightpeft.adapters.bottleneck import BottleneckConfig, BottleneckLayer, BottleneckModel, targets
from lightpeft.adapters.bottleneck import _register as register_again
from lightpeft.errors import ConfigError

FORMS = ("sequential", "parallel")
SIZE = 5
A_FEW = ("bert", "llama", "gpt2", "t5")

everywhere = pytest.mark.parametrize("animal", ANIMALS, ids=lambda animal: animal.name)
in_both_forms = pytest.mark.parametrize("form", FORMS)
on_a_few = pytest.mark.parametrize("name", A_FEW)


def build(animal: Animal) -> Any:
    return animal.build(animal.attentions[-1])


def adapted(animal: Animal, *, living: bool = True, seed: int = 1, **options: Any) -> PeftModel:
    """A base with adapters that matter (or, fresh, do not yet)."""
    sizes = {} if "reduction_factor" in options else {"size": SIZE}
    config = BottleneckConfig(init_weights=not living, **(sizes | options))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(build(animal), config).eval()


def add(model: PeftModel, adapter: str, *, seed: int = 2, **options: Any) -> None:
    """Another living adapter."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model.add_adapter(adapter, BottleneckConfig(init_weights=False, **options))


def outputs(model: nn.Module, animal: Animal) -> Tensor:
    with torch.no_grad():
        output: Tensor = model(**animal.batch(padded=True))[0]
    return output


def layers(model: nn.Module) -> dict[str, BottleneckLayer]:
    """The adapted linears by name."""
    return {module.name: module for module in model.modules() if isinstance(module, BottleneckLayer)}


def out_names(animal: Animal) -> list[str]:
    """Every output projection, from the zoo's own table."""
    return [out.path.format(i) for out in animal.outs for i in range(out.layers)]


@contextmanager
def by_hand(base: nn.Module, animal: Animal, weights: Mapping[str, Tensor], **options: Any) -> Iterator[None]:
    """The plain base, each output projection of which adds what an adapter with these weights should.

    A block's input is what its first linear reads: the first that is called in this layer after the output
    projection of another block.
    """
    with ExitStack() as stack:
        for out in animal.outs:
            for i in range(out.layers):
                layer = out.path.partition("{}")[0] + f"{i}."
                names = [name for name in out_names(animal) if name.startswith(layer)]
                if out.path.format(i) == names[0]:
                    for handle in _hook_layer(base, layer, names, weights, options):
                        stack.callback(handle.remove)
        yield


def _hook_layer(
    base: nn.Module, layer: str, outs: list[str], weights: Mapping[str, Tensor], options: dict[str, Any]
) -> list[Any]:
    first: list[Tensor] = []

    def read(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        first.append(inputs[0])

    def write(name: str) -> Any:
        def hook(_: nn.Module, __: tuple[Tensor, ...], y: Tensor) -> Tensor:
            h = y if options.get("form", "sequential") == "sequential" else first[0]
            first.clear()
            return y + expected_addition(h, weights, name, options) if has_adapter(weights, name) else y

        return hook

    handles = []
    for name, module in base.named_modules():
        if name.startswith(layer) and type(module).__name__ in ("Linear", "Conv1D", "FalconLinear"):
            handles.append(module.register_forward_pre_hook(read))
            if name in outs:
                handles.append(module.register_forward_hook(write(name)))
    return handles


def has_adapter(weights: Mapping[str, Tensor], name: str) -> bool:
    return f"base_model.model.{name}.bottleneck_up.weight" in weights


def expected_addition(
    h: Tensor, weights: Mapping[str, Tensor], name: str, options: Mapping[str, Any]
) -> Tensor:
    """scaling · (relu(norm(h) D^T + d) U^T + u), from the file's weights."""

    def get(part: str) -> Tensor:
        return weights[f"base_model.model.{name}.bottleneck_{part}"]

    if options.get("layer_norm"):
        mean, variance = h.mean(-1, keepdim=True), h.var(-1, keepdim=True, unbiased=False)
        h = (h - mean) / torch.sqrt(variance + 1e-5) * get("norm.weight") + get("norm.bias")
    neurons = (h @ get("down.weight").T + get("down.bias")).clamp(min=0)
    return (neurons @ get("up.weight").T + get("up.bias")) * options.get("scaling", 1.0)


def assert_by_hand(model: PeftModel, animal: Animal, adapter: str = "default", **options: Any) -> None:
    base = build(animal)
    weights = get_peft_model_state_dict(model, adapter_name=adapter)
    with by_hand(base, animal, weights, **options):
        torch.testing.assert_close(outputs(model, animal), outputs(base, animal), rtol=1e-3, atol=1e-4)


@everywhere
@in_both_forms
def test_a_fresh_adapter_computes_what_the_base_does(animal: Animal, form: str) -> None:
    model = adapted(animal, living=False, form=form)
    assert set(layers(model)) == set(out_names(animal))
    assert torch.equal(outputs(model, animal), outputs(build(animal), animal))


@everywhere
@in_both_forms
def test_a_living_adapter_computes_the_formula(animal: Animal, form: str) -> None:
    model = adapted(animal, form=form, scaling=1.5, layer_norm=True)
    assert not torch.allclose(outputs(model, animal), outputs(build(animal), animal), atol=1e-3)
    assert_by_hand(model, animal, form=form, scaling=1.5, layer_norm=True)


@everywhere
@in_both_forms
def test_saving_and_loading_gives_the_same_model(animal: Animal, form: str, tmp_path: Path) -> None:
    model = adapted(animal, form=form, layer_norm=True)
    model.save_pretrained(tmp_path)
    for low_memory in (False, True):
        loaded = PeftModel.from_pretrained(build(animal), tmp_path, low_cpu_mem_usage=low_memory).eval()
        assert torch.equal(outputs(loaded, animal), outputs(model, animal))
        assert not any(parameter.requires_grad for parameter in loaded.parameters())


@everywhere
@in_both_forms
def test_disabling_and_unloading_give_the_base(animal: Animal, form: str) -> None:
    model, base = adapted(animal, form=form), build(animal)
    expected = outputs(base, animal)
    with model.disable_adapter():
        assert torch.equal(outputs(model, animal), expected)
    assert not torch.allclose(outputs(model, animal), expected, atol=1e-4)
    plain = model.unload()
    assert torch.equal(outputs(plain, animal), expected)
    assert plain.state_dict().keys() == base.state_dict().keys()
    assert hook_count(plain) == hook_count(base)
    assert not layers(plain)


@everywhere
@in_both_forms
def test_gradients_reach_the_adapters_and_only_them(animal: Animal, form: str) -> None:
    model = adapted(animal, form=form, activation="gelu", layer_norm=True).train()
    model(**animal.batch(padded=True, labels=True)).loss.backward()
    for name, parameter in model.named_parameters():
        if "bottleneck_" in name:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
        else:
            assert parameter.grad is None, name
            assert not parameter.requires_grad, name


@on_a_few
@in_both_forms
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(name: str, form: str, reentrant: bool) -> None:
    animal = BY_NAME[name]
    gradients = []
    for checkpointing in (False, True):
        model = adapted(animal, form=form).train()
        if checkpointing:
            checkpoint_activations(model.get_base_model(), reentrant=reentrant)
        model(**animal.batch(padded=True, labels=True), use_cache=False).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
        assert not any(
            isinstance(held, Tensor) for one in layers(model).values() for held in vars(one).values()
        )
    torch.testing.assert_close(*gradients)


@on_a_few
@in_both_forms
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])  # noqa: S301
def test_a_copy_is_independent(name: str, form: str, duplicate: Any) -> None:
    animal = BY_NAME[name]
    model = adapted(animal, form=form)
    before = outputs(model, animal)
    twin = duplicate(model)
    assert torch.equal(outputs(twin, animal), before)
    with torch.no_grad():
        for layer in layers(twin).values():
            layer.bottleneck_up["default"].weight.mul_(2)
    changed = outputs(twin, animal)
    assert not torch.allclose(changed, before, atol=1e-4)
    assert torch.equal(outputs(model, animal), before)
    model.unload()
    assert torch.equal(outputs(twin, animal), changed)
    assert hook_count(twin.unload()) == 0


@on_a_few
def test_adapters_of_both_forms_live_on_one_layer(name: str) -> None:
    animal = BY_NAME[name]
    model = adapted(animal)
    add(model, "other", form="parallel", size=3, scaling=2.0)
    assert_by_hand(model, animal)
    model.set_adapter("other")
    assert_by_hand(model, animal, "other", form="parallel", scaling=2.0)
    weights = get_peft_model_state_dict(model, adapter_name="other")

    model.base_model.set_adapter(["default", "other"])
    alone = get_peft_model_state_dict(model, adapter_name="default")
    base = build(animal)
    with torch.no_grad(), _both_by_hand(base, animal, alone, weights):
        torch.testing.assert_close(outputs(model, animal), outputs(base, animal), rtol=1e-3, atol=1e-4)

    model.delete_adapter("other")
    assert hook_count(model) == 0
    assert {one.input_name for one in layers(model).values()} == {None}
    assert_by_hand(model, animal)
    with pytest.raises(ValueError, match="other not found"):
        model.set_adapter("other")


@contextmanager
def _both_by_hand(
    base: nn.Module, animal: Animal, sequential: Mapping[str, Tensor], parallel: Mapping[str, Tensor]
) -> Iterator[None]:
    """The sequential adapter of size SIZE and the parallel one, which both read what the base computes."""
    with ExitStack() as stack:
        kept: dict[str, Tensor] = {}

        def keep(name: str) -> Any:
            return lambda _, __, y: kept.__setitem__(name, y)

        for name in out_names(animal):
            hook = base.get_submodule(name).register_forward_hook(keep(name))
            stack.callback(hook.remove)
        stack.enter_context(by_hand(base, animal, parallel, form="parallel", scaling=2.0))

        def add_sequential(name: str) -> Any:
            return lambda _, __, y: y + expected_addition(kept[name], sequential, name, {})

        for name in out_names(animal):
            hook = base.get_submodule(name).register_forward_hook(add_sequential(name))
            stack.callback(hook.remove)
        yield


@in_both_forms
@pytest.mark.parametrize("upcast", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_base(form: str, upcast: bool, dtype: torch.dtype) -> None:
    base = build(BY_NAME["bert"]).to(dtype)
    config = BottleneckConfig(size=SIZE, form=form, init_weights=False)
    model = get_peft_model(base, config, autocast_adapter_dtype=upcast).eval()
    kinds = {p.dtype for name, p in model.named_parameters() if "bottleneck_" in name}
    assert kinds == {torch.float32 if upcast else dtype}
    assert outputs(model, BY_NAME["bert"]).dtype == dtype

    layer = next(iter(layers(model).values()))
    x = torch.randn(2, WIDTH, dtype=dtype)
    layer._seen = x
    with torch.no_grad():
        y = layer.base_layer(x)
        h = (y if form == "sequential" else x).to(next(iter(kinds)))
        parts = (layer.bottleneck_down["default"], nn.ReLU(), layer.bottleneck_up["default"])
        assert torch.equal(layer(x), (y + nn.Sequential(*parts)(h)).to(dtype))


PLACES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "houlsby": ({}, {"attention.output.dense", "output.dense"}),
    "pfeiffer": ({"sites": ["ffn"]}, {"output.dense"}),
    "attention": ({"sites": ["attention"]}, {"attention.output.dense"}),
    "names": ({"target_modules": ["query", "value"]}, {"attention.self.query", "attention.self.value"}),
    "regex": ({"target_modules": r".*\.intermediate\.dense"}, {"intermediate.dense"}),
    "exclude": ({"exclude_modules": ["attention.output.dense"]}, {"output.dense"}),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("numbers", [[0, 1], [1], 0], ids=str)
def test_where_adapters_go(place: str, numbers: list[int] | int) -> None:
    options, expected = PLACES[place]
    if place == "regex":
        numbers = [0, 1]
    chosen = {"layers_to_transform": numbers} if numbers != [0, 1] else {}
    model = adapted(BY_NAME["bert"], **options, **chosen)
    rows = [numbers] if isinstance(numbers, int) else numbers
    assert set(layers(model)) == {f"bert.encoder.layer.{i}.{name}" for i in rows for name in expected}


def test_sizes_by_factor_and_pattern(tmp_path: Path) -> None:
    animal = BY_NAME["bert"]
    # The first match wins, though in the file, which is sorted, the second comes first.
    pattern = {r"layer\.0\..*dense": 7, r".*attention\.output\.dense": 2}
    model = adapted(animal, reduction_factor=3, size_pattern=pattern)
    sizes = {name: layer.bottleneck_size["default"] for name, layer in layers(model).items()}
    assert sizes == {
        "bert.encoder.layer.0.attention.output.dense": 7,
        "bert.encoder.layer.0.output.dense": 7,
        "bert.encoder.layer.1.attention.output.dense": 2,
        "bert.encoder.layer.1.output.dense": 11,
    }
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(build(animal), tmp_path).eval()
    assert {name: one.bottleneck_size["default"] for name, one in layers(loaded).items()} == sizes
    assert torch.equal(outputs(loaded, animal), outputs(model, animal))
    assert_by_hand(model, animal)


@pytest.mark.parametrize(
    ("options", "size"),
    [({}, 64), ({"size": 3}, 3), ({"reduction_factor": 16}, 2), ({"reduction_factor": 1000.0}, 1)],
    ids=str,
)
def test_default_sizes(options: dict[str, Any], size: int) -> None:
    assert BottleneckConfig(**options).size_at("any.module", WIDTH) == size


def test_a_size_pattern_that_matches_nothing_is_said() -> None:
    model, config = adapted(BY_NAME["bert"]), BottleneckConfig(size_pattern={"nowhere": 3})
    with pytest.warns(RuntimeWarning, match=r"size_pattern matched no adapted module.*nowhere"):
        model.add_adapter("other", config)


def test_names_decide_on_load_even_where_there_are_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """peft shortens twenty names and more to their ends, which another base can have elsewhere too."""
    animal = Animal("bert", "text", BERT | {"num_hidden_layers": 12}, ())
    config = BottleneckConfig(form="parallel", size=2)
    model = get_peft_model(build(animal), config)
    names = {f"bert.encoder.layer.{i}.{part}output.dense" for i in range(12) for part in ("attention.", "")}
    assert model.peft_config["default"].target_modules == set(layers(model)) == names
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert set(saved["target_modules"]) == names
    assert set(saved["input_modules"]) == names
    assert saved["peft_type"] == "BOTTLENECK"
    monkeypatch.setattr(targets, "find_anatomy", None)  # of a base that was cut it would say other things
    loaded = PeftModel.from_pretrained(build(animal), tmp_path)
    assert loaded.peft_config["default"].target_modules == names
    assert {one.input_name for one in layers(loaded).values()} == set(saved["input_modules"].values())


def test_all_linears_with_a_second_adapter() -> None:
    animal = BY_NAME["bert"]
    options = {"target_modules": "all-linear", "task_type": "SEQ_CLS"}
    model = adapted(animal, **options)
    add(model, "other", **options)
    assert set(layers(model)) == {*animal.linears(build(animal)), "bert.pooler.dense"}
    assert all(set(one.bottleneck_up) == {"default", "other"} for one in layers(model).values())


def test_a_model_that_is_not_of_transformers() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(6, 9), nn.Linear(9, 4)

        def forward(self, x: Tensor) -> Tensor:
            down: Tensor = self.down(self.up(x).tanh())
            return down

    block, x = Block(), torch.randn(3, 6)
    expected = block(x)
    given = {"target_modules": ["down"], "init_weights": False, "size": 2}
    config = BottleneckConfig(form="parallel", input_modules={"down": "up"}, **given)
    model = get_peft_model(nn.Sequential(block), config)
    layer = layers(model)["0.down"]
    assert model.peft_config["default"].input_modules == {"down": "up", "0.down": "0.up"}
    assert (layer.input_features, layer.in_features, layer.out_features) == (6, 9, 4)
    added = layer.bottleneck_up["default"](layer.bottleneck_down["default"](x).relu())
    torch.testing.assert_close(model(x), expected + added)


def test_an_adapter_can_read_the_input_of_its_own_linear() -> None:
    animal = BY_NAME["bert"]
    model = adapted(
        animal, form="parallel", target_modules=["query"], input_modules={"self.query": "self.query"}
    )
    layer = next(iter(layers(model).values()))
    x = torch.randn(2, WIDTH)
    added = layer.bottleneck_up["default"](layer.bottleneck_down["default"](x).relu())
    torch.testing.assert_close(layer(x), layer.base_layer(x) + added)


def test_dropout_is_on_the_neurons_and_only_in_training() -> None:
    animal = BY_NAME["bert"]
    model = adapted(animal, dropout=0.5)
    assert torch.equal(outputs(model, animal), outputs(model, animal))
    assert_by_hand(model, animal)
    seen = []
    layer = next(iter(layers(model).values()))
    layer.bottleneck_up["default"].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    layer.train()(torch.ones(1000, WIDTH))
    layer.eval()(torch.ones(1000, WIDTH))
    alive = seen[1] > 0
    assert 0.4 < (seen[0][alive] == 0).float().mean() < 0.6


@in_both_forms
def test_each_part_is_called_once_per_forward(form: str) -> None:
    animal = BY_NAME["bert"]
    model = adapted(animal, form=form)
    calls: list[tuple[str, torch.Size]] = []
    for name, layer in layers(model).items():
        for part in ("norm", "down", "up"):
            module = getattr(layer, f"bottleneck_{part}")["default"]
            module.register_forward_pre_hook(
                lambda _, inputs, where=f"{name}/{part}": calls.append((where, inputs[0].shape))
            )
    outputs(model, animal)
    widths = {"norm": WIDTH, "down": WIDTH, "up": SIZE}
    expected = [(f"{name}/{part}", widths[part]) for name in layers(model) for part in widths]
    assert sorted((where, shape[-1]) for where, shape in calls) == sorted(expected)


def test_a_classification_head_is_trained_and_saved(tmp_path: Path) -> None:
    animal = BY_NAME["roberta"]
    model = adapted(animal, task_type="SEQ_CLS")
    heads = [name for name, p in model.named_parameters() if p.requires_grad and "modules_to_save" in name]
    assert len(heads) == 4
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(build(animal), tmp_path).eval()
    assert torch.equal(outputs(loaded, animal), outputs(model, animal))


HEADS_NAMED_LATE = {
    "TOKEN_CLS": (BertForTokenClassification, "classifier"),
    "QUESTION_ANS": (BertForQuestionAnswering, "qa_outputs"),
}


@pytest.mark.parametrize("given", [None, []], ids=str)
@pytest.mark.parametrize("task", HEADS_NAMED_LATE)
def test_a_head_that_peft_names_late_is_trained_and_saved(
    task: str, given: list[str] | None, tmp_path: Path
) -> None:
    kind, head = HEADS_NAMED_LATE[task]
    base, ids = kind(BertConfig(**BERT)), torch.tensor([[1, 2, 3]])
    saved = copy.deepcopy(base)
    model = get_peft_model(base, BottleneckConfig(task_type=task, modules_to_save=given)).eval()
    heads = [name for name, p in model.named_parameters() if p.requires_grad and "modules_to_save" in name]
    assert {name.split(".modules_to_save")[0].rpartition(".")[2] for name in heads} == {head}
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(saved, tmp_path).eval()
    assert all(map(torch.equal, loaded(ids).to_tuple(), model(ids).to_tuple()))


@in_both_forms
def test_injection_without_a_peft_model(form: str) -> None:
    animal = BY_NAME["llama"]
    model = adapted(animal, form=form)
    plain = inject_adapter_in_model(BottleneckConfig(form=form, size=SIZE), build(animal))
    result = set_peft_model_state_dict(plain, get_peft_model_state_dict(model))
    assert not result.unexpected_keys
    assert torch.equal(outputs(plain, animal), outputs(model, animal))


def test_loading_more_adapters(tmp_path: Path) -> None:
    animal = BY_NAME["t5"]
    for form in FORMS:
        adapted(animal, form=form, sites=["ffn"]).save_pretrained(tmp_path / form)
    model = PeftModel.from_pretrained(build(animal), tmp_path / "sequential").eval()
    for name, low_memory in (("second", False), ("third", True)):
        model.load_adapter(tmp_path / "parallel", name, low_cpu_mem_usage=low_memory)
    for adapter, options in (
        ("default", {}),
        ("second", {"form": "parallel"}),
        ("third", {"form": "parallel"}),
    ):
        model.set_adapter(adapter)
        assert_by_hand(model, animal, adapter, **options)
    model.delete_adapter("second")
    assert hook_count(model) == len(layers(model))
    with pytest.warns(UserWarning, match="third was active"):
        model.delete_adapter("third")
    assert hook_count(model) == 0


BAD_OPTIONS: tuple[tuple[dict[str, Any], str], ...] = (
    ({"form": "serial"}, "form is 'serial'; choose one of sequential, parallel"),
    ({"sites": "ffn"}, "sites is 'ffn'; give a list"),
    ({"sites": []}, "give a list of one or both"),
    ({"sites": ["mlp"]}, "one or both of attention, ffn"),
    ({"size": 8, "reduction_factor": 4}, "both given"),
    ({"size": 0}, "size is 0; give a whole number"),
    ({"size": True}, "size is True"),
    ({"reduction_factor": 0}, "reduction_factor is 0"),
    ({"size_pattern": {"dense": 1.5}}, r"size_pattern\['dense'\] is 1.5"),
    ({"size_pattern": {"(": 2}}, "no regular expression"),
    ({"activation": "rellu"}, "activation is 'rellu'. Did you mean 'relu'"),
    ({"activation": "xielu"}, "'xielu' has parameters of its own"),
    ({"dropout": 1.0}, "dropout is 1.0"),
    ({"scaling": 0.0}, "scaling is 0.0"),
    ({"scaling": float("nan")}, "scaling is nan"),
    ({"input_modules": {"a": "b"}}, "input_modules has no effect on form='sequential'"),
    ({"form": "parallel", "input_modules": {"a": ""}}, "ends of two module names"),
    ({"target_modules": ["dense", ""]}, "give module names"),
    ({"target_modules": "x", "layers_to_transform": [0]}, "layers_to_transform has no effect"),
    ({"layers_pattern": "layer"}, "without layers_to_transform"),
)


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS, ids=lambda value: str(value)[:40])
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BottleneckConfig(**options)


PARALLEL = {"form": "parallel"}
BAD_PLACES: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("bert", {"target_modules": ["LayerNorm"]}, "a LayerNorm; bottleneck adapters sit on nn.Linear"),
    ("bert", {"layers_to_transform": [9]}, r"no output projection for .* in the layers \[9\]"),
    ("mixtral", {"sites": ["ffn"]}, r"no output projection for sites=\('ffn',\)"),
    ("bert", PARALLEL | {"target_modules": ["pooler.dense"]}, "name it in input_modules"),
    ("bert", PARALLEL | {"input_modules": {"output.dense": "gone"}}, "attention.gone, which does not exist"),
    ("bert", PARALLEL | {"input_modules": {"dense": "LayerNorm"}}, "a LayerNorm; name an nn.Linear"),
)


@pytest.mark.parametrize(("name", "options", "message"), BAD_PLACES, ids=lambda value: str(value)[:40])
def test_places_that_cannot_be(name: str, options: dict[str, Any], message: str) -> None:
    animal = BY_NAME[name]
    model = adapted(animal)
    before = outputs(model, animal), hook_count(model), set(model.state_dict())
    with pytest.raises(ConfigError, match=message):
        model.add_adapter("other", BottleneckConfig(**options))
    assert torch.equal(outputs(model, animal), before[0])
    assert (hook_count(model), set(model.state_dict())) == before[1:]


def test_an_unknown_model_needs_names() -> None:
    with pytest.raises(ConfigError, match="Give target_modules"):
        get_peft_model(nn.Sequential(nn.Linear(2, 2)), BottleneckConfig())


def test_one_layer_reads_one_input() -> None:
    model = adapted(BY_NAME["bert"], form="parallel", sites=["ffn"])
    second = {"layer.1.output.dense": "layer.1.attention.self.key"}
    with pytest.raises(ConfigError, match=r"layer\.1\.output\.dense read the input of .* cannot also read"):
        add(model, "other", form="parallel", sites=["ffn"], input_modules=second)
    assert all(set(one.bottleneck_up) == {"default"} for one in layers(model).values())


def test_adapters_of_one_batch_cannot_differ() -> None:
    """peft's `adapter_names` would be ignored without a word."""
    animal = BY_NAME["llama"]
    model, batch = adapted(animal), animal.batch(padded=True)
    for call in (model, model.generate):
        with pytest.raises(ConfigError, match="adapter_names"):
            call(**batch, adapter_names=["default", "__base__", "default"])


def test_an_input_that_was_not_seen_is_named() -> None:
    model = adapted(BY_NAME["bert"], form="parallel", sites=["ffn"])
    layer = layers(model)["bert.encoder.layer.1.output.dense"]
    with pytest.raises(RuntimeError, match=r"layer\.1\.output\.dense.*layer\.1\.intermediate\.dense"):
        layer(torch.zeros(1, NEURONS))


def test_an_interrupted_forward_does_not_stand_in_the_way() -> None:
    animal = BY_NAME["bert"]
    model = adapted(animal, form="parallel").train()

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    handle = next(iter(layers(model).values())).base_layer.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        model(**animal.batch(padded=True))
    handle.remove()
    twin = outputs(copy.deepcopy(model).eval(), animal)
    with pytest.warns(RuntimeWarning, match="or a forward was interrupted"):
        assert torch.equal(outputs(model.eval(), animal), twin)


def test_an_input_that_is_called_on_something_else_too_is_said() -> None:
    """DeBERTa with share_att_key calls its query linear on the relative positions too."""
    animal = BY_NAME["deberta-v3"]
    inputs = {"attention.output.dense": "attention.self.query_proj"}
    model = adapted(animal, form="parallel", sites=["attention"], input_modules=inputs)
    with (
        pytest.warns(RuntimeWarning, match=r"query_proj was called again.*name another module"),
        pytest.raises(RuntimeError, match=r"is \(1, 16, 32\), for an output of \(3, 10, 32\)"),
    ):
        outputs(model, animal)


@in_both_forms
def test_merging_is_refused_before_anything_changes(form: str) -> None:
    animal = BY_NAME["bert"]
    model = adapted(animal, form=form)
    before = outputs(model, animal)
    for merge in (model.merge_adapter, model.merge_and_unload, next(iter(layers(model).values())).merge):
        with pytest.raises(ConfigError, match=r"cannot be merged.*unload\(\)"):
            merge()
        assert torch.equal(outputs(model, animal), before)
    assert not model.base_model.supports_lora_conversion()


def test_peft_knows_the_method(tmp_path: Path) -> None:
    register_again()
    assert list(PeftType).count(PeftType("BOTTLENECK")) == 1
    assert PeftType.BOTTLENECK is pickle.loads(pickle.dumps(PeftType("BOTTLENECK")))  # noqa: S301
    config = BottleneckConfig(sites=["ffn"], size_pattern={"a": 2}, target_modules=["a"])
    config.save_pretrained(tmp_path)
    assert PeftConfig.from_pretrained(tmp_path) == config
    assert isinstance(adapted(BY_NAME["bert"]).base_model, BottleneckModel)
