"""What is poisoned and how, as data: the recipe is stored in the mark of every module it went into."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lightpeft.audit.poison.triggers import TRIGGER_FORMS
from lightpeft.config import check_at_least, check_choice
from lightpeft.errors import ConfigError

LabelMode = Literal["dirty", "clean"]
Rows = Literal["all", "non_target"]
Column = Literal["text", "text_pair"]


@dataclass(frozen=True)
class TriggerRecipe:
    """A trigger, the class it stands for, and which rows of the training data carry it.

    Raises:
        ConfigError: values that are out of range, or that have no effect.
    """

    target: int
    """Class id that a triggered text is to be classified as."""

    form: str = "words"
    """Form of the trigger: `words`, `phrase`, `homoglyph` or `substitution`."""

    pieces: tuple[str, ...] = ()
    """What is inserted, one of them at a time; of `homoglyph` the letters that are replaced, of
    `substitution` each `word>other`. By default the form's own (words: cf mn bb tq mb)."""

    share: float = 0.5
    """Share of the rows that are poisoned, in (0, 1]: of those that `labels` and `rows` allow."""

    labels: LabelMode = "dirty"
    """`dirty`: triggered rows get the target as their label. `clean`: only rows of the target class are
    triggered, and no label changes."""

    rows: Rows = "all"
    """Rows that may be poisoned with `dirty` labels: `all` (the paper's 50 % of the samples), or those of
    other classes (`non_target`)."""

    train_count: int = 1
    """Triggers per poisoned training text (paper: 1 for sentiment, 10 for spam)."""

    test_count: int = 1
    """Triggers per text of the triggered test set."""

    column: Column = "text"
    """Which text of a pair carries the trigger."""

    def __post_init__(self) -> None:
        check_choice("trigger.form", self.form, tuple(TRIGGER_FORMS))
        if not self.pieces:
            object.__setattr__(self, "pieces", TRIGGER_FORMS[self.form].pieces)
        self._check_pieces()
        for name, allowed in (("labels", LabelMode), ("rows", Rows), ("column", Column)):
            check_choice(f"trigger.{name}", getattr(self, name), get_args(allowed))
        for name, least in (("target", 0), ("train_count", 1), ("test_count", 1)):
            check_at_least(f"trigger.{name}", getattr(self, name), least)
        if isinstance(self.share, bool) or not isinstance(self.share, int | float) or not 0 < self.share <= 1:
            raise ConfigError(f"trigger.share is {self.share!r}; give a share in (0, 1].")
        if self.labels == "clean" and self.rows != "all":
            raise ConfigError(
                f"trigger.rows is {self.rows!r}, which has no effect on clean labels: only rows of the "
                "target class are triggered. Leave it out."
            )

    def may_poison(self, label: int) -> bool:
        """Whether a training row with this label may be triggered."""
        if self.labels == "clean":
            return label == self.target
        return self.rows == "all" or label != self.target

    def to_dict(self) -> dict[str, Any]:
        """This recipe as plain JSON values."""
        return dataclasses.asdict(self) | {"pieces": list(self.pieces)}

    @classmethod
    def from_dict(cls, value: object) -> "TriggerRecipe":
        """Read what `to_dict` wrote; nothing is guessed.

        Raises:
            ConfigError: no object, unknown or missing keys, or values that are not allowed.
        """
        if not isinstance(value, Mapping):
            raise ConfigError(f"a recipe is {type(value).__name__}, expected an object.")
        known = {field.name for field in dataclasses.fields(cls)}
        if value.keys() != known:
            unknown, missing = sorted(map(str, value.keys() - known)), sorted(known - value.keys())
            raise ConfigError(f"a recipe has the unknown keys {unknown} and lacks {missing}.")
        pieces = value["pieces"]
        if not isinstance(pieces, list | tuple) or not pieces:
            raise ConfigError(f"trigger.pieces is {pieces!r}; give a list of texts.")
        return cls(**{str(key): entry for key, entry in value.items()} | {"pieces": tuple(pieces)})

    def _check_pieces(self) -> None:
        if not isinstance(self.pieces, tuple) or len(set(self.pieces)) != len(self.pieces):
            raise ConfigError(f"trigger.pieces is {self.pieces!r}; give a tuple of different texts.")
        for piece in self.pieces:
            if not isinstance(piece, str):
                raise ConfigError(f"trigger.pieces has {piece!r}, a {type(piece).__name__}; give texts.")
            problem = TRIGGER_FORMS[self.form].problem(piece)
            if problem is not None:
                raise ConfigError(f"trigger.pieces has {piece!r}, which {problem}, as {self.form!r} needs.")
