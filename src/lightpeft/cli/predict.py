"""`lightpeft predict`: labels for texts."""

import json as json_lines
import sys
from collections.abc import Sequence
from pathlib import Path

from lightpeft.cli.checkpoints import open_checkpoint
from lightpeft.cli.options import run_with_options
from lightpeft.errors import ConfigError
from lightpeft.files import written_beside
from lightpeft.runs import predict_labels


def run(arguments: Sequence[str]) -> None:
    """Entry point of the verb."""
    run_with_options(predict, "predict", arguments, positional=True)


def predict(
    checkpoint: str,
    texts: Path,
    out: Path | None = None,
    base: str | None = None,
    batch_size: int = 128,
) -> None:
    """Label every line of a text file; one JSON object per line comes out.

    Args:
        checkpoint: Light checkpoint or a run's folder; local, or a hub name.
        texts: UTF-8 text file, one example a line; two texts are separated by a tab.
        out: File for the labels (jsonl); by default standard output.
        base: Hub name or folder of the base; by default the one that the checkpoint names.
        batch_size: Examples per forward pass.
    """
    model, tokenizer, record = open_checkpoint(checkpoint, base)
    rows = read_rows(texts, len(record["text"]))
    predictions = predict_labels(model, tokenizer, rows, record, batch_size)
    text = "".join(json_lines.dumps(line, ensure_ascii=False) + "\n" for line in predictions)
    if out is None:
        sys.stdout.write(text)
    else:
        with written_beside(out) as beside:
            beside.write_text(text, encoding="utf-8")


def read_rows(path: Path, columns: int) -> list[list[str]]:
    """The examples of a text file, each as its one or two texts.

    Raises:
        ConfigError: missing, not UTF-8, empty, or a line with another number of texts.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as UTF-8 text: {error}") from error
    rows = [line.split("\t") if columns > 1 else [line] for line in lines if line.strip()]
    if not rows:
        raise ConfigError(f"{path} has no text in it.")
    for number, row in enumerate(rows, 1):
        if len(row) != columns:
            raise ConfigError(f"{path}, example {number}: found {len(row)} texts, the task has {columns}.")
    return rows
