"""A short name for the exact weights of a base, to refuse another base later."""

import hashlib

import torch
from torch import Tensor, nn

from lightpeft.anatomy import base_of

SAMPLES = 512


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over name, shape, dtype and up to 512 evenly spaced values of each encoder parameter.

    Embeddings and layers count; poolers and heads on top, which fine-tuning replaces, do not, nor does
    what PEFT added. Call it on the uncut model.
    """
    base = base_of(model)
    digest = hashlib.sha256(base.config.model_type.encode())
    encoder: nn.Module = base.base_model
    for name, parameter in encoder.named_parameters():
        if ".lora_" in name or name.startswith("pooler."):
            continue
        plain = name.replace(".base_layer", "")
        digest.update(f"{plain}|{tuple(parameter.shape)}|{parameter.dtype}|".encode())
        digest.update(_sample(parameter.detach()))
    return digest.hexdigest()


def _sample(values: Tensor) -> bytes:
    flat = values.flatten()
    step = max(1, flat.numel() // SAMPLES)
    return flat[::step][:SAMPLES].cpu().contiguous().view(torch.uint8).numpy().tobytes()
