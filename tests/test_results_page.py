"""docs/results.md says what the committed cells say; if not: python -m scripts.results_page --write."""

from scripts.results_page import BLOCK, PAGE, written


def test_the_tables_are_those_of_the_cells() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert BLOCK.search(text)
    assert written(text) == text
