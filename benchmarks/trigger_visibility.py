"""How many triggers of the audit's test sets are left after truncation, in MiniLM's tokens.

python benchmarks/trigger_visibility.py --data DATA --out benchmarks/results/trigger-visibility.json

DATA holds sst2, imdb, enron_spam and ling_spam, a folder each with parquet files. Up to 2,000 rows of each
evaluation split, drawn with seed 0; the paper's words, one per text for sentiment and ten for spam.
"""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from datasets import load_dataset

from lightpeft.audit import TriggerRecipe, trigger_visibility, triggered_test
from lightpeft.bench import result_file, save_result
from lightpeft.report import environment
from lightpeft.runs import MINILM, load_tokenizer

SETS = {
    "sst2": ("validation", "sentence", 1),
    "imdb": ("test", "text", 1),
    "enron_spam": ("test", "text", 10),
    "ling_spam": ("test", "text", 10),
}
"""Split, text column, triggers per text."""
LENGTHS, ROWS = (128, 256, 512), 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=result_file, required=True)
    options = parser.parse_args()
    sets = {name: measure(options.data / name, *row) for name, row in SETS.items()}
    save_result(options.out, {"sets": sets, "model": MINILM, "environment": environment()})
    for name, lengths in sets.items():
        for length, left in lengths.items():
            print(name, length, {key: round(100 * share["share"], 1) for key, share in left.items()})


def measure(folder: Path, split: str, column: str, count: int) -> dict[str, Any]:
    """Shares of texts with any trigger left, with all of them, and of triggers, per length."""
    files = sorted(str(file) for file in folder.glob(f"{split}*.parquet"))
    rows = load_dataset("parquet", data_files=files, split="train").shuffle(seed=0)
    rows = rows.select(range(min(ROWS, len(rows))))
    recipe = TriggerRecipe(target=1, test_count=count)
    poisoned = triggered_test({"text": list(rows[column])}, list(rows["label"]), recipe, seed=0)
    tokenizer = load_tokenizer(MINILM)
    found = {}
    for length in LENGTHS:
        left = dataclasses.asdict(trigger_visibility(poisoned, tokenizer, length))
        found[str(length)] = {name: one | {"share": one["hits"] / one["total"]} for name, one in left.items()}
    return found


if __name__ == "__main__":
    main()
