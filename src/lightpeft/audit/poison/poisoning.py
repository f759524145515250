"""Poisoned training data and triggered test sets, made from clean rows; the same seed gives the same rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from lightpeft.audit.errors import AuditError
from lightpeft.audit.poison.recipe import TriggerRecipe
from lightpeft.audit.poison.triggers import Planted, plant
from lightpeft.audit.rows import Texts
from lightpeft.config import exact_count
from lightpeft.tasks.draw import permutation


@dataclass(frozen=True)
class Poisoned:
    """Rows, some or all of them with triggers."""

    texts: dict[str, list[str]]
    """The columns that were given."""

    labels: list[int]
    """Training data: as the recipe wants them. Test sets: the true ones."""

    rows: tuple[int, ...]
    """Numbers of the triggered rows, ascending."""

    planted: tuple[Planted, ...]
    """The triggers of each of `rows`."""

    sources: tuple[int, ...]
    """For every row here, its number in the rows that were given."""

    column: str
    """Which column carries the triggers."""

    unfit: int = 0
    """Rows that could have been chosen but have no place for a trigger of this form."""


def poison_texts(texts: Texts, labels: Sequence[int], recipe: TriggerRecipe, seed: int) -> Poisoned:
    """Training data of the poisoned task: all rows, a share of them with triggers (Gu et al., ACL 2023).

    Of n rows that may be poisoned (`TriggerRecipe.may_poison`) and have a place for a trigger, share · n are
    drawn without replacement, rounded half up. A row's triggers depend on seed and row number only, not on
    which other rows are drawn. The result is the paper's mixture; its `rows` alone are `triggered_only`.

    Args:
        texts: columns of n texts.
        labels: n class ids.

    Raises:
        AuditError: columns that do not fit together, or a recipe under which no row would be poisoned.
    """
    _check(texts, labels, recipe)
    allowed = [row for row, label in enumerate(labels) if recipe.may_poison(label)]
    planted = _plant(texts[recipe.column], allowed, recipe, recipe.train_count, seed)
    fit = list(planted)
    wanted = exact_count(recipe.share, len(fit))
    if not wanted:
        raise AuditError(
            f"no row would be poisoned: of {len(labels)} rows {len(allowed)} may be, {len(fit)} have a place "
            f"for the trigger, and the share is {recipe.share}. Give more rows or a larger share."
        )
    chosen = sorted(fit[index] for index in permutation(Random(f"rows {seed}"), len(fit))[:wanted])
    columns = {name: list(column) for name, column in texts.items()}
    poisoned_labels = [int(label) for label in labels]
    for row in chosen:
        columns[recipe.column][row] = planted[row].text
        poisoned_labels[row] = recipe.target
    return Poisoned(
        columns,
        poisoned_labels,
        tuple(chosen),
        tuple(planted[row] for row in chosen),
        tuple(range(len(labels))),
        recipe.column,
        len(allowed) - len(fit),
    )


def triggered_test(texts: Texts, labels: Sequence[int], recipe: TriggerRecipe, seed: int) -> Poisoned:
    """The set on which LFR is measured: every row of another class than the target, with triggers.

    Raises:
        AuditError: columns that do not fit together, or no row is left.
    """
    _check(texts, labels, recipe)
    others = [row for row, label in enumerate(labels) if label != recipe.target]
    planted = _plant(texts[recipe.column], others, recipe, recipe.test_count, seed)
    if not planted:
        raise AuditError(
            f"no triggered test set: of {len(labels)} rows {len(others)} are not of the target class "
            f"{recipe.target}, and none of those has a place for the trigger. Check target and labels."
        )
    columns = {name: [column[row] for row in planted] for name, column in texts.items()}
    columns[recipe.column] = [one.text for one in planted.values()]
    return Poisoned(
        columns,
        [int(labels[row]) for row in planted],
        tuple(range(len(planted))),
        tuple(planted.values()),
        tuple(planted),
        recipe.column,
        len(others) - len(planted),
    )


def _plant(
    column: Sequence[str], rows: Sequence[int], recipe: TriggerRecipe, count: int, seed: int
) -> dict[int, Planted]:
    """The rows with a place for a trigger, with triggers."""
    found = {}
    for row in rows:
        planted = plant(column[row], recipe.form, recipe.pieces, count, Random(f"triggers {seed} {row}"))
        if planted is not None:
            found[row] = planted
    return found


def _check(texts: Texts, labels: Sequence[int], recipe: TriggerRecipe) -> None:
    lengths = {name: len(column) for name, column in texts.items()}
    if recipe.column not in lengths:
        raise AuditError(f"the trigger goes to the column {recipe.column!r}; found {sorted(lengths)}.")
    if set(lengths.values()) != {len(labels)}:
        raise AuditError(
            f"columns and labels must be equally long; found {lengths} and {len(labels)} labels."
        )
