"""Write the tables of docs/results.md that are of grids, from the cells that are committed.

    python -m scripts.results_page            # print the page
    python -m scripts.results_page --write    # write it

A table stands between `<!-- cells: GRID.yaml FOLDER -->` and `<!-- end of cells -->`; both paths are from the
repository's root. `tests/test_results_page.py` fails when the page no longer says what the cells say.
"""

import argparse
import re
from pathlib import Path

from lightpeft.bench.grid import QualityGrid
from lightpeft.bench.quality_report import page, read_cells
from lightpeft.cli.options import run_with_options
from lightpeft.outputs import written_beside

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "results.md"
BLOCK = re.compile(r"(<!-- cells: (\S+) (\S+) -->\n).*?(<!-- end of cells -->)", re.DOTALL)


def written(text: str) -> str:
    """The page with every table as the cells have it now."""
    return BLOCK.sub(lambda found: f"{found[1]}\n{_tables(found[2], found[3])}\n{found[4]}", text)


def _tables(config: str, folder: str) -> str:
    grid: QualityGrid = run_with_options(_same, "bench quality", ["--config", str(ROOT / config)])
    return page(grid, read_cells(grid, ROOT / folder))


def _same(grid: QualityGrid) -> QualityGrid:
    return grid


def main() -> None:
    """Print or write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/results.md")
    options = parser.parse_args()
    text = written(PAGE.read_text(encoding="utf-8"))
    if not options.write:
        print(text, end="")
        return
    with written_beside(PAGE) as beside:
        beside.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
