"""What a scan measures of one module, before anything is compared."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel

from lightpeft.adapters import active_adapter
from lightpeft.anatomy import base_of
from lightpeft.audit.module import load_module
from lightpeft.audit.scan.behaviour import measure_behaviour
from lightpeft.audit.scan.statistics import module_statistics
from lightpeft.audit.scan.texts import ScanTexts
from lightpeft.runs import load_tokenizer
from lightpeft.surgery import fingerprint

_FORM_KEYS = ("r", "form", "size", "use_dora", "sites")


@dataclass(frozen=True)
class Measured:
    """Numbers of one module."""

    base: str
    """Fingerprint of its base."""
    form: dict[str, Any]
    """Type and sizes of its PEFT, JSON values."""
    statistics: dict[str, float]
    behaviour: float
    """Score; see `Behaviour`."""
    classes: tuple[dict[str, Any], ...] = ()
    """Evidence; see `Behaviour`."""


def measure_module(folder: str | Path, base: str | None, texts: ScanTexts) -> Measured:
    """Load a module on its base and measure it.

    Raises:
        CheckpointError: see `load_module`.
        AuditError: it is no classifier that the texts fit.
    """
    model = load_module(folder, base)
    tokenizer = load_tokenizer(base or str(base_of(model).config._name_or_path))
    found = measure_behaviour(model, tokenizer, texts)
    return Measured(fingerprint(model), _form(model), module_statistics(model), found.score, found.classes)


def _form(model: PeftModel) -> dict[str, Any]:
    config = model.peft_config[active_adapter(model)]
    sizes = {key: getattr(config, key) for key in _FORM_KEYS if getattr(config, key, None) is not None}
    sizes = {key: list(value) if isinstance(value, tuple) else value for key, value in sizes.items()}
    return {"type": str(getattr(config.peft_type, "value", config.peft_type)), **sizes}
