"""docs/architectures.md says what is seen now; if not: python -m scripts.support_table --write."""

import pytest
from scripts.support_table import COLUMNS, PAGE, markdown_row, row

from tests.support.zoo import ANIMALS, Animal


@pytest.mark.parametrize("animal", ANIMALS, ids=lambda animal: animal.name)
def test_the_support_table_is_true(animal: Animal) -> None:
    assert markdown_row(row(animal)) in PAGE.read_text(encoding="utf-8").splitlines()


def test_the_support_table_has_no_other_rows() -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.count(" | ") == len(COLUMNS)]
    assert [line.split(" | ")[0] for line in rows] == ["| architecture", *(f"| {a.name}" for a in ANIMALS)]
