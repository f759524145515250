"""DeepSpeed, as `accelerate launch` asks for it: set aside until the model is cut, and used from there on."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate.state import AcceleratorState, GradientState
from transformers import Trainer
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from lightpeft.errors import ConfigError
from lightpeft.files import read_json
from lightpeft.processes import TWO_PHASES
from lightpeft.training import require_second_phase

_DEEPSPEED, _FSDP = "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"
_DEEPSPEED_FILE = "ACCELERATE_DEEPSPEED_CONFIG_FILE"


class DeepSpeed:
    """What trains a cut model in parts (ZeRO)."""

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """While this lasts, accelerate sets up DeepSpeed; before and after, DDP."""
        _forget_setup()
        os.environ[_DEEPSPEED] = "true"
        try:
            yield
        finally:
            os.environ.pop(_DEEPSPEED, None)
            unset_hf_deepspeed_config()  # while ZeRO 3 is known of, from_pretrained loads in parts
            _forget_setup()

    def require_in(self, trainer: Trainer) -> None:
        """Refuse a Trainer that would train without it.

        Raises:
            ConfigError: it would.
        """
        if not trainer.is_deepspeed_enabled:
            raise ConfigError("accelerate did not set up DeepSpeed, which was asked for.")


def set_engine_aside() -> DeepSpeed | None:
    """DeepSpeed, where `accelerate launch` was told to use it; from here on, accelerate sets up none.

    Raises:
        ConfigError: it cannot be used here, or FSDP was asked for.
    """
    if _is_on(_FSDP):
        raise ConfigError(f"lightpeft train has no second phase under FSDP. {TWO_PHASES}")
    if not _is_on(_DEEPSPEED):
        return None
    require_second_phase()
    file = os.environ.get(_DEEPSPEED_FILE)
    if file and "scheduler" in read_json(Path(file)):
        raise ConfigError(
            f"{file} has a scheduler of DeepSpeed's, and the schedule has to go on from the first phase. "
            "Leave it out; training.schedule and training.learning_rate are used."
        )
    del os.environ[_DEEPSPEED]
    return DeepSpeed()


def _is_on(switch: str) -> bool:
    return os.environ.get(switch, "").lower() == "true"


def _forget_setup() -> None:
    """Have accelerate set up anew; torch's group of processes stays."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
