"""The only room that knows architectures: where heads, neurons and their linears live."""

from lightpeft.anatomy.families import FAMILIES
from lightpeft.anatomy.model import (
    attribute_owner,
    base_of,
    find_anatomy,
    layer_modules,
    own_config,
)
from lightpeft.anatomy.rows import linear_at
from lightpeft.anatomy.units import Anatomy, HeadInput, Layer, Rows, Units

__all__ = [
    "FAMILIES",
    "Anatomy",
    "HeadInput",
    "Layer",
    "Rows",
    "Units",
    "attribute_owner",
    "base_of",
    "find_anatomy",
    "layer_modules",
    "linear_at",
    "own_config",
]
