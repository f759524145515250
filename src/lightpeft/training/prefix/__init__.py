"""What makes the layers below the lowest trained PEFT module cheap after the cut."""

from lightpeft.training.prefix.freeze import Ahead, cache_of, freeze_prefix
from lightpeft.training.prefix.frozen import FrozenPrefix
from lightpeft.training.prefix.row_cache import RowCache
from lightpeft.training.prefix.stack import frozen_layer_names

__all__ = ["Ahead", "FrozenPrefix", "RowCache", "cache_of", "freeze_prefix", "frozen_layer_names"]
