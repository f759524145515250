"""Where a benchmark's program writes, checked before it measures."""

import argparse
from pathlib import Path
from typing import Any

from lightpeft.errors import OutputError
from lightpeft.files import save_json
from lightpeft.outputs import Output, check_file


def result_file(text: str) -> Path:
    """The `type` of an argparse option that names the file for the result.

    Raises:
        argparse.ArgumentTypeError: something else is there, or nothing can be written there.
    """
    path = Path(text)
    try:
        check_file(path, Output.RESULT)
    except OutputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return path


def save_result(path: Path, result: dict[str, Any]) -> None:
    """Write a benchmark's result as JSON.

    Raises:
        OutputError: something else is there, or it cannot be written.
    """
    save_json(path, result, Output.RESULT)
