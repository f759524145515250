"""Questions with four answers as contexts and choices, for gemma.yaml.

python benchmarks/commonsense.py DATA/commonsense_arc_easy FOLDER

The folder of DATA has the instructions that LLM-Adapters (Hu et al. 2023) made of ARC or OpenBookQA. Here
answers stand behind the question, as lm-evaluation-harness asks them; questions with another number of them
are left out.
"""

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet

from lightpeft.outputs import Output, check_file, written_file

ANSWERS = 4
SPLITS = {"train": "train", "test": "validation"}
_QUESTION = re.compile(
    r"Please choose the correct answer to the question: (.*?)\n\n(Answer1: .*?)\n\nAnswer", re.DOTALL
)
_ANSWER = re.compile(r"Answer\d: (.*?)(?= Answer\d: |$)", re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    targets = {split: options.out / f"{name}.jsonl" for split, name in SPLITS.items()}
    for target in targets.values():
        check_file(target, Output.DATA)
    for split, target in targets.items():
        rows = parquet.read_table(options.data / f"{split}.parquet").to_pylist()
        found = list(questions(rows))
        with written_file(target, Output.DATA) as beside:
            beside.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
        print(f"{target}: {len(found)} of {len(rows)} questions")


def questions(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Context, choices and the number of the right one."""
    for row in rows:
        found = _QUESTION.match(row["instruction"])
        choices = _ANSWER.findall(found[2]) if found else []
        if found and len(choices) == ANSWERS:
            label = int(row["answer"].removeprefix("answer")) - 1
            yield {"context": f"Question: {found[1]}\nAnswer:", "choices": choices, "label": label}


if __name__ == "__main__":
    main()
