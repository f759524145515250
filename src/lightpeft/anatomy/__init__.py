"""The only room that knows architectures: where heads, neurons and their linears live."""

from lightpeft.anatomy.discovery import FUSED_LAYOUTS, UNPROBED
from lightpeft.anatomy.families import DECODERS, FAMILIES
from lightpeft.anatomy.layer_form import LayerForm, hidden_in, hidden_of, with_hidden
from lightpeft.anatomy.model import (
    attribute_owner,
    base_of,
    find_anatomy,
    layer_modules,
    lowest_stack,
    own_config,
    stacks_of,
)
from lightpeft.anatomy.rows import linear_at
from lightpeft.anatomy.units import CROSS, Anatomy, HeadInput, Layer, Rows, Units
from lightpeft.anatomy.verdict import Verdict, attach_verdict, part_key, verdict_of

__all__ = [
    "CROSS",
    "DECODERS",
    "FAMILIES",
    "FUSED_LAYOUTS",
    "UNPROBED",
    "Anatomy",
    "HeadInput",
    "Layer",
    "LayerForm",
    "Rows",
    "Units",
    "Verdict",
    "attach_verdict",
    "attribute_owner",
    "base_of",
    "find_anatomy",
    "hidden_in",
    "hidden_of",
    "layer_modules",
    "linear_at",
    "lowest_stack",
    "own_config",
    "part_key",
    "stacks_of",
    "verdict_of",
    "with_hidden",
]
