"""Which architectures can be written as ONNX files, by trying: tiny random ones, cut unevenly, layers too.

python -m benchmarks.graph_zoo --out benchmarks/results/graph-zoo.json
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

from tests.support.plans import UNEVEN
from tests.support.probing import random_scores
from tests.support.zoo import ANIMALS, Animal

import lightpeft
from lightpeft.bench import result_file, save_result
from lightpeft.checkpoint.traced import SIGNATURE
from lightpeft.errors import CheckpointError, PlanError
from lightpeft.files import read_json
from lightpeft.report import environment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=result_file, required=True)
    options = parser.parse_args()
    found = {}
    for animal in ANIMALS:
        with tempfile.TemporaryDirectory() as folder:
            found[animal.name] = outcome(animal, Path(folder))
        print(f"{animal.name}: {found[animal.name]}", flush=True)
    save_result(options.out, {"onnx": found, "environment": environment()})


def outcome(animal: Animal, folder: Path) -> float | str:
    """The largest difference between onnxruntime and the light model, or why there is no file."""
    model, attention = animal.with_lora(animal.attentions[-1]), animal.attentions[-1]
    scores, anatomy = random_scores(model), lightpeft.find_anatomy(model)
    try:
        plan = lightpeft.make_plan(scores, anatomy, replace(UNEVEN, layers=0.5))
    except PlanError:  # no layer of it can be skipped
        plan = lightpeft.make_plan(scores, anatomy, UNEVEN)
    lightpeft.cut(model, plan, batch=animal.batch(padded=True))
    light = lightpeft.save(model, folder / "light")
    try:
        lightpeft.export_onnx(light, folder / "out", animal.build(attention))
    except CheckpointError as error:
        return str(error)
    return float(read_json(folder / "out" / SIGNATURE)["largest_difference"])


if __name__ == "__main__":
    main()
