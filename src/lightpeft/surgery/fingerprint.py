"""A short name for the exact weights of a base, to refuse another base later."""

import hashlib

import torch
from torch import Tensor, nn

from lightpeft.anatomy import base_of
from lightpeft.wrapping import base_parameters

SAMPLES = 512


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over name, shape, dtype and up to 512 evenly spaced values of each encoder parameter.

    Embeddings and layers count. What fine-tuning may change does not: poolers and heads on top, biases
    (`bias="all"`), copies of modules, and what PEFT added. Call it on the uncut model.
    """
    base = base_of(model)
    digest = hashlib.sha256(base.config.model_type.encode())
    for name, parameter in base_parameters(base.base_model).items():
        if name.startswith("pooler.") or name.endswith(".bias"):
            continue
        digest.update(f"{name}|{tuple(parameter.shape)}|{parameter.dtype}|".encode())
        digest.update(_sample(parameter.detach()))
    return digest.hexdigest()


def _sample(values: Tensor) -> bytes:
    flat = values.flatten()
    step = max(1, flat.numel() // SAMPLES)
    return flat[::step][:SAMPLES].cpu().contiguous().view(torch.uint8).numpy().tobytes()
