"""`lightpeft train`: estimate, cut, train, evaluate, save, report; in one run."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from lightpeft.cli.options import Names, Seeds, names_of, run_with_options, seeds_of
from lightpeft.config import (
    Budget,
    EstimationConfig,
    LightConfig,
    PrefixConfig,
    Preset,
    SurgeryConfig,
    Target,
)
from lightpeft.errors import ConfigError
from lightpeft.run_config import (
    BottleneckOptions,
    LoraOptions,
    PeftForm,
    PeftOptions,
    TrainingConfig,
)


def run(arguments: Sequence[str]) -> None:
    """Entry point of the verb."""
    run_with_options(train, "train", arguments)


def train(
    task: str,
    out: Path,
    model: str | None = None,
    data: Path | None = None,
    text: Names | None = None,
    objective: str = "sequence-classification",
    label: str = "label",
    metric: str | None = None,
    train_limit: int | None = None,
    peft: PeftForm = "lora",
    adapter: str | None = None,
    preset: Preset = "default",
    estimation: EstimationConfig = EstimationConfig(),
    budget: Budget = Budget(),
    surgery: SurgeryConfig = SurgeryConfig(),
    prefix: PrefixConfig = PrefixConfig(),
    target: Target = Target(),
    learning_rate_factor: float = 1.5,
    restart_schedule: bool = False,
    training: TrainingConfig = TrainingConfig(),
    lora: LoraOptions = LoraOptions(),
    bottleneck: BottleneckOptions = BottleneckOptions(),
    compare: bool = False,
    seeds: Seeds | None = None,
    resume: bool = False,
    report_to: Names | None = None,
    json: bool = False,
) -> None:
    """Fine-tune lightly: estimate what the task does not need, cut it, train on, evaluate, save.

    Args:
        task: A GLUE task (glue/sst2), demo/sentiment, or with `text` a name for your own.
        out: Folder for the light checkpoint, result.json and report.html.
        model: Hub name or folder of the base; by default the one that `adapter` names.
        data: Folder with train and validation files (parquet, csv, tsv, jsonl, txt); by default the hub.
        text: Your own data: the text columns.
        objective: Kind of your own data: `sequence-classification` (classes, or numbers), `causal-lm` (texts,
            or prompts and completions), ...; a word that is none of them lists them all.
        label: Your own data: the label column; strings or integers for classes, floats for regression.
        metric: Your own data: the metric to judge by.
        train_limit: Use only so many training examples, drawn at random.
        peft: Form of PEFT: `lora`, or bottleneck adapters, `sequential` (after a block) or `parallel` to it.
        adapter: Folder or hub name of a trained PEFT adapter to go on from.
        preset: `default`, or `paper` for the published procedure; other flags change its values.
        estimation: How importance is estimated.
        budget: How much is cut.
        surgery: What the cut preserves.
        prefix: How the layers below the lowest trained PEFT module run after the cut.
        target: A share of plain PEFT's cost to meet, instead of shares of heads, neurons and layers.
        learning_rate_factor: Multiply the learning rate after the cut.
        restart_schedule: Start optimizer and learning-rate schedule anew after the cut.
        training: The fine-tuning run.
        lora: The LoRA that is put on the base.
        bottleneck: The bottleneck adapters that are put on the base.
        compare: Also train plain PEFT, for the same steps, and show both side by side.
        seeds: Seeds to run, the metric is their mean; by default training.seed alone.
        resume: Go on from the newest complete checkpoint below `out` (see training.save_steps).
        report_to: Who gets the Trainer's log, of transformers' integrations (tensorboard, wandb, ...).
        json: Print the result as JSON instead of a table.
    """
    from lightpeft.cli.experiment import base_to_use, check_ready, show
    from lightpeft.cli.tasks import TaskOptions
    from lightpeft.runs import (
        Experiment,
        check_reporting,
        join_processes,
        make_setting,
        run_experiment,
        set_engine_aside,
    )

    del preset
    engine = set_engine_aside()
    if engine is not None and compare:
        raise ConfigError("compare trains plain PEFT in whole models; start without DeepSpeed.")
    processes = join_processes()
    check_ready(out)
    check_reporting(names_of(report_to))
    options = PeftOptions(peft, lora, bottleneck, adapter)
    base = base_to_use(model, options)
    training.check_intervals()
    if resume and training.save_steps is None:
        raise ConfigError("resume needs training.save_steps, the steps between checkpoints.")
    light = LightConfig(estimation, budget, surgery, prefix, target, learning_rate_factor, restart_schedule)
    task_options = TaskOptions(task, data, names_of(text), label, metric, train_limit, objective=objective)
    loaded = task_options.load()
    setting = make_setting(base, loaded, training, options)
    experiment = Experiment(
        setting=setting,
        light=light,
        seeds=tuple(seeds_of(seeds, [training.seed])),
        compare=compare,
        task=task_options.record(loaded, setting.training),
        report_to=names_of(report_to),
        engine=engine,
    )
    result = run_experiment(
        experiment,
        out,
        kind="train",
        title=f"{base} on {loaded.spec.name}",
        command=f"lightpeft train {shlex.join(sys.argv[2:])}",
        resume=resume,
        progress=not json,
    )
    if processes.is_first:
        show(result, out, json=json)
