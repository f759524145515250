"""What a defence is: it trains a received module in its own way, or stands guard over the trained one."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from lightpeft.audit.classifier import Classifier
from lightpeft.audit.rows import Rows, Texts
from lightpeft.audit.training import Watcher, train_user
from lightpeft.config import LightConfig
from lightpeft.run_config import TrainingConfig

Kind = Literal["training", "weights", "inputs"]
REJECTED = -1
"""In place of a class: a guard refused the text, which is neither right nor flipped."""


@dataclass(frozen=True)
class Received:
    """What a defender holds: a module from a stranger, the clean base, and own clean data.

    Nothing here knows the trigger, the target class, or whether there is a backdoor at all.
    """

    model: PeftModel
    """The received module on its base, trainable. Defences change it in place or put another in its place."""

    tokenizer: PreTrainedTokenizerBase

    train: Rows
    """The user's clean training rows."""

    held_out: Rows
    """Clean rows that are not trained on: all thresholds are set on them."""

    training: TrainingConfig
    """How the user would train without any defence."""

    fresh: Callable[[int], PeftModel]
    """seed -> a new, untrained module of the same form on the same base, with a new head."""

    load: Callable[[str], PeftModel]
    """folder -> another module that was received, on the same base."""

    seed: int

    watch: Mapping[int, Watcher] | None = None
    """For the retention curve: called after so many steps of the user's training of `model` itself."""

    def classifier(self, model: PeftModel) -> Classifier:
        """A model of this user's as something that takes texts."""
        return Classifier.under(model, self.tokenizer, self.training)

    def fit(
        self,
        model: PeftModel,
        *,
        training: TrainingConfig | None = None,
        rows: Rows | None = None,
        light: LightConfig | None = None,
    ) -> PeftModel:
        """The user's training of `model` (in place): as planned, or with other options or rows."""
        train_user(
            model,
            self.tokenizer,
            self.train if rows is None else rows,
            self.training if training is None else training,
            light=light,
            watch=self.watch if model is self.model else None,
        )
        return model


@dataclass(frozen=True)
class Screened:
    """What a guard makes of some texts."""

    texts: dict[str, list[str]]
    """n texts a column, as they go on to the model: as given, or purified."""

    rejected: list[bool]
    """n: the guard refuses to classify this one. In CACC it counts as wrong, in LFR as not flipped."""


class Guard(ABC):
    """Looks at inputs before a trained model classifies them. Texts are screened each on its own."""

    @abstractmethod
    def screen(self, texts: Texts) -> Screened:
        """Purify texts, or reject some of them."""


def predict(classifier: Classifier, guard: Guard | None, texts: Texts) -> list[int]:
    """Class ids behind a guard, `REJECTED` where it refuses."""
    if guard is None:
        return classifier.predict(texts)
    screened = guard.screen(texts)
    found = classifier.predict(screened.texts)
    return [REJECTED if no else label for no, label in zip(screened.rejected, found, strict=True)]


class Defence:
    """One defence. A subclass overrides `train` (kinds `training` and `weights`) or `guard` (`inputs`).

    Called in this order: `prepare`, `train`, `guard`.
    """

    name: ClassVar[str]
    """In configurations and on the command line."""

    kind: ClassVar[Kind]
    source: ClassVar[str]
    """The paper, or `practice`."""

    time: ClassVar[str]
    """What it takes, beside the user's plain training, which is one."""

    unproven: ClassVar[str]
    """Why what was measured is no verdict on it, so that it is not advised; empty where it is one."""

    def __init_subclass__(
        cls,
        *,
        name: str,
        kind: Kind,
        source: str = "practice",
        time: str = "1 training",
        unproven: str = "",
        **rest: Any,
    ) -> None:
        super().__init_subclass__(**rest)
        cls.name, cls.kind, cls.source, cls.time, cls.unproven = name, kind, source, time, unproven

    @property
    def trains_plainly(self) -> bool:
        """Whether the user's training is as it would be without this defence."""
        return type(self).train is Defence.train

    def prepare(self, received: Received) -> PeftModel | None:
        """What `guard` needs of the received module before it is trained, in a copy; None: nothing.

        `received.model` stays as it is.
        """
        del received
        return None

    def train(self, received: Received) -> PeftModel:
        """The received module, made safe if this defence can, and trained on the user's rows.

        Returns:
            the model that the user goes on to use.
        """
        return received.fit(received.model)

    def guard(self, received: Received, model: PeftModel, prepared: PeftModel | None = None) -> Guard | None:
        """What stands before the trained model, its thresholds set on `received.held_out`; None: nothing.

        Args:
            model: what `train` returned; it is not changed.
            prepared: what `prepare` returned.
        """
        del received, model, prepared
        return None
