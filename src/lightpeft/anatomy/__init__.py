"""The only room that knows architectures: where heads, neurons and their linears live."""

from lightpeft.anatomy.families import FAMILIES, Family
from lightpeft.anatomy.model import (
    Anatomy,
    AttentionSite,
    FFNSite,
    Layer,
    base_of,
    find_anatomy,
    is_plain_linear,
    layer_modules,
    linear_at,
)

__all__ = [
    "FAMILIES",
    "Anatomy",
    "AttentionSite",
    "FFNSite",
    "Family",
    "Layer",
    "base_of",
    "find_anatomy",
    "is_plain_linear",
    "layer_modules",
    "linear_at",
]
