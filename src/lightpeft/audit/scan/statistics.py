"""Cheap statistics of every PEFT module's weights, and how far they are from those of clean modules."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TypeGuard

import torch
from peft import PeftModel
from scipy.stats import median_abs_deviation
from torch import Tensor, nn

from lightpeft.adapters import PeftModule, find_modules
from lightpeft.audit.errors import AuditError
from lightpeft.linears import matrix

HEADS = frozenset({"classifier", "score"})
_FLOOR = 0.02
"""Least share of the median that counts as one deviation: few references may agree by chance."""


@torch.no_grad()
def module_statistics(model: PeftModel) -> dict[str, float]:
    """Statistics by `MODULE/NAME`.

    Of a module's update (LoRA: scaling · B A; bottleneck: scaling · up · down, the non-linearity left out):
    `top` (largest singular value / Frobenius norm), `entropy` (of the squared spectrum, over its maximum),
    `norm` (log of the Frobenius norm over that of the base's weight). Of the head: `head/norm_gap` and
    `head/bias_gap`, largest minus smallest over the classes, relative to the mean norm of a class's row.

    Raises:
        AuditError: no head, or values that are not finite.
    """
    found: dict[str, float] = {}
    for module in find_modules(model):
        for name, value in _spectral(*_factors(module), matrix(module.base_linear)).items():
            found[f"{module.name}/{name}"] = value
    found |= _head(model)
    odd = [name for name, value in found.items() if not math.isfinite(value)]
    if odd:
        raise AuditError(f"the statistic {odd[0]} is not finite; the module's weights are damaged.")
    return found


def _factors(module: PeftModule) -> tuple[Tensor, Tensor]:
    """(d_out, r) and (r, d_in), the update is their product."""
    if module.is_linear:
        return module.low_rank_pair(torch.arange(module.rank))
    up, down = (getattr(module.layer, name)[module.adapter] for name in ("bottleneck_up", "bottleneck_down"))
    return up.weight * module.layer.scaling[module.adapter], down.weight


def _spectral(left: Tensor, right: Tensor, base: Tensor) -> dict[str, float]:
    """Of `left @ right` by the QR decompositions of both, which is exact and small."""
    triangles = [torch.linalg.qr(one.float())[1] for one in (left, right.T)]
    values = torch.linalg.svdvals(triangles[0] @ triangles[1].T)
    norm = values.norm().clamp_min(1e-12)
    shares = (values / norm).square().clamp_min(1e-12)
    entropy = -(shares * shares.log()).sum() / max(math.log(len(values)), 1e-12)
    return {
        "top": float(values[0] / norm),
        "entropy": float(entropy),
        "norm": float((norm / base.float().norm()).log()),
    }


def _head(model: PeftModel) -> dict[str, float]:
    heads = [layer for name, layer in model.named_modules() if _is_head(name, layer)]
    if not heads:
        raise AuditError("the module has no linear classification head; only classifiers can be scanned.")
    head = heads[-1]
    norms = head.weight.float().norm(dim=1)
    found = {"head/norm_gap": float((norms.max() - norms.min()) / norms.mean())}
    if head.bias is not None:
        bias = head.bias.float()
        found["head/bias_gap"] = float((bias.max() - bias.min()) / norms.mean())
    return found


def _is_head(name: str, layer: nn.Module) -> TypeGuard[nn.Linear]:
    """The trained copy that PEFT keeps beside the original, or the head itself where there is none."""
    parts = name.split(".")
    return isinstance(layer, nn.Linear) and bool(HEADS & set(parts)) and "original_module" not in parts


def deviations(values: Mapping[str, float], reference: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Robust z of every statistic: (value - median) / (1.4826 · MAD), the MAD not below 2 % of the median.

    Raises:
        AuditError: other statistics than the reference's.
    """
    found = {}
    for name, value in values.items():
        try:
            others = [one[name] for one in reference]
        except KeyError:
            raise AuditError(
                f"the reference has no statistic {name}; it is of modules of another form."
            ) from None
        middle, spread = statistics.median(others), float(median_abs_deviation(others, scale="normal"))
        found[name] = (value - middle) / max(spread, _FLOOR * abs(middle), 1e-6)
    return found
