"""`lightpeft estimate`: the first half on its own; scores once, for many plans."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightpeft.cli.options import Names, names_of, run_with_options
from lightpeft.cli.output import print_json
from lightpeft.config import EstimationConfig, Preset
from lightpeft.outputs import Output, check_file
from lightpeft.run_config import (
    BottleneckOptions,
    LoraOptions,
    PeftForm,
    PeftOptions,
    TrainingConfig,
)

if TYPE_CHECKING:
    from lightpeft.runs import Setting


def run(arguments: Sequence[str]) -> None:
    """Entry point of the verb."""
    run_with_options(write_scores, "estimate", arguments)


def write_scores(
    task: str,
    out: Path,
    model: str | None = None,
    data: Path | None = None,
    text: Names | None = None,
    objective: str = "sequence-classification",
    label: str = "label",
    train_limit: int | None = None,
    preset: Preset = "default",
    estimation: EstimationConfig = EstimationConfig(),
    training: TrainingConfig = TrainingConfig(),
    peft: PeftForm = "lora",
    adapter: str | None = None,
    lora: LoraOptions = LoraOptions(),
    bottleneck: BottleneckOptions = BottleneckOptions(),
    json: bool = False,
) -> None:
    """Train for the estimation steps only and write the scores of every unit.

    Args:
        task: A GLUE task (glue/sst2), demo/sentiment, or with `text` a name for your own.
        out: File to write the scores to (safetensors).
        model: Hub name or folder of the base; by default the one that `adapter` names.
        data: Folder with train and validation files; by default the hub.
        text: Your own data: the text columns.
        objective: Kind of your own data: `sequence-classification` (classes, or numbers), `causal-lm` (texts,
            or prompts and completions), ...; a word that is none of them lists them all.
        label: Your own data: the label column.
        train_limit: Use only so many training examples, drawn at random.
        preset: `default`, or `paper`.
        estimation: How importance is estimated.
        training: Learning rate, batch size, length and seed of the estimation steps.
        peft: Form of PEFT: `lora`, or bottleneck adapters, `sequential` or `parallel`.
        adapter: Folder or hub name of a trained PEFT adapter to go on from.
        lora: The LoRA that is put on the base.
        bottleneck: The bottleneck adapters that are put on the base.
        json: Print the scores as JSON.
    """
    from lightpeft.cli.experiment import base_to_use
    from lightpeft.cli.tasks import TaskOptions
    from lightpeft.estimation import estimate
    from lightpeft.runs import make_setting

    del preset
    check_file(out, Output.SCORES)
    options = TaskOptions(task, data, names_of(text), label, None, train_limit, objective=objective)
    chosen = PeftOptions(peft, lora, bottleneck, adapter)
    setting = make_setting(base_to_use(model, chosen), options.load(), training, chosen)
    peft_model = setting.load_model()
    scores = estimate(
        peft_model,
        endless_batches(setting),
        estimation.in_run(training.steps(len(setting.train))),
        learning_rate=training.learning_rate,
    )
    scores.save(out)
    if json:
        print_json(
            {
                "steps": scores.steps,
                "scored_steps": scores.scored_steps,
                "methods": scores.methods,
                "heads": [values.tolist() for values in scores.heads],
                "neurons": [values.tolist() for values in scores.neurons],
                "modules": scores.modules,
                "ranks": {name: values.tolist() for name, values in scores.ranks.items()},
            }
        )
    else:
        print(
            f"scores of {scores.scored_steps} of {scores.steps} steps for {len(scores.heads)} layers in {out}"
        )


def endless_batches(setting: "Setting") -> Iterator[dict[str, Any]]:
    """Shuffled, padded training batches, epoch after epoch; the same for the same seed."""
    import torch
    from torch.utils.data import DataLoader
    from transformers.trainer_pt_utils import LengthGroupedSampler

    training = setting.training
    generator = torch.Generator().manual_seed(training.seed)
    sampler = None
    if training.groups_lengths:
        lengths = [len(ids) for ids in setting.train["input_ids"]]
        sampler = LengthGroupedSampler(training.batch_size, lengths=lengths, generator=generator)
    loader: DataLoader[Any] = DataLoader(
        setting.train,
        batch_size=training.batch_size,
        shuffle=sampler is None,
        sampler=sampler,
        generator=generator,
        collate_fn=setting.collator,
    )
    while True:
        for batch in loader:
            yield dict(batch)
