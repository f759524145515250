"""`lightpeft export`: other forms of a light checkpoint."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lightpeft.cli.options import run_with_options
from lightpeft.cli.output import print_json
from lightpeft.errors import ConfigError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from lightpeft.checkpoint import Graph
    from lightpeft.tasks import TaskRecord


ExportForm = Literal["merged", "full-adapter", "transformers", "onnx", "torch", "gguf"]


def run(arguments: Sequence[str]) -> None:
    """Entry point of the verb."""
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--checkpoint", *arguments]
    run_with_options(export, "export", arguments)


def export(
    checkpoint: str,
    to: ExportForm,
    out: Path | None = None,
    base: str | None = None,
    int8: bool = False,
    evaluate: bool = False,
    data: Path | None = None,
    batch_size: int | None = None,
    json: bool = False,
) -> None:
    """Write a light checkpoint in another form, and say what accuracy to expect of it.

    Args:
        checkpoint: Light checkpoint or a run's folder; local, or a hub name.
        to: `merged` for the weights of the small model with its plan; `full-adapter` for a stock PEFT adapter
            of the uncut base, zero where heads and neurons were cut; `transformers` for an ordinary
            checkpoint of its architecture, if it was cut with budget.uniform; `onnx` for a graph that
            onnxruntime runs; `torch` for a program that torch.export.load reads; `gguf` for llama.cpp.
        out: Folder to write to; by default beside the checkpoint: light-merged, light-full-adapter, ...
        base: Hub name or folder of the base; by default the one that the checkpoint names.
        int8: With onnx, store weights as 8-bit integers; smaller and faster, and not quite the same.
        evaluate: Measure what was written on the validation split of the checkpoint's task.
        data: With evaluate, folder with the task's files; by default where it was trained from.
        batch_size: With evaluate, examples per forward pass; by default 128, of a language model 8.
        json: Print JSON.
    """
    from lightpeft.cli.checkpoints import light_folder, recorded
    from lightpeft.files import folder_bytes
    from lightpeft.runs import resolve_model

    if not evaluate and (data is not None or batch_size is not None):
        raise ConfigError("data and batch_size have no effect without --evaluate.")
    if int8 and to != "onnx":
        raise ConfigError(f"int8 has no effect with --to {to}; it is for --to onnx.")
    if evaluate and to == "gguf":
        raise ConfigError(
            "lightpeft does not run GGUF files; evaluate --to merged, which has the same weights."
        )
    directory = light_folder(checkpoint)
    described, task = recorded(directory)
    name = base or (described.get("base") or {}).get("name_or_path")
    resolved = None if name is None else resolve_model(name)
    target = out or _beside(checkpoint, directory, to)
    model = _write(to, directory, target, resolved, int8=int8)
    measured = None
    if evaluate and model is not None:
        measured = _measure(model, directory, task, data, batch_size)
    result = {
        "to": to,
        "out": str(target),
        "bytes": folder_bytes(target),
        "light_metrics": described.get("metrics") or {},
        "metrics": measured,
        "expect": EXPECTED["int8" if int8 else to],
    }
    if json:
        print_json(result)
    else:
        print("\n".join(_lines(result, model)))


_SAME = "it computes what the light checkpoint computes, as was checked, so expect the same accuracy"
EXPECTED: dict[ExportForm | Literal["int8"], str] = {
    "merged": "it computes what the light checkpoint computes, so expect the same accuracy",
    "transformers": f"AutoModel loads it without lightpeft, and {_SAME}",
    "onnx": f"onnxruntime runs model.onnx, and {_SAME}",
    "gguf": "llama.cpp runs model.gguf, and it has the weights of the light checkpoint, merged",
    "torch": f"torch.export.load reads model.pt2, and {_SAME}",
    "int8": (
        "onnxruntime runs model.onnx; weights and what they are multiplied by are rounded to 8 bits, and "
        "signature.json says how far that moves the outputs"
    ),
    "full-adapter": (
        "heads and neurons that were cut act again in the whole base, and the adapter was trained without "
        "them: expect another accuracy than the light checkpoint's"
    ),
}


def _beside(checkpoint: str, directory: Path, to: ExportForm) -> Path:
    if not Path(checkpoint).is_dir():
        raise ConfigError(f"{checkpoint} is on the hub; give --out, a folder to write to.")
    return directory.parent / f"{directory.name}-{to}"


def _write(
    to: ExportForm, directory: Path, out: Path, base: str | None, *, int8: bool
) -> "PeftModel | PreTrainedModel | Graph | None":
    """Export; the model of what was written, the merged one read back from disk, if lightpeft runs it."""
    from lightpeft.checkpoint import (
        export_full_adapter,
        export_gguf,
        export_merged,
        export_onnx,
        export_torch,
        export_transformers,
        load_merged,
    )

    if to == "onnx":
        return export_onnx(directory, out, base, int8=int8)
    if to == "torch":
        return export_torch(directory, out, base)
    if to == "gguf":
        export_gguf(directory, out, base)
        return None
    if to == "transformers":
        return export_transformers(directory, out, base)
    if to == "full-adapter":
        return export_full_adapter(directory, out, base)
    export_merged(directory, out, base)
    return load_merged(out)


def _measure(
    model: "PeftModel | PreTrainedModel | Graph",
    directory: Path,
    task: "TaskRecord",
    data: Path | None,
    batch_size: int | None,
) -> dict[str, float]:
    from lightpeft.cli.checkpoints import open_tokenizer
    from lightpeft.runs import evaluate_model

    return evaluate_model(model, open_tokenizer(directory), task.validation(data), task.training(batch_size))


def _lines(result: dict[str, Any], model: "PeftModel | PreTrainedModel | Graph | None") -> list[str]:
    from lightpeft.adapters import active_form

    light, measured = result["light_metrics"].get("main"), result["metrics"]
    lines = [f"{result['to']} in {result['out']}, {result['bytes'] / 2**20:.1f} MiB: {result['expect']}."]
    if light is not None:
        lines.append(f"light checkpoint, as recorded: main {light:.4f}")
    if measured is not None:
        lines += [f"{name}: {value:.4f}" for name, value in measured.items()]
    elif model is not None:
        lines.append("--evaluate measures it.")
    form = None if model is None else active_form(model)
    if form is not None and form.title == "bottleneck":
        lines.append("peft has no bottleneck adapters: `import lightpeft` before PeftModel.from_pretrained.")
    return lines
