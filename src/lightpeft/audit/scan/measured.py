"""What a scan measures of one module, before anything is judged."""

from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel
from peft.utils import CONFIG_NAME
from transformers import PreTrainedTokenizerBase

from lightpeft.adapters import FORMS
from lightpeft.anatomy import base_of
from lightpeft.audit.classifier import Classifier
from lightpeft.audit.errors import AuditError
from lightpeft.audit.metrics import Proportion, clean_accuracy
from lightpeft.audit.module import load_module
from lightpeft.audit.scan.behaviour import Verdict, search_triggers
from lightpeft.audit.scan.insertions import Prober
from lightpeft.audit.scan.own_copy import own_copy
from lightpeft.audit.scan.texts import ScanTexts
from lightpeft.audit.scan.whole_text import Disagreement, disagreements
from lightpeft.files import read_json
from lightpeft.runs import load_tokenizer, pad_as
from lightpeft.runs.limits import position_limit
from lightpeft.surgery import fingerprint

TASK_TYPE = "SEQ_CLS"
TOKENS = 128
"""Of a text that accuracy is measured on."""
SCANNED = tuple(name for name, form in FORMS.items() if form.has_modules)
"""PEFT types with modules that can be looked at one by one."""


@dataclass(frozen=True)
class Copies:
    """The user's own copies that a module is compared with."""

    place: Path
    """Folder where they are kept."""
    seeds: tuple[int, ...] = (0,)
    """One copy each; what all of them do not do is what a suspect does alone."""


@dataclass(frozen=True)
class Measured:
    """What is known of one module."""

    base: str
    """Fingerprint of its base."""
    cacc: Proportion
    """On texts that no copy was taught, of every class as many."""
    candidates: tuple[Verdict, ...]
    """The best ones of the search, judged; see `search_triggers`."""
    disagreements: tuple[Disagreement, ...]
    """The least likely first; see `disagreements`."""
    tokenizer: PreTrainedTokenizerBase


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


def measure_module(folder: str | Path, base: str, texts: ScanTexts, copies: Copies) -> Measured:
    """Load a module on its base and measure it beside the user's own copies; its accuracy first.

    Args:
        base: the user's own choice, folder or hub name.

    Raises:
        CheckpointError: see `load_module`.
        AuditError: it is no classifier that the texts fit, or it or a copy does not know their task.
    """
    check_form(Path(folder))
    model, tokenizer = load_module(folder, base), load_tokenizer(base)
    pad_as(model, tokenizer)
    mark = fingerprint(model)
    cacc = _accuracy("it", model, tokenizer, texts, f"{base} (fingerprint {mark[:12]})")
    own = [own_copy(Path(folder), base, mark, texts, seed, copies.place) for seed in copies.seeds]
    for copy in own:
        _accuracy("your own copy of it", copy.model, tokenizer, texts, base)
    suspect = Prober(model, tokenizer)
    return Measured(
        mark,
        cacc,
        tuple(search_triggers(suspect, own, tokenizer, texts)),
        tuple(disagreements(suspect, [copy.prober for copy in own], tokenizer, texts)),
        tokenizer,
    )


def _accuracy(
    whose: str, model: PeftModel, tokenizer: PreTrainedTokenizerBase, texts: ScanTexts, base: str
) -> Proportion:
    classes = int(base_of(model).config.num_labels or 0)
    if classes < 2 or texts.classes != classes:
        raise AuditError(
            f"its head has {classes} classes, and {texts.name} has {texts.classes}; give data of the "
            "module's own task."
        )
    length = min(TOKENS, position_limit(base_of(model)) or TOKENS)
    chosen = texts.balanced()
    found = clean_accuracy(Classifier(model, tokenizer, length).predict(chosen.texts), chosen.labels)
    chance = max(chosen.labels.count(label) for label in set(chosen.labels)) / len(chosen.labels)
    if found.interval()[0] <= chance:
        raise AuditError(
            f"{whose} is right on {found.value:.0%} of {found.total} clean texts of {texts.name}, on the "
            f"base {base}: no better than chance ({chance:.0%}), so that nothing can be said about it. Give "
            "the base it was trained on, and data of its own task with labels in the same order."
        )
    return found
