"""`lightpeft predict`: what a trained model says about texts, or how it continues them."""

import json as json_lines
import sys
from collections.abc import Sequence
from pathlib import Path

from lightpeft.cli.options import existing_file, run_with_options
from lightpeft.errors import ConfigError
from lightpeft.outputs import Output, check_file, written_file


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
    from lightpeft.runs import predict as predicted
    from lightpeft.tasks import text_lines

    if out is not None:
        check_file(out, Output.PREDICTIONS)
        if out.resolve() == texts.resolve():
            raise ConfigError(f"{out} is the file of texts; choose another name for the answers.")
    lines = text_lines(existing_file(texts, "a text file, one example a line"))
    model, tokenizer, record = open_checkpoint(checkpoint, base)
    predictions = predicted(
        model,
        tokenizer,
        record,
        lines,
        str(texts),
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
    )
    text = "".join(json_lines.dumps(line, ensure_ascii=False) + "\n" for line in predictions)
    if out is None:
        sys.stdout.write(text)
    else:
        with written_file(out, Output.PREDICTIONS) as beside:
            beside.write_text(text, encoding="utf-8")
