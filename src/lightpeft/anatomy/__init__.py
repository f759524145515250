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
    stock_of,
)
from lightpeft.anatomy.rows import linear_at
from lightpeft.anatomy.stock import Said, gives_bias, stock_config
from lightpeft.anatomy.units import CROSS, Anatomy, HeadInput, Layer, Rows, Units, together
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
    "Said",
    "Units",
    "Verdict",
    "attach_verdict",
    "attribute_owner",
    "base_of",
    "find_anatomy",
    "gives_bias",
    "hidden_in",
    "hidden_of",
    "layer_modules",
    "linear_at",
    "lowest_stack",
    "own_config",
    "part_key",
    "stacks_of",
    "stock_config",
    "stock_of",
    "together",
    "verdict_of",
    "with_hidden",
]
