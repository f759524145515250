"""`lightpeft predict`: labels for texts, or their continuations."""

import json as json_lines
import sys
from collections.abc import Sequence
from pathlib import Path

from lightpeft.cli.options import existing_file, run_with_options
from lightpeft.errors import ConfigError
from lightpeft.outputs import Output, check_file, written_file

NEW_TOKENS = 64


def run(arguments: Sequence[str]) -> None:
    """Entry point of the verb."""
    run_with_options(predict, "predict", arguments, positional=True)


def predict(
    checkpoint: str,
    texts: Path,
    out: Path | None = None,
    base: str | None = None,
    batch_size: int | None = None,
    max_new_tokens: int | None = None,
) -> None:
    """Label or continue every line of a text file; one JSON object per line comes out.

    Args:
        checkpoint: Light checkpoint or a run's folder; local, or a hub name.
        texts: UTF-8 text file, one example or prompt a line, blank or not; two texts have a tab between.
        out: File for the answers (jsonl); by default standard output.
        base: Hub name or folder of the base; by default the one that the checkpoint names.
        batch_size: Examples at once; by default 128, of a language model 8.
        max_new_tokens: Of a language model: tokens of a completion that does not end before; by default 64.
    """
    from lightpeft.cli.checkpoints import open_checkpoint
    from lightpeft.cli.tasks import recorded_objective, recorded_training
    from lightpeft.runs import generate_texts, predict_labels

    if out is not None:
        check_file(out, Output.PREDICTIONS)
        if out.resolve() == texts.resolve():
            raise ConfigError(f"{out} is the file of texts; choose another name for the answers.")
    existing_file(texts, "a text file, one example a line")
    model, tokenizer, record = open_checkpoint(checkpoint, base)
    size = recorded_training(record, batch_size).batch_size
    if recorded_objective(record) == "causal-lm":
        prompts = [prompt for (prompt,) in read_rows(texts, 1)]
        tokens = NEW_TOKENS if max_new_tokens is None else max_new_tokens
        predictions = generate_texts(model, tokenizer, prompts, tokens, size)
    elif max_new_tokens is not None:
        raise ConfigError(f"{checkpoint} labels texts and writes none; leave max_new_tokens out.")
    else:
        predictions = predict_labels(model, tokenizer, read_rows(texts, len(record["text"])), record, size)
    text = "".join(json_lines.dumps(line, ensure_ascii=False) + "\n" for line in predictions)
    if out is None:
        sys.stdout.write(text)
    else:
        with written_file(out, Output.PREDICTIONS) as beside:
            beside.write_text(text, encoding="utf-8")


def read_rows(path: Path, columns: int) -> list[list[str]]:
    """The examples of a text file, one a line, each as its one or two texts; a blank line is a blank example.

    Raises:
        ConfigError: there is no such file.
        TaskError: it is not UTF-8, or a line has another number of texts.
    """
    from lightpeft.tasks import TaskError, text_lines

    rows = []
    for number, line in enumerate(
        text_lines(existing_file(path, "a text file, one example a line")), start=1
    ):
        texts = line.split("\t") if columns > 1 else [line]
        if not line.strip():
            texts = [""] * columns
        if len(texts) != columns:
            raise TaskError(
                f"{path}, line {number}: found {len(texts)} texts, the task has {columns}; put a tab "
                "between them"
            )
        rows.append(texts)
    return rows
