"""`bench quality`, one cell: a run, its metric, how exactly the rows tell it, what the model costs."""

import dataclasses
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from accelerate.utils import extract_model_from_parallel
from peft import PeftModel
from transformers import EvalPrediction

from lightpeft.bench.earlier import other_settings
from lightpeft.bench.grid import CellKey, QualityGrid, light_config
from lightpeft.bench.speed import batches, inference_share
from lightpeft.errors import CheckpointError, InUseError, LightPeftError, OutputError
from lightpeft.files import read_json, save_json
from lightpeft.outputs import Output, locked
from lightpeft.report import environment
from lightpeft.runs import Outcome, Run, Setting, prepare
from lightpeft.surgery import parameter_counts
from lightpeft.tasks import Evaluated, TaskData
from lightpeft.training.run_settings import data_digest

logger = logging.getLogger(__name__)

CELLS = "cells"
PARTS = 20
"""Of the validation rows, for the jackknife."""

INFERENCE_ROWS = 16
"""Rows in the batch whose forward pass is timed."""


@dataclass(frozen=True)
class Cell:
    """A measured cell."""

    key: CellKey
    setting: dict[str, Any]
    """What the grid said, see `QualityGrid.record`."""

    metric: str
    """What `main` is called."""

    main: float
    metrics: dict[str, float]
    mains_without: list[float]
    """`main` without each part of the validation rows; the parts are the same in all cells of a task."""

    rows: dict[str, int]
    digests: dict[str, str | None]
    """Of the rows, so that nobody compares what was measured on others."""

    encoder: float
    """Parameters of the layers, over those of plain LoRA on all linears."""

    peft: float
    """Trained parameters, over those of plain LoRA on all linears."""

    inference: float | None
    """Seconds of a forward pass, over those of plain LoRA on all linears."""

    seconds: float
    """Of training and its evaluation, on whatever else the machine had to do."""

    kept: dict[str, int] | None
    """How many heads, neurons, ... stayed; None of plain PEFT."""

    estimation_steps: int | None
    frozen_layers: int | None
    environment: dict[str, Any]

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        save_json(path, dataclasses.asdict(self), Output.CELL)

    @classmethod
    def load(cls, path: Path) -> "Cell":
        """Read what `save` wrote.

        Raises:
            OutputError: it is no cell, or not the one that the file is named after.
        """
        try:
            value = read_json(path)
            cell = cls(**value | {"key": CellKey(**value["key"])})
        except (CheckpointError, TypeError, KeyError) as error:
            raise OutputError(f"{path} is no cell of bench quality ({error}); move it away.") from error
        if path.stem != cell.key.name:
            raise OutputError(f"{path} holds the cell {cell.key.name}; give it its own name, or delete it.")
        return cell


def measure_cells(
    grid: QualityGrid,
    out: Path,
    *,
    data: Path = Path(),
    models: Path | None = None,
    only: Callable[[CellKey], bool] = lambda key: True,
) -> dict[CellKey, str]:
    """Measure the cells that are not in `out` yet and that no other process is at; each is written when done.

    Args:
        data: folder that the tasks' folders start from.
        models: folder in which bases are looked for first.
        only: measure these cells only.

    Returns:
        the cells that failed, and why.

    Raises:
        OutputError: `out` has cells of other settings.
        TaskError: a task's data cannot be used.
    """
    wanted = [key for key in grid.keys() if only(key)]  # noqa: SIM118
    for key in wanted:
        check_cell(grid, key, out)
    left = dict.fromkeys(key.task for key in wanted if not cell_path(out, key).exists())
    tasks = {name: grid.tasks[name].load(data) for name in left}
    failed = {}
    for number, key in enumerate(wanted, 1):
        path = cell_path(out, key)
        if path.exists():
            continue
        try:
            with locked(path.with_suffix("")):
                if path.exists():  # another process was faster
                    continue
                cell = _measured(grid, key, tasks[key.task], models)
                cell.save(path)
        except InUseError:
            logger.info("%s: another process is at it", key.name)
            continue
        except (LightPeftError, RuntimeError, ValueError) as error:
            failed[key] = f"{type(error).__name__}: {error}"
            logger.warning("%s failed: %s", key.name, failed[key])
            continue
        logger.info("%d of %d: %s: %s %.4f", number, len(wanted), key.name, cell.metric, cell.main)
    return failed


def cell_path(out: Path, key: CellKey) -> Path:
    """The file of a cell."""
    return out / CELLS / f"{key.name}.json"


def check_cell(grid: QualityGrid, key: CellKey, out: Path) -> None:
    """Refuse to go on beside a cell of other settings.

    Raises:
        OutputError: there is one, or something else under its name.
    """
    path = cell_path(out, key)
    if not path.exists():
        return
    odd = other_settings(Cell.load(path).setting, grid.record(key))
    if odd is not None:
        raise OutputError(
            f"{path} was measured with other settings than the grid has now "
            f"({odd or 'more than now'}); choose another folder, or delete it."
        )


def _measured(grid: QualityGrid, key: CellKey, task: TaskData, models: Path | None) -> Cell:
    setting = _judged_at_the_end(grid.setting(key, task, models))
    method = grid.methods[key.method].method(key.method)
    own = method.setting(setting, key.seed)
    with TemporaryDirectory() as folder:
        run = prepare(own, method.load(own), light_config(method, own), Path(folder), progress=False)
        kept = _kept_evaluation(run)
        outcome = run.train()
        mains_without = _mains_without(setting, kept[-1])
    plain = setting.load_model().to(run.trainer.args.device)
    encoder, peft = parameter_counts(outcome.model)
    plain_encoder, plain_peft = parameter_counts(plain)
    plan = None if outcome.light is None else outcome.light.plan
    assert outcome.seconds is not None
    return Cell(
        key=key,
        setting=grid.record(key),
        metric="+".join(setting.spec.main),
        main=outcome.main,
        metrics=outcome.metrics,
        mains_without=mains_without,
        rows={"train": len(task.train), "validation": len(task.validation)},
        digests={"train": data_digest(setting.train), "validation": data_digest(setting.validation)},
        encoder=encoder / plain_encoder,
        peft=peft / plain_peft,
        inference=_inference(outcome, plain, setting, grid.inference_repeats),
        seconds=outcome.seconds,
        kept=None if plan is None else {kind: count.kept for kind, count in plan.counts._asdict().items()},
        estimation_steps=None if plan is None else plan.estimation_steps,
        frozen_layers=None if plan is None else plan.frozen_layers,
        environment=environment(),
    )


def _judged_at_the_end(setting: Setting) -> Setting:
    """One evaluation, after the last step, unless the grid wants more."""
    training = setting.training
    last = training.eval_steps or training.steps(len(setting.train))
    return dataclasses.replace(setting, training=dataclasses.replace(training, eval_steps=last))


def _kept_evaluation(run: Run) -> deque[EvalPrediction]:
    """Where the run's last evaluation will be, its rows in the order of the data."""
    kept: deque[EvalPrediction] = deque(maxlen=1)
    measure = run.trainer.compute_metrics
    assert measure is not None

    def keep(found: EvalPrediction) -> dict[str, float]:
        kept.append(found)
        return measure(found)

    run.trainer.evaluates_in_order = True
    run.trainer.compute_metrics = keep
    return kept


def _mains_without(setting: Setting, found: EvalPrediction) -> list[float]:
    evaluated = Evaluated(
        found.predictions,  # type: ignore[arg-type]
        found.label_ids,
        setting.validation_rows,
        setting.validation,
        setting.tokenizer,
    )
    return setting.kind.mains_without(setting.spec, evaluated, PARTS)


def _inference(outcome: Outcome, plain: PeftModel, setting: Setting, repeats: int) -> float | None:
    """On the validation rows of middle length, in the dtype of the weights."""
    if not repeats:
        return None
    model = extract_model_from_parallel(outcome.model, keep_fp32_wrapper=False)  # without its autocast
    lengths = [len(ids) for ids in setting.validation["input_ids"]]
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    middle = max(0, (len(order) - INFERENCE_ROWS) // 2)
    rows = setting.validation.select(sorted(order[middle : middle + INFERENCE_ROWS]))
    batch = next(batches(setting, rows))
    return inference_share(model, plain, [batch], max(2, repeats))
