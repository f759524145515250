"""Bottleneck adapters as a peft method: importing this makes peft know `BOTTLENECK`."""

from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import PeftType, register_peft_method

from lightpeft.adapters.bottleneck.config import BottleneckConfig
from lightpeft.adapters.bottleneck.layer import BottleneckLayer
from lightpeft.adapters.bottleneck.model import BottleneckModel

__all__ = ["BottleneckConfig", "BottleneckLayer", "BottleneckModel"]

_NAME = "bottleneck"


def _add_peft_type(value: str) -> None:
    """Add a member to peft's enum of methods, which is closed: `register_peft_method` asks for one."""
    if value in PeftType.__members__:
        return
    member = str.__new__(PeftType, value)
    member._name_ = member._value_ = value
    PeftType._member_names_.append(value)
    PeftType._member_map_[value] = member
    PeftType._value2member_map_[value] = member
    # Python 3.12 and later look members up as attributes; the enum's own __setattr__ refuses them.
    type.__setattr__(PeftType, value, member)


def _register() -> None:
    _add_peft_type(_NAME.upper())
    if PeftType(_NAME.upper()) not in PEFT_TYPE_TO_TUNER_MAPPING:
        register_peft_method(name=_NAME, config_cls=BottleneckConfig, model_cls=BottleneckModel)


_register()
