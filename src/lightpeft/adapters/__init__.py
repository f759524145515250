"""PEFT modules as things that can be scored and cut, and bottleneck adapters, which peft has not."""

from lightpeft.adapters.bottleneck import BottleneckConfig
from lightpeft.adapters.forms import (
    FORMS,
    REFUSED,
    active_adapter,
    active_form,
    adapter_parameters,
    describe_in_config,
    find_followers,
    find_modules,
    form_of,
    limits_of_form,
    type_name,
)
from lightpeft.adapters.view import Follower, Form, PeftModule

__all__ = [
    "FORMS",
    "REFUSED",
    "BottleneckConfig",
    "Follower",
    "Form",
    "PeftModule",
    "active_adapter",
    "active_form",
    "adapter_parameters",
    "describe_in_config",
    "find_followers",
    "find_modules",
    "form_of",
    "limits_of_form",
    "type_name",
]
