"""Clean modules to compare with: what a scan measured of them, as one JSON file."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightpeft.audit.errors import AuditError
from lightpeft.audit.marks import require_clean
from lightpeft.audit.scan.measured import Measured, measure_module
from lightpeft.audit.scan.statistics import deviations
from lightpeft.audit.scan.texts import ScanTexts
from lightpeft.errors import LightPeftError
from lightpeft.files import read_json, save_json
from lightpeft.outputs import Output

FORMAT = 2
LEAST = 3
"""Modules."""


@dataclass(frozen=True)
class Reference:
    """Measurements of clean modules of one form on one base, with the same texts.

    Raises:
        AuditError: fewer than `LEAST`, or of different bases, forms or statistics.
    """

    texts: str
    """Digest of the texts."""
    modules: tuple[Measured, ...]

    def __post_init__(self) -> None:
        if len(self.modules) < LEAST:
            raise AuditError(
                f"a reference needs at least {LEAST} clean modules, found {len(self.modules)}; an "
                "error rate of alpha needs 1/alpha - 1."
            )
        for module in self.modules:
            _check_same(self.modules[0], module, "the modules of a reference")

    def check_fits(self, module: Measured, texts: ScanTexts) -> None:
        """Refuse what the reference says nothing about.

        Raises:
            AuditError: another base, form or other texts.
        """
        _check_same(self.modules[0], module, "module and reference")
        if texts.digest != self.texts:
            raise AuditError(
                f"the reference was made with other texts than {texts.name}; give the same task and data, or "
                "make a reference with these."
            )

    def weights_score(self, statistics: dict[str, float]) -> tuple[float, str]:
        """The largest |z| of a module's statistics, and which it is."""
        return _largest(statistics, [module.statistics for module in self.modules])

    def p_of_weights(self, score: float) -> float:
        """Conformal p-value of a `weights_score`, each reference compared with the others."""
        statistics = [module.statistics for module in self.modules]
        others = [
            _largest(one, [*statistics[:row], *statistics[row + 1 :]])[0]
            for row, one in enumerate(statistics)
        ]
        return p_value(score, others)

    def p_of_behaviour(self, score: float) -> float:
        """Conformal p-value of a behaviour score."""
        return p_value(score, [module.behaviour for module in self.modules])

    def save(self, path: Path) -> None:
        """Write it as JSON, all or nothing."""
        first = self.modules[0]
        modules = [{"statistics": one.statistics, "behaviour": one.behaviour} for one in self.modules]
        head = {"format": FORMAT, "base": first.base, "form": first.form, "texts": self.texts}
        save_json(path, head | {"modules": modules}, Output.REFERENCE)

    @classmethod
    def load(cls, path: Path) -> "Reference":
        """Read what `save` wrote; nothing is guessed.

        Raises:
            CheckpointError: missing, or no JSON object.
            AuditError: no reference, or numbers that are not finite.
        """
        value = read_json(path)
        try:
            if value["format"] != FORMAT:
                raise AuditError(f"its format is {value['format']!r}, expected {FORMAT}")
            base, form = str(value["base"]), dict(value["form"])
            return cls(str(value["texts"]), tuple(_module(base, form, one) for one in value["modules"]))
        except (KeyError, TypeError, ValueError, AttributeError, LightPeftError) as error:
            raise AuditError(f"{path} is not a scan's reference: {error}") from error


def make_reference(folders: Sequence[str | Path], base: str, texts: ScanTexts) -> Reference:
    """Measure clean modules of the same form, base and task, such as you trained yourself.

    Raises:
        CheckpointError: one is marked as poisoned, or cannot be loaded.
        AuditError: see `Reference`.
    """
    for folder in folders:
        require_clean(folder)
    return Reference(texts.digest, tuple(measure_module(folder, base, texts) for folder in folders))


def p_value(score: float, references: Sequence[float]) -> float:
    """Conformal p-value (Vovk et al. 2005): at least 1 / (n + 1), whatever the score.

    At most alpha of clean modules, drawn as the references were, have one of alpha or less.
    """
    return (1 + sum(other >= score for other in references)) / (len(references) + 1)


def _largest(statistics: dict[str, float], others: Sequence[dict[str, float]]) -> tuple[float, str]:
    found = deviations(statistics, others)
    name = max(found, key=lambda key: abs(found[key]))
    return abs(found[name]), name


def _check_same(one: Measured, other: Measured, what: str) -> None:
    for name in ("base", "form"):
        mine, theirs = getattr(one, name), getattr(other, name)
        if mine != theirs:
            raise AuditError(f"{what} differ in their {name}: {mine} and {theirs}.")
    if one.statistics.keys() != other.statistics.keys():
        odd = sorted(one.statistics.keys() ^ other.statistics.keys())
        raise AuditError(f"{what} differ in the modules they have: {odd[0]} is of one only.")


def _module(base: str, form: dict[str, Any], value: dict[str, Any]) -> Measured:
    statistics = {str(name): float(number) for name, number in value["statistics"].items()}
    behaviour = float(value["behaviour"])
    if not all(math.isfinite(number) for number in (*statistics.values(), behaviour)):
        raise ValueError("numbers must be finite")
    return Measured(base, form, statistics, behaviour)
