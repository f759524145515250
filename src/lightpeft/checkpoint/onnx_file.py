"""A light model as an ONNX file, for onnxruntime and what is built on it."""

import logging
import math
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from lightpeft.checkpoint.extras import need
from lightpeft.checkpoint.graph import Graph, Run
from lightpeft.checkpoint.traced import INSTEAD, Traced, trace, write_signature
from lightpeft.errors import CheckpointError
from lightpeft.files import folder_bytes

FILE = "model.onnx"

_LARGEST_FILE = 1_500_000_000
"""Bytes of weights from which on they lie beside the graph: a protobuf holds 2 GiB."""

_QUANTISED = ["MatMul", "Gemm", "Gather"]
"""Operators whose weights become integers: linears and embeddings."""

_NOISY = ("torch.onnx", "onnxscript", "onnx_ir", "root")
"""Loggers that tell of every operator of packages that are not there, and of every step of optimising."""


def check_onnx_extra() -> None:
    """Check that what an ONNX export needs is installed.

    Raises:
        ConfigError: a package of the extra `onnx` is not.
    """
    need("onnx", "onnxscript", "onnxruntime", extra="onnx")


def save_onnx(model: PeftModel | PreTrainedModel, folder: Path, *, int8: bool = False) -> Graph:
    """Write a light model as `model.onnx` with `signature.json`, for any number of texts of any length.

    It computes in float32, also what was trained in 16 bits.

    Args:
        model: what `load` gave, whose adapter is merged in place, where it can be; or one without PEFT.
        folder: is there already.
        int8: store weights as 8-bit integers, and round what they are multiplied by as it comes.

    Returns:
        the graph in onnxruntime.

    Raises:
        CheckpointError: it cannot be traced or written in ONNX's operators, or onnxruntime computes something
            else than the light model on batches of several shapes (where int8 is asked for, before that).
    """
    traced = trace(model.float())
    path = folder / FILE
    _write(traced, path)
    run = _runner(path)
    difference = traced.require_same(run, "onnxruntime")
    if int8:
        run = _quantised(path)
        difference = traced.require_same(run, "onnxruntime", tolerance=math.inf)
    write_signature(
        folder, traced, file=FILE, weights="int8" if int8 else "float32", largest_difference=difference
    )
    return Graph(traced.config, traced.inputs, run)


def _write(traced: Traced, path: Path) -> None:
    weights = sum(value.nbytes for value in traced.program.state_dict.values())
    try:
        with _quiet():
            program = torch.onnx.export(
                traced.program,
                input_names=list(traced.inputs),
                output_names=list(traced.outputs),
                dynamic_shapes={name: dict(enumerate(axes)) for name, axes in traced.axes.items()},
                verbose=False,
            )
            assert program is not None
            program.save(str(path), external_data=weights > _LARGEST_FILE)
    except Exception as error:  # whatever the exporter raises
        raise CheckpointError(
            f"torch cannot write the graph in ONNX's operators ({_cause(error)}). {INSTEAD}"
        ) from error


def _cause(error: BaseException) -> str:
    """The first line of what is at the bottom of an error of the exporter, which begins with advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().partition("\n")[0]


def _runner(path: Path) -> Run:
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # of a class that onnxruntime does not show
        raise CheckpointError(f"onnxruntime cannot run the graph ({_cause(error)}). {INSTEAD}") from error
    names = [output.name for output in session.get_outputs()]

    def run(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        arrays = session.run(names, {name: value.cpu().numpy() for name, value in inputs.items()})
        return {name: torch.from_numpy(array) for name, array in zip(names, arrays, strict=True)}

    return run


def _quantised(path: Path) -> Run:
    """Put a file with integer weights in the place of one with floats."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    floats = path.parent / "floats"
    floats.mkdir()
    for file in path.parent.glob(f"{FILE}*"):
        file.rename(floats / file.name)
    with _quiet():
        quantize_dynamic(
            floats / FILE,
            path,
            op_types_to_quantize=_QUANTISED,
            per_channel=True,
            reduce_range=True,  # in 7 bits of 8 sums do not overflow on processors without VNNI
            weight_type=QuantType.QInt8,
            use_external_data_format=folder_bytes(floats) > 4 * _LARGEST_FILE,
        )
    shutil.rmtree(floats)
    return _runner(path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's warnings and log lines, none of which says anything about this model."""
    loggers = [logging.getLogger(name) for name in _NOISY]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
