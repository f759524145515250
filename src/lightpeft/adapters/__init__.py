"""PEFT modules as things that can be scored and cut."""

from lightpeft.adapters.lora import (
    LoraModule,
    active_adapter,
    describe_in_config,
    find_lora_modules,
)

__all__ = ["LoraModule", "active_adapter", "describe_in_config", "find_lora_modules"]
