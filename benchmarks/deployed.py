"""A light model in onnxruntime beside the uncut one: time, file size, difference, and accuracy in 8 bits.

lightpeft train --model sentence-transformers/all-MiniLM-L6-v2 --task demo/sentiment --out runs/minilm \
    --training.max_steps 240 --training.learning_rate 1e-3 --training.batch_size 32 --training.max_length 64
python benchmarks/deployed.py --run runs/minilm --out benchmarks/results/deployed-minilm.json

The uncut model is the run's base with a head of the same size. One thread; medians, the graphs taking turns
in one process.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel

import lightpeft
from lightpeft.bench import result_file, save_result
from lightpeft.checkpoint import Graph, read_record
from lightpeft.checkpoint.onnx_file import FILE, save_onnx
from lightpeft.checkpoint.traced import SIGNATURE
from lightpeft.cli.checkpoints import light_folder, open_tokenizer
from lightpeft.files import read_json
from lightpeft.report import environment
from lightpeft.runs import evaluate_model, resolve_model
from lightpeft.runs.measure import Action, interleaved_seconds
from lightpeft.tasks import TaskRecord

SHAPES = ((1, 32), (8, 64), (32, 64))
"""Rows and tokens of what is timed; every row three tokens shorter than the one before, down to four."""

UNCUT, UNCUT_INT8, CUT, CUT_INT8 = "uncut", "uncut, int8", "cut", "cut, int8"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", required=True, help="folder of a run, or a light checkpoint")
    parser.add_argument("--out", type=result_file, required=True)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--no-accuracy", action="store_true", help="for a run of a few steps")
    options = parser.parse_args()
    torch.manual_seed(0)
    light = light_folder(options.run)
    described = read_record(light)[1]
    with tempfile.TemporaryDirectory() as folder:
        folders = {name: Path(folder) / name for name in (UNCUT, UNCUT_INT8, CUT, CUT_INT8)}
        shares, graphs = write_all(light, described["base"], folders)
        result = {
            "encoder_parameters": shares,
            "files": {name: about(place) for name, place in folders.items()},
            "inference": timed(folders, options.repeats),
            "metrics": {} if options.no_accuracy else metrics(light, described, graphs),
        }
    save_result(
        options.out, result | {"environment": environment() | {"onnxruntime": onnxruntime.__version__}}
    )


def write_all(
    light: Path, base: dict[str, Any], folders: dict[str, Path]
) -> tuple[dict[str, int], dict[str, Graph]]:
    """Write the four files; parameters of the encoder layers, and the graphs of the cut model."""
    name, labels = resolve_model(base["name_or_path"]), len(base["config"]["id2label"])
    for folder in folders.values():
        folder.mkdir()

    def whole() -> PreTrainedModel:
        return AutoModelForSequenceClassification.from_pretrained(name, num_labels=labels).eval()

    cut = lightpeft.load(light, name)
    shares = {
        UNCUT: lightpeft.find_anatomy(whole()).parameters,
        CUT: lightpeft.find_anatomy(cut).parameters,
    }
    save_onnx(whole(), folders[UNCUT])
    save_onnx(whole(), folders[UNCUT_INT8], int8=True)
    graphs = {
        CUT: save_onnx(cut, folders[CUT]),
        CUT_INT8: save_onnx(lightpeft.load(light, name), folders[CUT_INT8], int8=True),
    }
    return shares, graphs


def about(folder: Path) -> dict[str, Any]:
    """Size, and the largest difference to the model in PyTorch, relative to the largest output."""
    difference = read_json(folder / SIGNATURE)["largest_difference"]
    return {"bytes": (folder / FILE).stat().st_size, "largest_difference": difference}


def timed(folders: dict[str, Path], repeats: int) -> dict[str, Any]:
    """Per shape the median seconds of each file, and their ratios to the uncut one in float32."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    sessions = {
        name: onnxruntime.InferenceSession(folder / FILE, options, providers=["CPUExecutionProvider"])
        for name, folder in folders.items()
    }
    found = {}
    for rows, tokens in SHAPES:
        actions = {name: calling(session, rows, tokens) for name, session in sessions.items()}
        spreads = interleaved_seconds(actions, repeats, torch.device("cpu"))
        seconds = {name: spread.median for name, spread in spreads.items()}
        ratios = {name: value / seconds[UNCUT] for name, value in seconds.items()}
        found[f"{rows} x {tokens}"] = {"seconds": seconds, "ratios": ratios}
        print(f"{rows} x {tokens}:", {name: round(value, 3) for name, value in ratios.items()}, flush=True)
    return found


def calling(session: onnxruntime.InferenceSession, rows: int, tokens: int) -> Action:
    """One call of a graph on random tokens."""
    ids = torch.randint(1000, 8000, (rows, tokens), generator=torch.Generator().manual_seed(0))
    lengths = (tokens - 3 * torch.arange(rows)).clamp(min=4)
    mask = (torch.arange(tokens) < lengths[:, None]).long()
    given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    feed = {one.name: given[one.name].numpy() for one in session.get_inputs()}
    return lambda: session.run(None, feed)


def metrics(light: Path, described: dict[str, Any], graphs: dict[str, Graph]) -> dict[str, dict[str, float]]:
    """What the graphs of the cut model reach on its task."""
    record, tokenizer = TaskRecord.read(described["task"], light), open_tokenizer(light)
    task, training = record.validation(None), record.training(None)
    return {name: evaluate_model(graph, tokenizer, task, training) for name, graph in graphs.items()}


if __name__ == "__main__":
    main()
