"""Train one received module behind one defence, and save what comes out: the audit's defending verb."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from lightpeft.audit.classifier import Classifier
from lightpeft.audit.defences import REJECTED, Defence, Guard, Received, predict
from lightpeft.audit.defences.light_cutting import LightCutting
from lightpeft.audit.errors import AuditError
from lightpeft.audit.marks import read_mark
from lightpeft.audit.metrics import Proportion, clean_accuracy
from lightpeft.audit.module import (
    base_name,
    fresh_module,
    load_module,
    read_base_mark,
    recipe_in_memory,
    save_module,
)
from lightpeft.audit.probes import Flips, Probes
from lightpeft.audit.rows import AuditTask, Texts
from lightpeft.audit.training import check_user_training, train_user
from lightpeft.checkpoint import is_light_checkpoint, save
from lightpeft.run_config import TrainingConfig
from lightpeft.runs import load_tokenizer, outline, pad_as, within_positions
from lightpeft.surgery import record_of
from lightpeft.tasks import class_head


@dataclass(frozen=True)
class Probed:
    """A suspected trigger, and what it does before and after; None where no text was left to flip."""

    probe: str
    received: Flips | None
    """In the module as it was received."""
    undefended: Flips | None
    """After the user's training without the defence."""
    defended: Flips | None
    """Behind the defence; what a guard rejects did not flip."""


@dataclass(frozen=True)
class Defended:
    """A received module after the user's training behind a defence."""

    model: PeftModel
    guard: Guard | None
    classifier: Classifier
    received: Proportion
    """CACC as it was received."""
    undefended: Proportion
    """CACC after the same training without the defence."""
    cacc: Proportion
    """CACC behind the defence; what a guard rejects counts as wrong."""
    rejected: Proportion | None
    """Clean test texts that a guard refused."""
    probed: tuple[Probed, ...] = ()
    """In the order of the probes."""

    def predict(self, texts: Texts) -> list[int | None]:
        """Class ids; None where the guard refuses a text."""
        found = predict(self.classifier, self.guard, texts)
        return [None if label == REJECTED else label for label in found]

    def save(self, folder: Path, tokenizer: PreTrainedTokenizerBase) -> Path:
        """Write the module, marked if it or its base is; a light one as a light checkpoint.

        A fresh module that took the place of a marked one has nothing of it, and is not marked.
        """
        recipe = recipe_in_memory(self.model)
        if self.is_light:
            return save(self.model, folder, tokenizer=tokenizer)
        return save_module(self.model, folder, recipe, tokenizer)

    @property
    def is_light(self) -> bool:
        """Whether the model was cut."""
        return record_of(self.model) is not None


def defend(
    folder: str | Path,
    defence: Defence,
    task: AuditTask,
    training: TrainingConfig,
    base: str | None = None,
    probes: Sequence[str] = (),
) -> Defended:
    """Train a received module on the user's own clean rows, behind a defence and, to compare, without.

    Nothing is known of a trigger here: what the defence does to a backdoor is measured by `audit run` on
    backdoors of one's own, and what it costs is measured here. Of words that are suspected (`probes`), what
    they do is measured here too.

    Args:
        folder: the received module.
        base: folder or hub name of its base, by default the one that it names.
        probes: words or phrases.

    Raises:
        ConfigError: see `check_user_training` and `Probes.of`; or no tokenizer beside the base.
        AuditError: a light checkpoint, which cannot be trained on by a defence; or a module that is marked as
            poisoned under `light_cutting`, whose result could not be saved.
        CheckpointError: see `load_module`.
    """
    directory = Path(folder)
    check_user_training(training)
    if is_light_checkpoint(directory):
        raise AuditError(f"{directory} is cut already; a defence takes the module as it was before.")
    name = base_name(directory, base)
    marked = read_mark(directory) is not None or read_base_mark(name) is not None
    if isinstance(defence, LightCutting) and marked:
        raise AuditError(
            f"{directory} or its base is marked as poisoned, and light checkpoints of such are not written; "
            "measure light_cutting with `audit run`."
        )
    head = class_head(task.class_names)
    tokenizer = load_tokenizer(name)
    training = within_positions(training, outline(name), name)
    probing = Probes.of(probes, task.test, tokenizer, training.tokens)

    def load() -> PeftModel:
        model = load_module(directory, base, head=head, is_trainable=True)
        pad_as(model, tokenizer)
        return model

    plain = load()
    classifier = Classifier.under(plain, tokenizer, training)
    before = clean_accuracy(classifier.predict(task.test.texts), task.test.labels)
    flips = [probing.flips(classifier.predict)]
    train_user(plain, tokenizer, task.train, training)
    undefended = clean_accuracy(classifier.predict(task.test.texts), task.test.labels)
    flips.append(probing.flips(classifier.predict))
    received = Received(
        load(),
        tokenizer,
        task.train,
        task.held_out,
        training,
        lambda seed: fresh_module(directory, base, head=head, seed=seed),
        lambda other: load_module(other, name, head=head),
        training.seed,
    )
    prepared = defence.prepare(received)
    model = defence.train(received)
    guard, behind = defence.guard(received, model, prepared), received.classifier(model)
    found = predict(behind, guard, task.test.texts)
    rejected = None if guard is None else Proportion(found.count(REJECTED), len(found))
    flips.append(probing.flips(partial(predict, behind, guard)))
    return Defended(
        model,
        guard,
        behind,
        before,
        undefended,
        clean_accuracy(found, task.test.labels),
        rejected,
        tuple(Probed(*row) for row in zip(probing.words, *flips, strict=True)),
    )
