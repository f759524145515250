"""`lightpeft bench speed`: step time, inference time and peak memory against plain PEFT."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lightpeft.cli.options import Names, names_of, run_with_options
from lightpeft.cli.output import print_json
from lightpeft.config import (
    Budget,
    EstimationConfig,
    LightConfig,
    PrefixConfig,
    Preset,
    SurgeryConfig,
    check_at_least,
)
from lightpeft.outputs import Output, check_file
from lightpeft.run_config import (
    MINILM,
    BottleneckOptions,
    LoraOptions,
    PeftForm,
    PeftOptions,
    TrainingConfig,
)


def run(arguments: Sequence[str]) -> None:
    """Entry point of the benchmark."""
    run_with_options(speed, "bench speed", arguments)


def speed(
    model: str = MINILM,
    task: str = "demo/sentiment",
    data: Path | None = None,
    text: Names | None = None,
    objective: str = "sequence-classification",
    out: Path | None = None,
    preset: Preset = "default",
    estimation: EstimationConfig = EstimationConfig(),
    budget: Budget = Budget(),
    surgery: SurgeryConfig = SurgeryConfig(),
    prefix: PrefixConfig = PrefixConfig(),
    training: TrainingConfig = TrainingConfig(),
    peft: PeftForm = "lora",
    lora: LoraOptions = LoraOptions(),
    bottleneck: BottleneckOptions = BottleneckOptions(),
    estimation_steps: int = 20,
    repeats: int = 15,
    json: bool = False,
) -> None:
    """Measure a plain step, an estimation step, a step after the cut, inference, and peak memory.

    Everything is measured in one process, taking turns; times are medians with quartiles.

    Args:
        model: Hub name or folder of the base.
        task: Task whose data is used.
        data: Folder with the task's files; by default the hub or the built-in generator.
        text: Your own data: the text columns.
        objective: Kind of your own data: `sequence-classification` (classes, or numbers), `causal-lm` (texts,
            or prompts and completions), ...; a word that is none of them lists them all.
        out: File for the numbers (JSON).
        preset: `default`, or `paper`; other flags change its values.
        estimation: How importance is estimated before the cut.
        budget: How much is cut.
        surgery: What the cut preserves.
        prefix: How the layers below the lowest trained PEFT module run after the cut.
        training: Batch size, length, learning rate and seed.
        peft: Form of PEFT: `lora`, or bottleneck adapters, `sequential` or `parallel`.
        lora: The LoRA that is put on the base.
        bottleneck: The bottleneck adapters that are put on the base.
        estimation_steps: Steps before the cut; takes the place of estimation.steps.
        repeats: Timed repeats of each action.
        json: Print JSON instead of a table.
    """
    from lightpeft.bench import SpeedBenchmark, run_speed
    from lightpeft.cli.tasks import TaskOptions
    from lightpeft.files import save_json
    from lightpeft.runs import make_setting

    del preset
    if out is not None:
        check_file(out, Output.RESULT)
    check_at_least("repeats", repeats, 2)
    check_at_least("estimation_steps", estimation_steps, 1)
    setting = make_setting(
        model,
        TaskOptions(task, data, names_of(text), objective=objective).load(),
        training,
        PeftOptions(peft, lora, bottleneck),
    )
    light = LightConfig(estimation, budget, surgery, prefix)
    result = run_speed(SpeedBenchmark(setting, light, estimation_steps, repeats))
    if out is not None:
        save_json(out, result, Output.RESULT)
    if json:
        print_json(result)
    else:
        Console().print(speed_table(result))


def speed_table(result: dict[str, Any]) -> Table:
    """One row per method: medians, and in brackets the ratio to the first row."""
    table = Table(
        title=f"{result['model']}, batch {result['batch']['examples']} × {result['batch']['tokens']}"
    )
    columns = {
        "method": "",
        "training step": "train_step_seconds",
        "training memory": "train_peak_bytes",
        "inference": "inference_seconds",
        "inference memory": "inference_peak_bytes",
    }
    for heading in columns:
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for name, numbers in result["methods"].items():
        ratios = result["ratios"][name]
        cells = [_cell(numbers[key], ratios.get(key)) for key in list(columns.values())[1:]]
        table.add_row(name, *cells)
    return table


def _cell(value: Any, ratio: float | None) -> str:
    if value is None or ratio is None:
        return ""
    if isinstance(value, dict):
        low, high = value["low"] * 1e3, value["high"] * 1e3
        return f"{value['median'] * 1e3:.0f} ms [{low:.0f}–{high:.0f}] ({ratio:.2f}×)"
    return f"{value / 2**20:.0f} MiB ({ratio:.2f}×)"
