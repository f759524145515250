"""Other forms of a light checkpoint, written to a folder of their own."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel

from lightpeft.checkpoint.format import ADAPTER, PRUNING, TENSORS, read_record
from lightpeft.checkpoint.full_size import full_size
from lightpeft.checkpoint.gguf_file import FILE as GGUF_FILE
from lightpeft.checkpoint.gguf_file import check_gguf_extra, require_gguf, save_gguf
from lightpeft.checkpoint.graph import Graph
from lightpeft.checkpoint.load import find_folder, load
from lightpeft.checkpoint.merged import KEPT, save_merged
from lightpeft.checkpoint.onnx_file import check_onnx_extra, save_onnx
from lightpeft.checkpoint.program_file import save_program
from lightpeft.checkpoint.stock import save_stock
from lightpeft.checkpoint.traced import require_traceable
from lightpeft.outputs import MANIFEST, Output, written_folder

_OWN = {PRUNING, TENSORS, ADAPTER, MANIFEST, "adapter_config.json", "README.md"}


def export_merged(
    folder: str | Path, out: str | Path, base: str | Path | PreTrainedModel | None = None
) -> PreTrainedModel:
    """Write the small model with the adapter merged into its weights: no base and no PEFT is needed any more.

    It computes what the light checkpoint computes; `load_merged` builds it.

    Raises:
        CheckpointError: the checkpoint cannot be loaded or merged.
        OutputError: `out` holds something else, or cannot be written.
    """
    directory, target = find_folder(folder), Path(out)
    described = read_record(directory)[1]
    with written_folder(target, Output.MERGED) as beside:
        model = load(directory, base)
        merged = save_merged(model, beside, {key: described.get(key) for key in KEPT})
        _copy_tokenizer(directory, beside)
    return merged


def export_transformers(
    folder: str | Path, out: str | Path, base: str | Path | PreTrainedModel | None = None
) -> PreTrainedModel:
    """Write the small model as an ordinary checkpoint of its architecture, with the adapter merged:
    `AutoModel*.from_pretrained(out)` loads it, without lightpeft and PEFT.

    Needs a plan with equal numbers of heads and of neurons in every layer (`budget.uniform`). What was
    written is loaded and compared before it is put in place.

    Raises:
        CheckpointError: the checkpoint cannot be loaded or merged, or no configuration can say what was cut.
        OutputError: `out` holds something else, or cannot be written.
    """
    directory, target = find_folder(folder), Path(out)
    with written_folder(target, Output.STOCK) as beside:
        model = load(directory, base)
        beside.mkdir(parents=True)
        written = save_stock(model, beside)
        _copy_tokenizer(directory, beside)
    written.config._name_or_path = str(target)
    return written


def export_onnx(
    folder: str | Path,
    out: str | Path,
    base: str | Path | PreTrainedModel | None = None,
    *,
    int8: bool = False,
) -> Graph:
    """Write the small model as `model.onnx`, for any number of texts of any length, with `signature.json`.

    Of any plan. onnxruntime's answers on padded batches of several shapes are compared with the light model's
    before the folder is put in place.

    Args:
        int8: store weights as 8-bit integers, and round what they are multiplied by as it comes; this is not
            what the light checkpoint computes, so measure it.

    Raises:
        ConfigError: a package of the extra `onnx` is not installed.
        CheckpointError: the checkpoint cannot be loaded, or the model not traced.
        OutputError: `out` holds something else, or cannot be written.
    """
    check_onnx_extra()
    return _export_graph(folder, out, base, Output.ONNX, partial(save_onnx, int8=int8))


def export_torch(
    folder: str | Path, out: str | Path, base: str | Path | PreTrainedModel | None = None
) -> Graph:
    """Write the small model as `model.pt2`, which `torch.export.load` reads, with `signature.json`.

    Of any plan, for any number of texts of any length. What was written is loaded, and compared with the
    light model on padded batches of several shapes, before the folder is put in place.

    Raises:
        CheckpointError: the checkpoint cannot be loaded, or the model not traced.
        OutputError: `out` holds something else, or cannot be written.
    """
    return _export_graph(folder, out, base, Output.PROGRAM, save_program)


def _export_graph(
    folder: str | Path,
    out: str | Path,
    base: str | Path | PreTrainedModel | None,
    holds: Output,
    save: Callable[[PeftModel, Path], Graph],
) -> Graph:
    directory = find_folder(folder)
    with written_folder(Path(out), holds) as beside:
        require_traceable(read_record(directory)[1].get("base") or {})
        model = load(directory, base)
        beside.mkdir(parents=True)
        graph = save(model, beside)
        _copy_tokenizer(directory, beside)
    return graph


def export_gguf(
    folder: str | Path, out: str | Path, base: str | Path | PreTrainedModel | None = None
) -> Path:
    """Write a small language model as `model.gguf`, for llama.cpp, with its tokenizer.

    Of any plan of a LLaMA, Mistral or Qwen2: uneven ones as llama.cpp's architecture `deci`. The file's
    tensors are read back; that llama.cpp computes the same is tested, not proved at each export.

    Returns:
        the file.

    Raises:
        ConfigError: a package of the extra `gguf` is not installed.
        CheckpointError: the checkpoint cannot be loaded or merged, or llama.cpp has no such model or
            tokenizer.
        OutputError: `out` holds something else, or cannot be written.
    """
    check_gguf_extra()
    directory, target = find_folder(folder), Path(out)
    with written_folder(target, Output.GGUF) as beside:
        require_gguf(read_record(directory)[1].get("base") or {}, directory)
        model = load(directory, base)
        beside.mkdir(parents=True)
        save_gguf(model, beside, directory)
    return target / GGUF_FILE


def export_full_adapter(
    folder: str | Path, out: str | Path, base: str | Path | PreTrainedModel | None = None
) -> PeftModel:
    """Write a stock PEFT adapter for the uncut base, which needs no lightpeft (bottleneck adapters do).

    It holds what the light checkpoint's adapter learned, also the parts that were folded into the base, and
    zeros where heads and neurons were cut. Those act again in the uncut base, so it computes something else
    than the light checkpoint: measure it.

    Raises:
        CheckpointError: the checkpoint cannot be loaded.
        OutputError: `out` holds something else, or cannot be written.
    """
    directory, target = find_folder(folder), Path(out)
    with written_folder(target, Output.FULL_ADAPTER) as beside:
        model = full_size(directory, base)
        beside.mkdir(parents=True)
        model.save_pretrained(str(beside), save_embedding_layers=False)
        _copy_tokenizer(directory, beside)
    return model


def _copy_tokenizer(source: Path, target: Path) -> None:
    for file in source.iterdir():
        if file.is_file() and file.name not in _OWN:
            shutil.copy(file, target / file.name)
