"""`lightpeft bench run`: whole runs of plain and light PEFT, side by side in one process."""

import ctypes
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console

from lightpeft.cli.options import Names, Seeds, names_of, run_with_options, seeds_of
from lightpeft.cli.output import print_json
from lightpeft.config import check_at_least
from lightpeft.errors import ConfigError
from lightpeft.run_config import MINILM, LoraOptions, PeftOptions, TrainingConfig

_M_ARENA_MAX = -8
"""Of glibc's `malloc.h`."""

WIDTH = 100
"""Columns of the table; a narrower terminal breaks its lines."""


def run(arguments: Sequence[str]) -> None:
    """Entry point of the benchmark."""
    run_with_options(whole_runs, "bench run", arguments)


def whole_runs(
    out: Path,
    model: str = MINILM,
    task: str = "demo/sentiment",
    data: Path | None = None,
    text: Names | None = None,
    objective: str = "sequence-classification",
    label: str = "label",
    metric: str | None = None,
    min_words: int = 0,
    train_rows: int | None = None,
    methods: Names | None = None,
    seeds: Seeds | None = None,
    training: TrainingConfig = TrainingConfig(),
    lora: LoraOptions = LoraOptions(),
    chunk: int = 10,
    json: bool = False,
) -> None:
    """Train whole runs of several methods in turns, and compare seconds, metric and memory.

    Seeds that OUT has already are not run again; several processes may run different seeds into one OUT.

    Args:
        out: Folder for seed-N.json, and run.json and run.svg of all seeds in it.
        model: Hub name or folder of the base.
        task: Task whose data is used.
        data: Folder with the task's files; by default the hub or the built-in generator.
        text: Your own data: the text columns.
        objective: Kind of your own data: `sequence-classification` (classes, or numbers), `causal-lm` (texts,
            or prompts and completions), ...; a word that is none of them lists them all.
        label: Your own data: the label column.
        metric: Your own data: the metric to judge by.
        min_words: Use only training rows of at least so many words.
        train_rows: Use only so many training rows, drawn at random, the same for every seed.
        methods: Some of plain, query-value, upper-half, fewer-layers, paper, default, long-estimation,
            no-prefix and no-cache; by default all.
        seeds: Seeds to run; by default training.seed alone.
        training: The runs. Evaluations (training.eval_steps) are the points of the picture.
        lora: The LoRA of all methods, but for its targets, which each method chooses.
        chunk: Optimizer steps of one method before it is the next one's turn.
        json: Print the summary as JSON instead of a table.
    """
    _share_heap()
    from lightpeft.bench import RunBenchmark, chosen_methods, run_benchmark, run_table, select_rows
    from lightpeft.cli.tasks import TaskOptions
    from lightpeft.report import check_report_extra
    from lightpeft.runs import make_setting

    check_report_extra()
    check_at_least("chunk", chunk, 1)
    _check_options(training, lora)
    chosen = chosen_methods(names_of(methods))
    options = TaskOptions(task, data, names_of(text), label, metric, objective=objective)
    rows = select_rows(options.load(), min_words, train_rows)
    setting = make_setting(model, rows, training, PeftOptions(lora=lora))
    benchmark = RunBenchmark(setting, chosen, chunk)
    with _naming_methods():
        summary = run_benchmark(benchmark, seeds_of(seeds, [training.seed]), out)
    if json:
        print_json(summary)
        return
    console = Console(width=max(Console().width, WIDTH))
    console.print(run_table(summary))
    console.print(f"Numbers: {out / 'run.json'}   picture: {out / 'run.svg'}")


def _share_heap() -> None:
    """Before any library starts threads: let all threads take memory from one heap, as a run alone does.

    glibc gives every thread a heap of its own, and each would keep the most that its method ever used.
    """
    with suppress(OSError, AttributeError, TypeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


@contextmanager
def _naming_methods() -> Iterator[None]:
    """Every line that is logged says whose it is; methods run in threads of their names."""
    from lightpeft.bench import METHODS

    before = logging.getLogRecordFactory()

    def named(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = before(*args, **kwargs)
        if record.threadName in METHODS:
            record.msg = f"{record.threadName}: {record.msg}"
        return record

    logging.setLogRecordFactory(named)
    try:
        yield
    finally:
        logging.setLogRecordFactory(before)


def _check_options(training: TrainingConfig, lora: LoraOptions) -> None:
    training.check_intervals()
    if training.save_steps is not None:
        raise ConfigError(
            "training.save_steps would put the writing of checkpoints into the times; leave it out."
        )
    if lora.targets != LoraOptions().targets:
        raise ConfigError("lora.targets would have no effect, because each method has its own; leave it out.")
