"""`lightpeft audit report`: page, table, and folders that are not a grid's."""

from pathlib import Path

import pytest
from tests.support.audit_cells import cell_of, save_all

from lightpeft.cli.main import main


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    cells = [cell_of(), cell_of(defence="fresh", lfr=100), cell_of("clean", floor={"vanilla": 100})]
    return save_all(cells, tmp_path / "cells")


@pytest.mark.parametrize("out", [None, "elsewhere/page.html"])
def test_page_is_written_and_the_numbers_shown(
    folder: Path, tmp_path: Path, out: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    page = folder / "report.html" if out is None else tmp_path / out
    options = [] if out is None else ["--out", str(page)]
    assert main(["audit", "report", str(folder), *options]) == 0
    assert "What this means for you" in page.read_text(encoding="utf-8")
    printed = capsys.readouterr().out
    assert "70.0" in printed
    assert printed.splitlines()[-1] == str(page)


def test_the_folder_of_a_whole_run_has_its_cells_in_a_folder(folder: Path) -> None:
    run = folder.parent
    assert main(["audit", "report", str(run)]) == 0
    assert (run / "report.html").is_file()
    assert not (folder / "report.html").exists()


def test_a_second_report_beside_the_first_is_the_same(folder: Path) -> None:
    assert main(["audit", "report", str(folder)]) == 0
    first = (folder / "report.html").read_bytes()
    assert main(["audit", "report", str(folder)]) == 0
    assert (folder / "report.html").read_bytes() == first


@pytest.mark.parametrize(("content", "message"), [(None, "has no cells"), ('{"format": 7}', "is not a cell")])
def test_other_folders_are_refused(
    tmp_path: Path, content: str | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "a.json").write_text(content, encoding="utf-8")
    assert main(["audit", "report", str(tmp_path)]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "report.html").exists()
