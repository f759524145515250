"""`lightpeft audit defend DIR --method ... --data ...`: train a received module behind a defence."""

import dataclasses
import json as json_lines
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from lightpeft.cli.options import existing_file, run_with_options, with_first_as
from lightpeft.cli.output import print_json
from lightpeft.outputs import Output, check_file, check_folder, locked, written_file
from lightpeft.run_config import TrainingConfig

if TYPE_CHECKING:
    from datasets import Dataset

    from lightpeft.audit.defend import Defended
    from lightpeft.audit.metrics import Proportion


MODULE, RESULT, PREDICTIONS = "module", "result.json", "predictions.jsonl"


def run(arguments: Sequence[str]) -> None:
    """Entry point of the verb: the folder may be given first, without a name."""
    run_with_options(defend, "audit defend", with_first_as("--folder", arguments))


def defend(
    folder: Path,
    method: str,
    task: str,
    out: Path,
    data: Path | None = None,
    text: str | None = None,
    label: str = "label",
    base: str | None = None,
    training: TrainingConfig = TrainingConfig(),
    options: dict[str, Any] = {},  # noqa: B006 - read only
    train_limit: int | None = None,
    held_out: int = 200,
    texts: Path | None = None,
    json: bool = False,
) -> None:
    """Train a received module on your own data behind a defence, and show what that costs.

    Args:
        folder: The received module.
        method: The defence: discard, reset_layers, fine_pruning, onion, ...; see docs/audit.md.
        task: Your own clean data: a known task's name, or any name with --text.
        out: Folder for the trained module (module/) and result.json.
        data: Folder with the task's files.
        text: Text column of your own files.
        label: Label column of your own files.
        base: Hub name or folder of the base; by default the one that the module names.
        training: The training.
        options: Options of the defence.
        train_limit: Use a random subset of this many training examples.
        held_out: Training examples set aside for the defence's thresholds.
        texts: Classify this file's texts, one a line (two are separated by a tab), behind the defence, into
            OUT/predictions.jsonl.
        json: Print the result as JSON instead of a table.
    """
    from lightpeft.audit.defences import make_defence
    from lightpeft.audit.defences.light_cutting import LightCutting
    from lightpeft.audit.defend import defend as run_defence
    from lightpeft.audit.rows import AuditTask
    from lightpeft.cli.experiment import check_ready
    from lightpeft.cli.tasks import TaskOptions
    from lightpeft.files import save_json
    from lightpeft.tasks import find_kind, text_lines

    check_ready(out)
    defence = make_defence(method, options)
    kept = Output.LIGHT if isinstance(defence, LightCutting) else Output.MODULE
    check_folder(out / MODULE, kept)
    check_file(out / RESULT, Output.RESULT)
    if texts is not None:
        check_file(out / PREDICTIONS, Output.PREDICTIONS)
    loaded = TaskOptions(task, data, (text,) if text else (), label).load()
    lines = None
    if texts is not None:
        existing_file(texts, "a text file, one example a line")
        kind = find_kind(loaded.spec.objective)
        lines = kind.examples(loaded.spec, text_lines(texts), str(texts))
    audit_task = AuditTask.of(loaded, train=train_limit, held_out=held_out, seed=training.seed)
    with locked(out):
        found = run_defence(folder, defence, audit_task, training, base)
        saved = found.save(out / MODULE, found.classifier.tokenizer)
        if lines is not None:
            _write_predictions(found, lines, audit_task.class_names, out / PREDICTIONS)
        used: dict[str, Any] = dataclasses.asdict(defence) if dataclasses.is_dataclass(defence) else {}
        result = _result(found, method, used)
        save_json(out / RESULT, result, Output.RESULT)
    if json:
        print_json(result)
        return
    Console().print(_table(found, method))
    print(f"module: {saved}")


def _write_predictions(found: "Defended", lines: "Dataset", names: tuple[str, ...], path: Path) -> None:
    labels = found.predict({name: list(lines[name][:]) for name in lines.column_names})
    rows = [{"label": None if label is None else names[label], "rejected": label is None} for label in labels]
    with written_file(path, Output.PREDICTIONS) as beside:
        beside.write_text(
            "".join(json_lines.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
        )


def _result(found: "Defended", method: str, options: dict[str, Any]) -> dict[str, Any]:
    from lightpeft.audit.defences import DEFENCES

    def share(value: "Proportion | None") -> list[int] | None:
        return None if value is None else [value.hits, value.total]

    return {
        "method": method,
        "kind": DEFENCES[method].kind,
        "options": options,
        "cacc_received": share(found.received),
        "cacc_undefended": share(found.undefended),
        "cacc": share(found.cacc),
        "rejected_clean": share(found.rejected),
    }


def _table(found: "Defended", method: str) -> Table:
    from lightpeft.audit.metrics import difference

    table = Table("", "accuracy", "95 % interval", title=f"{method}: what it costs on clean texts")
    for title, value in (
        ("as received", found.received),
        ("trained, no defence", found.undefended),
        (f"trained, {method}", found.cacc),
    ):
        low, high = value.interval()
        table.add_row(title, f"{value.value:.1%}", f"{low:.1%} to {high:.1%}")
    cost = difference(found.undefended, found.cacc)
    table.add_row("cost", f"{cost.value:+.1%}", f"{cost.low:+.1%} to {cost.high:+.1%}")
    if found.rejected is not None:
        low, high = found.rejected.interval()
        table.add_row("rejected clean texts", f"{found.rejected.value:.1%}", f"{low:.1%} to {high:.1%}")
    return table
