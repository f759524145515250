"""Would it pay to choose the neurons that go together, and not one by one?

python benchmarks/interactions.py --data FOLDER/sst2 --out benchmarks/results/interactions.json
python benchmarks/interactions.py --data FOLDER/sst2 --out FILE --model FOLDER

`fluctuation` scores each neuron by what the layer's output loses without it alone. What goes missing with a
set S of them is the sum over pairs of S of their covariance times the product of their columns (Kwon et al.
2022 rearrange masks by such a sum, of the Fisher information). From the set of the lowest scores, pairs are
swapped as long as this falls; both sets are judged on tokens that were not used, by the variance of what goes
missing over that of the layer's FFN output.
"""

import argparse
import itertools
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightpeft import find_anatomy
from lightpeft.anatomy import linear_at
from lightpeft.bench import result_file, save_result, select_rows
from lightpeft.bench.speed import batches
from lightpeft.cli.tasks import TaskOptions
from lightpeft.linears import matrix
from lightpeft.report import environment
from lightpeft.run_config import LoraOptions, PeftOptions, TrainingConfig
from lightpeft.runs import make_setting
from lightpeft.runs.minilm import minilm_path

SHARES = (1 / 3, 1 / 2, 3 / 4)
"""Of the neurons that go."""

ROWS, MIN_WORDS, HELD_BACK = 512, 12, 0.25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with the files of SST-2")
    parser.add_argument("--out", type=result_file, required=True)
    parser.add_argument("--model", type=Path, default=None, help="by default MiniLM")
    options = parser.parse_args()
    name = options.model.name if options.model else "all-MiniLM-L6-v2"
    task = select_rows(TaskOptions("glue/sst2", options.data, ()).load(), MIN_WORDS, ROWS)
    setting = make_setting(
        str(options.model or minilm_path()),
        task,
        TrainingConfig(batch_size=32),
        PeftOptions("lora", LoraOptions()),
    )
    base = setting.load_model().get_base_model().eval()
    layers = {layer.index: layer.ffn for layer in find_anatomy(base).layers if layer.ffn is not None}
    found: dict[int, list[Tensor]] = {index: [] for index in layers}
    mask: Tensor | None = None

    def note(index: int, _: nn.Module, args: tuple[Any, ...]) -> None:
        assert mask is not None
        found[index].append(args[0][mask.bool()])

    readers = {index: linear_at(base, ffn.out) for index, ffn in layers.items()}
    for index, reader in readers.items():
        reader.register_forward_pre_hook(partial(note, index))
    with torch.no_grad():
        for batch in itertools.islice(batches(setting, setting.train), ROWS // 32):
            mask = batch["attention_mask"]
            base(**batch)
        rows = {index: compared(torch.cat(found[index]), matrix(readers[index])) for index in layers}
    for share in SHARES:
        gains = [1 - row[f"{share:.2f}"]["together"] / row[f"{share:.2f}"]["alone"] for row in rows.values()]
        print(f"{share:.2f} cut: {statistics.median(gains):.3f} less goes missing (median over layers)")
    save_result(options.out, {"layers": rows, "model": name, "environment": environment()})


def compared(inputs: Tensor, weight: Tensor) -> dict[str, dict[str, float]]:
    """Per share, the part of the output's variance that goes missing on tokens held back.

    Args:
        inputs: tokens × neurons.
        weight: outputs × neurons.
    """
    known = inputs[: int(len(inputs) * (1 - HELD_BACK))]
    mean = known.mean(0)
    fresh = inputs[len(known) :] - mean
    products = (known - mean).T @ (known - mean) / len(known) * (weight.T @ weight)
    whole = (fresh @ weight.T).square().sum()

    def missing(chosen: Tensor) -> float:
        return float((fresh[:, chosen] @ weight[:, chosen].T).square().sum() / whole)

    rows = {}
    for share in SHARES:
        alone = torch.zeros(len(mean), dtype=torch.bool)
        alone[products.diagonal().argsort()[: int(share * len(mean))]] = True
        rows[f"{share:.2f}"] = {"alone": missing(alone), "together": missing(rearranged(products, alone))}
    return rows


def rearranged(products: Tensor, chosen: Tensor) -> Tensor:
    """Swap the pair that lowers the sum over the chosen most, until none lowers it by a millionth."""
    chosen = chosen.clone()
    own = products.diagonal()
    while True:
        shared = 2 * (products @ chosen.float())
        leaves = torch.where(chosen, shared - own, -torch.inf).argmax()
        comes = torch.where(chosen, torch.inf, shared + own).argmin()
        lost = shared[leaves] - own[leaves] - (shared[comes] + own[comes] - 2 * products[leaves, comes])
        if lost <= 1e-6 * shared[chosen].sum().abs():
            return chosen
        chosen[leaves], chosen[comes] = False, True


if __name__ == "__main__":
    main()
