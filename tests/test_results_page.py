"""docs/results.md says what the committed cells say; if not: python -m scripts.results_page --write."""

from scripts.results_page import BLOCK, PAGE, written


def test_the_tables_are_those_of_the_cells() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert BLOCK.search(text)
    assert written(text) == text


def test_the_cells_are_of_the_grids_as_they_are() -> None:
    assert "Measured with other settings" not in PAGE.read_text(encoding="utf-8")
