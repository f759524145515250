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

    from lightpeft.tasks import TaskRecord


ExportForm = Literal["merged", "full-adapter", "transformers"]


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
            checkpoint of its architecture, if it was cut with budget.uniform.
        out: Folder to write to; by default beside the checkpoint: light-merged, light-full-adapter, ...
        base: Hub name or folder of the base; by default the one that the checkpoint names.
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
    directory = light_folder(checkpoint)
    described, task = recorded(directory)
    name = base or (described.get("base") or {}).get("name_or_path")
    resolved = None if name is None else resolve_model(name)
    target = out or _beside(checkpoint, directory, to)
    model = _write(to, directory, target, resolved)
    measured = _measure(model, directory, task, data, batch_size) if evaluate else None
    result = {
        "to": to,
        "out": str(target),
        "bytes": folder_bytes(target),
        "light_metrics": described.get("metrics") or {},
        "metrics": measured,
        "expect": EXPECTED[to],
    }
    if json:
        print_json(result)
    else:
        print("\n".join(_lines(result, model)))


EXPECTED: dict[ExportForm, str] = {
    "merged": "it computes what the light checkpoint computes, so expect the same accuracy",
    "transformers": (
        "AutoModel loads it without lightpeft, and it computes what the light checkpoint computes, as was "
        "checked, so expect the same accuracy"
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


def _write(to: ExportForm, directory: Path, out: Path, base: str | None) -> "PeftModel | PreTrainedModel":
    """Export; the model of what was written, the merged one read back from disk."""
    from lightpeft.checkpoint import export_full_adapter, export_merged, export_transformers, load_merged

    if to == "transformers":
        return export_transformers(directory, out, base)
    if to == "full-adapter":
        return export_full_adapter(directory, out, base)
    export_merged(directory, out, base)
    return load_merged(out)


def _measure(
    model: "PeftModel | PreTrainedModel",
    directory: Path,
    task: "TaskRecord",
    data: Path | None,
    batch_size: int | None,
) -> dict[str, float]:
    from lightpeft.cli.checkpoints import open_tokenizer
    from lightpeft.runs import evaluate_model

    return evaluate_model(model, open_tokenizer(directory), task.validation(data), task.training(batch_size))


def _lines(result: dict[str, Any], model: "PeftModel | PreTrainedModel") -> list[str]:
    from lightpeft.adapters import active_form

    light, measured = result["light_metrics"].get("main"), result["metrics"]
    lines = [f"{result['to']} in {result['out']}, {result['bytes'] / 2**20:.1f} MiB: {result['expect']}."]
    if light is not None:
        lines.append(f"light checkpoint, as recorded: main {light:.4f}")
    if measured is not None:
        lines += [f"{name}: {value:.4f}" for name, value in measured.items()]
    else:
        lines.append("--evaluate measures it.")
    form = active_form(model)
    if form is not None and form.title == "bottleneck":
        lines.append("peft has no bottleneck adapters: `import lightpeft` before PeftModel.from_pretrained.")
    return lines
