"""Documents of a compressed corpus as a training and a validation file, for stories-lm.yaml.

python benchmarks/corpus.py DATA/corpus/brown.txt.zst FOLDER    (needs the package zstandard)
"""

import argparse
import json
import random
from pathlib import Path

from lightpeft.errors import ConfigError
from lightpeft.outputs import Output, check_file, written_file

SEPARATOR, VALIDATION, TRAINING = "<|doc|>", 15, 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    for split in ("validation", "train"):
        check_file(options.out / f"{split}.jsonl", Output.DATA)
    documents = shuffled(read(options.corpus))
    parts = {"validation": documents[:VALIDATION], "train": documents[VALIDATION:][:TRAINING]}
    for split, part in parts.items():
        lines = "".join(json.dumps({"text": text}) + "\n" for text in part)
        with written_file(options.out / f"{split}.jsonl", Output.DATA) as beside:
            beside.write_text(lines, encoding="utf-8")
        print(f"{split}: {len(part)} documents, {sum(map(len, part))} characters")


def read(corpus: Path) -> list[str]:
    """The documents of a corpus, in order."""
    try:
        import zstandard
    except ImportError as error:
        raise ConfigError("reading the corpus needs zstandard: pip install zstandard") from error
    with corpus.open("rb") as file:
        text = zstandard.ZstdDecompressor().stream_reader(file).read().decode("utf-8")
    return [document.strip() for document in text.split(SEPARATOR) if document.strip()]


def shuffled(documents: list[str]) -> list[str]:
    """The same order every time."""
    order = list(documents)
    random.Random(0).shuffle(order)
    return order


if __name__ == "__main__":
    main()
