"""`lightpeft audit defend DIR ...`: what to do with a received module, or train it behind a defence."""

import dataclasses
import json as json_lines
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lightpeft.cli.options import existing_file, run_with_options, with_first_as
from lightpeft.cli.output import print_json
from lightpeft.errors import ConfigError
from lightpeft.outputs import Output, check_file, check_folder, locked, written_file
from lightpeft.run_config import TrainingConfig

if TYPE_CHECKING:
    from datasets import Dataset

    from lightpeft.audit.advice import Advice, Record
    from lightpeft.audit.defences.evidence import Seen
    from lightpeft.audit.defend import Defended
    from lightpeft.audit.metrics import Proportion
    from lightpeft.audit.probes import Flips


MODULE, RESULT, PREDICTIONS = "module", "result.json", "predictions.jsonl"
PROBE = "--probe"
PROBES_MEAN = (
    "A word that means a class takes texts to it without any backdoor; what is left behind `discard`, which "
    "keeps nothing of the module, is no backdoor."
)


def run(arguments: Sequence[str]) -> None:
    """Entry point of the verb: the folder may be given first, without a name; probes are words after it."""
    run_with_options(defend, "audit defend", _gathered(with_first_as("--folder", arguments)))


def _gathered(words: Sequence[str]) -> list[str]:
    """All words between `--probe` and the next option as one list: probes are phrases and may have commas."""
    if PROBE not in words:
        return list(words)
    start = words.index(PROBE) + 1
    stop = next((at for at in range(start, len(words)) if words[at].startswith("--")), len(words))
    return [*words[: start - 1], f"{PROBE}={json_lines.dumps(words[start:stop])}", *words[stop:]]


def defend(
    folder: Path,
    method: str | None = None,
    task: str | None = None,
    out: Path | None = None,
    data: Path | None = None,
    text: str | None = None,
    label: str = "label",
    base: str | None = None,
    training: TrainingConfig = TrainingConfig(),
    options: dict[str, Any] = {},  # noqa: B006 - read only
    train_limit: int | None = None,
    held_out: int = 200,
    texts: Path | None = None,
    probe: list[str] | None = None,
    json: bool = False,
) -> None:
    """Say what to do with a received module, or with --method train it on your own data behind a defence.

    Without --method nothing is trained: what is advised, and what was measured of each defence.

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
        probe: Words or phrases that you suspect, as in --probe cf 'watched this 3D movie'; how many clean
            texts of other classes each takes over is counted before and after the defence.
        json: Print the result as JSON instead of a table.
    """
    from lightpeft.audit.defences import make_defence
    from lightpeft.audit.defences.light_cutting import LightCutting
    from lightpeft.audit.defend import defend as run_defence
    from lightpeft.audit.rows import AuditTask
    from lightpeft.cli.experiment import check_ready
    from lightpeft.cli.tasks import TaskOptions
    from lightpeft.files import save_json
    from lightpeft.tasks import TaskData, find_kind, text_lines

    def own_data(name: str) -> tuple[TaskData, AuditTask]:
        loaded = TaskOptions(name, data, (text,) if text else (), label).load()
        return loaded, AuditTask.of(loaded, train=train_limit, held_out=held_out, seed=training.seed)

    if method is None:
        given = {"out": out, "base": base, "options": options or None, "texts": texts, "probe": probe}
        _refuse_idle(given, "no --method, which gives advice and trains nothing")
        if task is None:
            _refuse_idle({"data": data, "text": text, "train-limit": train_limit}, "no --task")
        _show_advice(folder, None if task is None else len(own_data(task)[1].train), training, json)
        return
    if task is None or out is None:
        missing = " and ".join(f"--{name}" for name, value in (("task", task), ("out", out)) if value is None)
        raise ConfigError(f"--method trains the module on your data and writes it; give {missing} too.")
    check_ready(out)
    defence = make_defence(method, options)
    kept = Output.LIGHT if isinstance(defence, LightCutting) else Output.MODULE
    check_folder(out / MODULE, kept)
    check_file(out / RESULT, Output.RESULT)
    if texts is not None:
        check_file(out / PREDICTIONS, Output.PREDICTIONS)
    loaded, own = own_data(task)
    lines = None
    if texts is not None:
        existing_file(texts, "a text file, one example a line")
        kind = find_kind(loaded.spec.objective)
        lines = kind.examples(loaded.spec, text_lines(texts), str(texts))
    with locked(out):
        found = run_defence(folder, defence, own, training, base, _probes(probe))
        saved = found.save(out / MODULE, found.classifier.tokenizer)
        if lines is not None:
            _write_predictions(found, lines, own.class_names, out / PREDICTIONS)
        used: dict[str, Any] = dataclasses.asdict(defence) if dataclasses.is_dataclass(defence) else {}
        result = _result(found, method, used, own.class_names)
        save_json(out / RESULT, result, Output.RESULT)
    if json:
        print_json(result)
        return
    Console().print(_table(found, method))
    if found.probed:
        Console().print(_probe_table(found, method, own.class_names))
        print(PROBES_MEAN)
    print(f"module: {saved}")


def _refuse_idle(given: dict[str, Any], why: str) -> None:
    if idle := [f"--{name}" for name, value in given.items() if value is not None]:
        raise ConfigError(f"{', '.join(idle)} would have no effect with {why}; leave them out.")


def _probes(given: list[str] | None) -> list[str]:
    if given is not None and not given:
        raise ConfigError("--probe has no words; give those that you suspect, as in --probe cf 'a phrase'.")
    return given or []


def _show_advice(folder: Path, rows: int | None, training: TrainingConfig, json: bool) -> None:
    from lightpeft.audit.advice import advise
    from lightpeft.audit.training import check_user_training, user_steps

    check_user_training(training)
    advice = advise(folder)
    steps = None if rows is None else user_steps(rows, training)
    if json:
        print_json({**advice.to_dict(), "rows": rows, "steps": steps})
        return
    print(*_sentences(folder, advice), sep="\n")
    Console().print(_advice_table(advice))
    print(*_notes(advice), sep="\n")
    if rows is not None:
        print(f"One training of yours is {steps} steps on {rows:,} rows.")


def _sentences(folder: Path, advice: "Advice") -> list[str]:
    """What to do, and why."""
    first, keeping = advice.first, advice.keeping
    marked = " This one is marked as poisoned." if advice.is_marked else ""
    return [
        f"Do not use a module from a stranger as it came, nor train it on without a defence.{marked}",
        f"Best: {first.method}. {_what(first, advice.form)}",
        f"If it knows what your data cannot teach: {keeping.method}. {_what(keeping, advice.form)}",
        f"Then: lightpeft audit defend {folder} --method {first.method} --task ... --data ... --out ...",
    ]


def _what(record: "Record", form: str | None) -> str:
    from lightpeft.audit.advice import what
    from lightpeft.audit.grid.report.wording import points

    here, anywhere = record.worst(form), record.worst()
    low, high = map(points, record.costs)
    said = [what(record.method), *([] if here is None else [f"At worst, with {_left(here)}."])]
    if anywhere is not None and anywhere != here:
        said.append(f"With other forms of PEFT, at worst with {_left(anywhere)}.")
    return " ".join([*said, f"It cost {low} to {high} points of accuracy. Time: {record.time}."])


def _left(seen: "Seen") -> str:
    with_it, plain, floor = (f"{one.value:.0%}" for one in (seen.lfr, seen.undefended, seen.floor))
    return (
        f"{seen.form} and the attack {seen.attack}, {with_it} of texts with the trigger went where the "
        f"attacker wants ({plain} after plain training, {floor} in a module without a backdoor)"
    )


def _notes(advice: "Advice") -> list[str]:
    unlike = advice.form not in advice.forms
    elsewhere = ", ".join(one.method for one in advice.elsewhere)
    return [
        "A cell of a form of PEFT is its worst attack: per cent of texts with the trigger that go where the "
        "attacker wants, after plain training → behind the defence (in a module without a backdoor). All of "
        f"it is of small audits on one base ({len(advice.first.seen)} settings, one seed mostly): "
        "docs/audit.md.",
        *(["Your module is of another form of PEFT than all that was measured."] if unlike else []),
        *([f"Not measured on every form, and so not ranked: {elsewhere}."] if elsewhere else []),
        *(f"Left out: {name}, {why}." for name, why in advice.unproven.items()),
    ]


def _advice_table(advice: "Advice") -> Table:
    from lightpeft.audit.grid.report.wording import points

    table = Table("defence", *advice.forms, "accuracy cost", "time", title="What was left of backdoors")
    for record in (*advice.records, *advice.elsewhere):
        cost = "" if record.method == "none" else " to ".join(map(points, record.costs))
        table.add_row(record.method, *(_of_form(record, form) for form in advice.forms), cost, record.time)
    return table


def _of_form(record: "Record", form: str) -> str:
    worst = record.worst(form)
    if worst is None:
        return "–"
    shares = (worst.undefended, worst.lfr, worst.floor)
    return "{:.0f} → {:.0f} ({:.0f})".format(*(100 * share.value for share in shares))


def _write_predictions(found: "Defended", lines: "Dataset", names: tuple[str, ...], path: Path) -> None:
    labels = found.predict({name: list(lines[name][:]) for name in lines.column_names})
    rows = [{"label": None if label is None else names[label], "rejected": label is None} for label in labels]
    with written_file(path, Output.PREDICTIONS) as beside:
        beside.write_text(
            "".join(json_lines.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
        )


def _result(
    found: "Defended", method: str, options: dict[str, Any], names: tuple[str, ...]
) -> dict[str, Any]:
    from lightpeft.audit.defences import DEFENCES

    def share(value: "Proportion | None") -> list[int] | None:
        return None if value is None else [value.hits, value.total]

    def flips(value: "Flips | None") -> dict[str, Any] | None:
        return None if value is None else {"class": names[value.target], "flips": share(value.share)}

    return {
        "method": method,
        "kind": DEFENCES[method].kind,
        "options": options,
        "cacc_received": share(found.received),
        "cacc_undefended": share(found.undefended),
        "cacc": share(found.cacc),
        "rejected_clean": share(found.rejected),
        "probes": [
            {
                "probe": one.probe,
                "received": flips(one.received),
                "undefended": flips(one.undefended),
                "defended": flips(one.defended),
            }
            for one in found.probed
        ],
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


def _probe_table(found: "Defended", method: str, names: tuple[str, ...]) -> Table:
    def text(flips: "Flips | None") -> Text:
        if flips is None:
            return Text("no text to flip")
        return Text(f"{flips.share.value:.0%} of {flips.share.total} to {names[flips.target]}")

    title = "Clean texts of other classes that a probe takes to one"
    table = Table("probe", "as received", "trained, no defence", f"trained, {method}", title=title)
    for one in found.probed:
        table.add_row(Text(repr(one.probe)), text(one.received), text(one.undefended), text(one.defended))
    return table
