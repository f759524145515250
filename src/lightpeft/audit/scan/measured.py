"""What a scan measures of one module, before anything is compared."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.utils import CONFIG_NAME
from transformers import PreTrainedTokenizerBase

from lightpeft.adapters import FORMS, active_adapter
from lightpeft.anatomy import base_of
from lightpeft.audit.classifier import Classifier
from lightpeft.audit.errors import AuditError
from lightpeft.audit.metrics import Proportion, clean_accuracy
from lightpeft.audit.module import load_module
from lightpeft.audit.scan.behaviour import measure_behaviour
from lightpeft.audit.scan.statistics import module_statistics
from lightpeft.audit.scan.texts import ScanTexts
from lightpeft.files import read_json
from lightpeft.runs import load_tokenizer, pad_as
from lightpeft.runs.limits import position_limit
from lightpeft.surgery import fingerprint

TASK_TYPE = "SEQ_CLS"
TOKENS = 128
"""Of a text that accuracy is measured on."""
SCANNED = tuple(name for name, form in FORMS.items() if form.has_modules)
"""PEFT types with modules that can be looked at one by one."""
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
    cacc: Proportion | None = None
    """On clean texts, of every class as many; None for texts without labels."""


def check_form(folder: Path) -> None:
    """Refuse a module whose behaviour is not looked at.

    Raises:
        AuditError: of a PEFT type that is not supported, or not for classifying texts.
        CheckpointError: its configuration cannot be read.
    """
    config = read_json(folder / CONFIG_NAME)
    kind, task = config.get("peft_type"), config.get("task_type")
    if kind not in SCANNED:
        known = ", ".join(SCANNED)
        raise AuditError(
            f"it is of the PEFT type {kind!r}; what a module does is looked at for {known} only."
        )
    if task not in (None, TASK_TYPE):
        raise AuditError(
            f"it is a module for {task}; only those that classify texts ({TASK_TYPE}) are scanned."
        )


def measure_module(folder: str | Path, base: str, texts: ScanTexts) -> Measured:
    """Load a module on its base and measure it; its accuracy first.

    Args:
        base: the user's own choice, folder or hub name.

    Raises:
        CheckpointError: see `load_module`.
        AuditError: it is no classifier that the texts fit, or it does not know their task.
    """
    check_form(Path(folder))
    model, tokenizer = load_module(folder, base), load_tokenizer(base)
    pad_as(model, tokenizer)
    mark = fingerprint(model)
    cacc = _accuracy(model, tokenizer, texts, f"{base} (fingerprint {mark[:12]})")
    found = measure_behaviour(model, tokenizer, texts)
    return Measured(mark, _form(model), module_statistics(model), found.score, found.classes, cacc)


def _accuracy(
    model: PeftModel, tokenizer: PreTrainedTokenizerBase, texts: ScanTexts, base: str
) -> Proportion | None:
    classes = int(base_of(model).config.num_labels or 0)
    if classes < 2 or (texts.labels and texts.classes != classes):
        raise AuditError(
            f"its head has {classes} classes, and {texts.name} has {texts.classes}; give data of the "
            "module's own task."
        )
    if not texts.labels:
        return None
    length = min(TOKENS, position_limit(base_of(model)) or TOKENS)
    chosen = texts.balanced()
    found = clean_accuracy(Classifier(model, tokenizer, length).predict(chosen.texts), chosen.labels)
    chance = max(chosen.labels.count(label) for label in set(chosen.labels)) / len(chosen.labels)
    if found.interval()[0] <= chance:
        raise AuditError(
            f"it is right on {found.value:.0%} of {found.total} clean texts of {texts.name}, on the base "
            f"{base}: no better than chance ({chance:.0%}), so that nothing can be said about it. Give the "
            "base it was trained on, and data of its own task with labels in the same order."
        )
    return found


def _form(model: PeftModel) -> dict[str, Any]:
    config = model.peft_config[active_adapter(model)]
    sizes = {key: getattr(config, key) for key in _FORM_KEYS if getattr(config, key, None) is not None}
    sizes = {key: list(value) if isinstance(value, tuple) else value for key, value in sizes.items()}
    return {"type": str(getattr(config.peft_type, "value", config.peft_type)), **sizes}
