"""Light models as graphs (ONNX, torch.export): any plan, any shape, read by runtimes without lightpeft."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tests.support.plans import UNEVEN
from tests.support.probing import agree, random_scores
from tests.support.zoo import BY_NAME, Animal
from torch import Tensor, nn

import lightpeft
from lightpeft import Budget, CheckpointError, ConfigError, find_anatomy, make_plan
from lightpeft.checkpoint import Graph, program_file

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the exporters' own packages

Batch = dict[str, Tensor]
FORMATS: dict[str, Callable[..., Graph]] = {"onnx": lightpeft.export_onnx, "torch": lightpeft.export_torch}
FILES = {"onnx": "model.onnx", "torch": "model.pt2"}
BERT, CLASSIFIER = BY_NAME["bert"], replace(BY_NAME["llama"], task="text")
LAYERS_TOO = replace(UNEVEN, layers=0.5)


@dataclass(frozen=True)
class Row:
    """A light model, and the formats that it is written in."""

    animal: Animal
    form: str = "lora"
    budget: Budget = UNEVEN
    formats: tuple[str, ...] = ("onnx",)

    def cut(self) -> PeftModel:
        """It."""
        animal = self.animal
        if self.form == "prompt":
            config = PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4)
            model = get_peft_model(animal.build(animal.attentions[-1]), config)
        else:
            model = animal.with_peft(self.form, animal.attentions[-1])
        plan = make_plan(random_scores(model), find_anatomy(model), self.budget)
        lightpeft.cut(model, plan, batch=animal.batch(padded=True))
        return model


NO_MODULES = Budget(heads=0.4, neurons=0.4, modules=0.0, ranks=0.0, neurons_scope="global")
ROWS = {
    # One layer is skipped, and the last one runs for the first token alone.
    "encoder": Row(BERT, budget=LAYERS_TOO, formats=("onnx", "torch")),
    "adapters that stay": Row(BERT, "parallel"),
    "prompt": Row(BERT, "prompt", NO_MODULES, formats=("torch",)),
    "causal": Row(BY_NAME["llama"], budget=LAYERS_TOO),
    "decoder with a head": Row(CLASSIFIER, formats=("torch",)),
    "image": Row(BY_NAME["vit"], formats=("torch",)),
}
CASES = [(name, to) for name, row in ROWS.items() for to in row.formats]


@dataclass(frozen=True)
class Exported:
    """What was written, and the light model in memory."""

    folder: Path
    graph: Graph
    model: PeftModel
    animal: Animal


class Shelf(dict[tuple[str, str], Exported]):
    """Exports by name and format, each made when it is first asked for."""

    def __init__(self, place: Path) -> None:
        super().__init__()
        self.place = place

    def __missing__(self, key: tuple[str, str]) -> Exported:
        name, to = key
        row, folder = ROWS[name], self.place / f"{name} {to}"
        model = row.cut()
        light = lightpeft.save(model, folder / "light")
        graph = FORMATS[to](light, folder / to, row.animal.build(row.animal.attentions[-1]))
        self[key] = Exported(folder / to, graph, model.eval(), row.animal)
        return self[key]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("graphs"))


def shapes(animal: Animal) -> dict[str, Batch]:
    """Batches of other shapes than the ones that an export compares on."""
    batch = animal.batch(padded=True)
    found = {"padded": batch, "one": {name: value[-1:] for name, value in batch.items()}}
    if "input_ids" in batch:
        found["short"] = {name: value[:2, :2] for name, value in batch.items()}
        found["wide"] = {name: torch.cat([value, value[:, :7] * 0], 1) for name, value in batch.items()}
        found["left"] = {name: value.flip(1) for name, value in batch.items()}
    return found


def logits(model: nn.Module, batch: Batch) -> Tensor:
    """At tokens that are not padding."""
    with torch.no_grad():
        found = model(**batch).logits
    mask = batch.get("attention_mask")
    by_token = mask is not None and found.shape[:2] == mask.shape
    return found[mask.bool()] if by_token else found


@pytest.mark.parametrize(("name", "to"), CASES)
def test_a_graph_computes_what_the_light_model_does(name: str, to: str, exported: Shelf) -> None:
    one = exported[name, to]
    for batch in shapes(one.animal).values():
        agree(logits(one.graph, batch), logits(one.model, batch))


WITHOUT_LIGHTPEFT = """
import sys
sys.modules["lightpeft"] = sys.modules["transformers"] = sys.modules["peft"] = None
import onnxruntime, torch
from safetensors.torch import load_file, save_file
for folder in sys.argv[1:]:
    batch = load_file(f"{folder}/../batch.safetensors")
    if folder.endswith("onnx"):
        session = onnxruntime.InferenceSession(f"{folder}/model.onnx")
        names = {one.name for one in session.get_inputs()}
        given = {name: value.numpy() for name, value in batch.items() if name in names}
        given |= {name: given["input_ids"] * 0 for name in names - set(given)}
        logits = torch.from_numpy(session.run(["logits"], given)[0])
    else:
        program = torch.export.load(f"{folder}/model.pt2")
        given = dict(batch)
        if "token_type_ids" in [spec.arg.name for spec in program.graph_signature.input_specs]:
            given["token_type_ids"] = batch["input_ids"] * 0
        logits = program.module()(**given)["logits"]
    save_file({"logits": logits.detach().contiguous()}, f"{folder}/../found.{folder.rpartition('/')[2]}")
"""


def test_a_process_without_lightpeft_and_transformers_computes_the_same(
    exported: Shelf,
) -> None:
    for one in (rows := [exported[case] for case in CASES]):
        save_file(one.animal.batch(padded=True), one.folder.parent / "batch.safetensors")
    folders = [str(one.folder) for one in rows]
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT_LIGHTPEFT, *folders]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    for one in rows:
        batch = one.animal.batch(padded=True)
        found = load_file(one.folder.parent / f"found.{one.folder.name}")["logits"]
        expected, mask = logits(one.model, batch), batch.get("attention_mask")
        agree(found if found.dim() == expected.dim() else found[mask.bool()], expected)


@pytest.mark.parametrize(("name", "to"), CASES)
def test_what_to_call_it_with_is_beside_it(name: str, to: str, exported: Shelf) -> None:
    one = exported[name, to]
    said = json.loads((one.folder / "signature.json").read_text())
    text = "input_ids" in one.animal.batch(padded=True)
    axes = ["batch", "length"] if text else ["batch"]
    assert set(map(tuple, said["inputs"].values())) == {tuple(axes)}
    assert said["outputs"] == ["logits"]
    assert said["file"] == FILES[to]
    assert said["largest_difference"] <= 1e-4
    assert ("id2label" in said) == (one.animal.task != "causal")
    if to == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(one.folder / "model.onnx")
        assert {found.name: found.shape[: len(axes)] for found in session.get_inputs()} == said["inputs"]


def test_eight_bits_are_small_and_nearly_the_same(exported: Shelf, tmp_path: Path) -> None:
    import onnx

    whole = exported["encoder", "onnx"]
    light, batch = whole.folder.parent / "light", BERT.batch(padded=True)
    graph = lightpeft.export_onnx(light, tmp_path / "out", BERT.build("sdpa"), int8=True)
    said = json.loads((tmp_path / "out" / "signature.json").read_text())
    difference = (logits(graph, batch) - logits(whole.model, batch)).abs().max()
    assert said["weights"] == "int8"
    assert 1e-6 < difference < 0.1
    weights = onnx.load(tmp_path / "out" / "model.onnx").graph.initializer
    floats = [one.name for one in weights if one.data_type == onnx.TensorProto.FLOAT and len(one.dims) > 1]
    assert floats == []
    assert {one.name for one in (tmp_path / "out").iterdir()} == {one.name for one in whole.folder.iterdir()}


def light_of(name: str, folder: Path) -> tuple[Path, Animal]:
    row = Row(BY_NAME[name])
    return lightpeft.save(row.cut(), folder / "light"), row.animal


REFUSED = {
    "t5": ("onnx", "T5ForConditionalGeneration with an encoder and a decoder"),
    "clip": ("torch", "CLIPModel with two towers"),
    "wav2vec2": ("onnx", "whose main input is input_values"),
    "mixtral": ("torch", r"calls transformers\.grouped_mm_fallback\.default, which only transformers knows"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_a_graph_is_named_and_nothing_is_left(name: str, tmp_path: Path) -> None:
    to, message = REFUSED[name]
    light, animal = light_of(name, tmp_path)
    with pytest.raises(CheckpointError, match=rf"{message}.* \(--to merged\)"):
        FORMATS[to](light, tmp_path / "out", animal.build(animal.attentions[-1]))
    assert [entry.name for entry in tmp_path.iterdir()] == ["light"]


def test_what_computes_something_else_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    light, animal = light_of("bert", tmp_path)
    read = torch.export.load

    def other(file: Path) -> torch.export.ExportedProgram:
        program = read(file)
        with torch.no_grad():
            program.state_dict["model.classifier.bias"].add_(0.01)
        return program

    monkeypatch.setattr(program_file.torch.export, "load", other)
    with pytest.raises(CheckpointError, match="traced program computes other logits than the light model"):
        lightpeft.export_torch(light, tmp_path / "out", animal.build())
    assert [entry.name for entry in tmp_path.iterdir()] == ["light"]


def test_a_package_that_is_missing_is_said_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r'needs onnxruntime.*pip install "lightpeft\[onnx\]"'):
        lightpeft.export_onnx(tmp_path / "nothing", tmp_path / "out")
