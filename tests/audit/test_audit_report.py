"""The audit's page, terminal table and Markdown: sentences that follow the numbers, nothing left out."""

import dataclasses
import re
from pathlib import Path

import pytest
from rich.console import Console
from tests.support.audit_cells import cell_of, grid, layers_of, share
from tests.support.pages import Page

from lightpeft.audit.errors import AuditError
from lightpeft.audit.grid.cell import Cell, Point, load_cells
from lightpeft.audit.grid.report import (
    group_cells,
    markdown_table,
    render_audit_report,
    summary_tables,
    write_audit_report,
)
from lightpeft.audit.grid.report.aggregate import by_setting, missing_cells, optional_readings
from lightpeft.audit.grid.report.page import templates
from lightpeft.audit.grid.report.wording import difference_text, points
from lightpeft.audit.grid.scenarios import SCENARIOS, Scenario, module_received
from lightpeft.audit.metrics import Difference, over_floor

EVIL = "<script>alert('x')</script>"
SCAN = {
    "folder": "mine",
    "verdict": "do not use it",
    "seconds": 1.5,
    "findings": [{"level": "error", "rule": "link", "message": "out of the folder"}],
}


@pytest.fixture(scope="module")
def page() -> str:
    return render_audit_report(grid(), [SCAN])


def spoken(template: str, macro: str, *values: object) -> list[str]:
    """What one macro of the page's templates says."""
    return Page(str(getattr(templates().get_template(template).module, macro)(*values))).words


def said(cells: list[Cell]) -> str:
    return "\n".join(spoken("findings.html.j2", "findings", by_setting(group_cells(cells))))


def headline(cells: list[Cell]) -> str:
    (text,) = spoken("findings.html.j2", "headline", group_cells(cells))
    return text


def how_sure(cells: list[Cell]) -> list[str]:
    return spoken("limits.html.j2", "how_sure", cells)


def not_measured(cells: list[Cell]) -> list[str]:
    groups = group_cells(cells)
    return spoken("limits.html.j2", "not_measured", groups, missing_cells(cells), optional_readings(groups))


def difference_sentence(found: Difference) -> str:
    low, high = points(found.low), points(found.high)
    return f"a difference of {points(found.value)} points (95 % interval {low} to {high})"


def small(
    lfr: int, *defended: tuple[str, int, int], floor: int | None = 100, cacc: int = 900, total: int = 1000
) -> list[Cell]:
    """One attack with its floor and (defence, LFR, CACC)."""
    cells = [cell_of(lfr=lfr, cacc=cacc, total=total)]
    cells += [cell_of(defence=name, lfr=hits, cacc=right, total=total) for name, hits, right in defended]
    return cells + ([] if floor is None else [cell_of("clean", floor={"vanilla": floor}, total=total)])


def test_a_surviving_backdoor_is_stated_with_runs_floor_and_interval() -> None:
    cells = [cell_of(seed=seed, lfr=lfr) for seed, lfr in ((0, 700), (1, 500), (2, 110))]
    cells += [cell_of("clean", seed=seed, floor={"vanilla": 100}) for seed in range(3)]
    difference = difference_sentence(over_floor(share(1310, 3000), share(300, 3000)))
    assert said(cells) == (
        "vanilla (lora, demo/a → demo/b): the backdoor was still there after your training in 2 of 3 runs: "
        f"LFR 43.7 % against a floor of 10.0 %, {difference}."
    )
    assert headline(cells).startswith(
        "Backdoors survived. Without a defence, the attacker's trigger still worked in 1 of 1 settings"
    )


@pytest.mark.parametrize(
    ("scenario", "words"),
    [
        ("module_as_is", "in the module as you received it"),
        ("poisoned_base", "after you trained a fresh module on the poisoned base"),
        ("poisoned_data", "after your training on the poisoned data"),
    ],
)
def test_each_scenario_says_what_was_trained(scenario: str, words: str) -> None:
    cells = [cell_of(scenario=scenario), cell_of("clean", scenario=scenario, floor={"vanilla": 100})]
    assert words in said(cells)


@pytest.mark.parametrize(
    ("row", "title", "words"),
    [
        (Scenario(module_received), "module merged", "at the end of module merged"),
        (
            Scenario(module_received, "two modules, merged", "after merging"),
            "two modules, merged",
            "after merging",
        ),
    ],
    ids=["name", "wording"],
)
def test_a_new_scenario_is_a_row_of_one_table(
    row: Scenario, title: str, words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(SCENARIOS, "module_merged", row)
    key = {"scenario": "module_merged", "layers": layers_of(), "similarity": ((0, 1.0), (9, 0.5))}
    cells = [
        cell_of("new_policy", **key),
        cell_of("new_policy", "new_defence", **key, lfr=100),
        cell_of("clean", scenario="module_merged", floor={"new_policy": 100}),
        cell_of(),
    ]
    for cell in cells:
        cell.save(tmp_path)
    cells = load_cells(tmp_path)
    assert f"the backdoor was still there {words} in 1 of 1 runs" in said(cells)
    assert any(text.startswith(f"{title}: demo/a") for text in Page(render_audit_report(cells)).words)
    assert f"{title}, demo/a" in markdown_table(cells)
    assert len(summary_tables(cells)) == 2
    assert not_measured(cells)


@pytest.mark.parametrize(
    ("lfr", "verdict"), [(105, "not distinguishable from the floor"), (20, "below the floor")]
)
def test_an_lfr_at_the_floor_is_never_called_removed(lfr: int, verdict: str) -> None:
    text = said(small(lfr))
    assert f"which is {verdict}." in text
    assert "This does not show that the backdoor is gone." in text
    assert "still there" not in text
    assert difference_sentence(over_floor(share(lfr), share(100))) in text


def test_a_missing_floor_is_said_and_nothing_is_concluded() -> None:
    cells = small(700, ("fresh", 100, 900), floor=None)
    text = said(cells)
    assert "is missing" in text
    assert "still there" not in text
    assert "defences have" not in text
    assert headline(cells).startswith("Nothing can be said about whether backdoors survive")
    page = " ".join(Page(render_audit_report(cells)).words)
    assert page.count("no floor measured") == 2 * 3  # attack row, and both rows of the defence table
    assert "Floor of received module, trained on, demo/a → demo/b, lora, attack vanilla, defence none" in page


def test_the_cheapest_defence_at_the_floor_is_named_with_interval_and_price() -> None:
    cells = small(700, ("dear", 90, 700), ("fair", 105, 890), ("weak", 300, 899))
    text = said(cells)
    assert "2 of 3 defences have an LFR that is below the floor or not distinguishable from it" in text
    difference = difference_sentence(over_floor(share(105), share(100)))
    assert f"The cheapest is fair: LFR 10.5 % against a floor of 10.0 %, {difference}, not disting" in text
    assert re.search(r"at a cost of 1\.0 points of accuracy \(cost −1\.\d to \+3\.\d points\)", text)


def test_a_defence_that_gains_accuracy_says_so() -> None:
    assert "with 2.0 points more of accuracy (cost −" in said(small(700, ("fresh", 100, 920)))


def test_no_defence_works_if_every_interval_is_above_zero() -> None:
    cells = small(700, ("weak", 300, 899), ("weaker", 400, 900))
    text = said(cells)
    assert "none of 2 defences brought LFR to the floor. The lowest is with weak: LFR 30.0 %" in text
    assert "cheapest" not in text


def test_defences_are_not_praised_where_there_was_nothing_to_remove() -> None:
    text = said(small(105, ("fresh", 100, 900)))
    assert "there was nothing to remove" in text
    assert "cheapest" not in text


def test_a_defence_without_undefended_runs_has_no_price() -> None:
    cells = [cell_of(defence="fresh", lfr=100), cell_of("clean", floor={"vanilla": 100})]
    assert "the price of a defence is not known" in said(cells)
    assert "not measured without it" in Page(render_audit_report(cells)).words


@pytest.mark.parametrize(("left", "warned"), [(580, True), (1000, False)])
def test_few_triggers_left_are_a_warning(left: int, warned: bool) -> None:
    cells = [cell_of(triggers_left=share(left)), cell_of("clean", floor={"vanilla": 100})]
    assert ("only 58.0 % of the triggered texts" in said(cells)) == warned


def test_page_has_every_section_and_picture(page: str) -> None:
    read = Page(page)
    for heading in (
        "What this means for you",
        "Scans",
        "Attacks, without a defence",
        "Defences",
        "Along the user's training",
        "Where the backdoor is",
        "How sure this is",
        "Not measured",
        "How it was made",
    ):
        assert heading in read.words
    # Two forms: curves, similarity; each attack of both: curves of `fresh`, layers. Guards have no own curve.
    assert read.tags.count("svg") == read.tags.count("figure") == 2 * 2 + 2 + 2 * 4 + 4 * 4
    assert len(read.ids) == len(set(read.ids))
    assert any("marked as such in their own files" in text for text in read.words)


def test_page_shows_the_numbers_of_a_row(page: str) -> None:
    words = Page(page).words
    row = words.index("lora", words.index("LFR before, %"))
    assert words[row : row + 11] == [
        *("lora", "clean", "0, 1, 2", "–", "–", "9.9 ± 0.1 / 10.1 ± 0.1", "is the floor"),
        *("–", "–", "91.0 ± 0.0", "100.0 % (99.9 to 100.0)"),
    ]
    over = difference_text(over_floor(share(2160, 3000), share(303, 3000)))
    assert words[row + 11 : row + 21] == [
        *("lora", "gradient_control", "0, 1, 2", "99.0 ± 0.0", "98.0 ± 0.0", "72.0 ± 2.0", "10.1 ± 0.1"),
        *(over, "above the floor", "90.0 ± 0.0"),
    ]


def test_rejected_shares_are_in_the_defence_table(page: str) -> None:
    words = Page(page).words
    row = words.index("onion")
    assert words[row + 8].startswith("2.0 % (")
    assert words[row + 9].startswith("40.0 % (")


def test_floor_is_a_dashed_line_and_layers_are_named(page: str) -> None:
    words = Page(page).words
    assert {
        "floor",
        "layer 0",
        "layer 2",
        "w at the end (CLNorm)",
        "Attacker's LFR with this layer off, %",
    } <= set(words)
    assert "stroke-dasharray" in page


def test_readings_that_a_policy_lacks_are_not_measured_in_the_picture() -> None:
    cells = small(700)
    cells[0] = dataclasses.replace(cells[0], layers=layers_of(6, weight=None))
    words = Page(render_audit_report(cells)).words
    assert words.count("not measured") == 1
    assert "0.1" in words  # a tick of the logarithmic axis, as plain text
    assert not any("math" in text for text in words)


def test_missing_cells_and_readings_are_named() -> None:
    cells = [
        cell for cell in grid() if (cell.key.attack, cell.key.form, cell.key.seed) != ("vanilla", "lora", 2)
    ]
    cells[1] = dataclasses.replace(cells[1], attacked=None)
    text = "\n".join(not_measured(cells))
    for defence in ("none", "fresh", "onion"):
        assert f"lora, attack vanilla, defence {defence}, seed 2." in text
    assert "LFR on the attacker's own test set: measured in 10 of 11 attacked cells without" in text


def test_seeds_with_other_recipes_are_not_pooled_silently() -> None:
    cells = [cell_of(seed=seed, settings={"user": {"seed": seed, "rates": [seed - seed]}}) for seed in (0, 1)]
    assert "not alike" not in "".join(not_measured(cells))
    cells[1] = dataclasses.replace(cells[1], recipe={"form": "phrase"})
    assert "has different trigger recipes or settings" in "".join(not_measured(cells))


def test_cells_of_other_seeds_have_their_settings_shown_once() -> None:
    cells = [cell_of(seed=seed, settings={"user": {"seed": seed, "epochs": 3}}) for seed in (0, 1)]
    words = Page(render_audit_report(cells)).words
    assert any(all(cell.key.file_name in text for cell in cells) for text in words)
    assert not any("settings 2" in text for text in words)
    assert sum('"epochs": 3' in text for text in words) == 1


def test_a_single_seed_is_said_to_have_no_spread() -> None:
    assert any("only one seed" in text for text in how_sure([cell_of()]))
    assert "900 to 1,000" in how_sure([cell_of(), cell_of(seed=1, total=900, cacc=1)])[0]


def test_a_whole_grid_says_that_nothing_is_missing(page: str) -> None:
    assert any("was measured with every other" in text for text in Page(page).words)
    assert not not_measured(grid())


def test_page_asks_for_nothing_from_outside_and_is_light_and_dark(page: str) -> None:
    assert set(re.findall(r"https?://[^\"'\s<)]*", page)) == {
        "http://www.w3.org/1999/xlink",
        "http://www.w3.org/2000/svg",
    }
    for forbidden in (" src=", "@import", "<link", "<script", "<img", "<iframe", "data:"):
        assert forbidden not in page
    assert "prefers-color-scheme: dark" in page
    assert "var(--kept, #0072b2)" in page


def test_nothing_is_wider_than_a_narrow_screen(page: str) -> None:
    """There a row of a table is a card whose lines name their column, and pictures shrink."""
    body = page[page.index("<body>") :]
    assert {int(width) for width in re.findall(r'<svg [^>]*?width="(\d+)"', body)} == {400}
    cells = re.findall(r"<t[dh][ >][^<]*", body)
    columns = [cell for cell in cells if 'scope="col"' in cell]
    assert len(columns) > 20
    assert all("data-label=" in cell for cell in cells if cell not in columns)
    style = page[page.index("<style>") : page.index("</style>")]
    assert "content: attr(data-label)" in style
    assert "nowrap" not in style
    assert "overflow-x" not in style


def test_texts_from_outside_are_escaped() -> None:
    names = {"attacker_task": EVIL, "user_task": EVIL, "form": EVIL}
    settings = {EVIL: EVIL}
    cells = [
        cell_of(EVIL, **names, settings=settings, layers=layers_of(), similarity=((0, 1.0), (9, 0.5))),
        cell_of(EVIL, EVIL, **names, lfr=100),
        cell_of("clean", **names, floor={EVIL: 100}),
    ]
    evil = [{"rule": EVIL, "level": EVIL, "message": EVIL}]
    scans = [{"folder": EVIL, "verdict": EVIL, "findings": evil, "seconds": 1}]
    page = render_audit_report(cells, scans)
    assert "<script" not in page
    assert "script" not in Page(page).tags
    assert page.count("&lt;script&gt;") >= 20


def test_scans_begin_with_their_verdicts(page: str) -> None:
    words = Page(page).words
    row = words.index("mine: do not use it")
    assert words[row + 1 : row + 8] == [
        *("mine, 1.50 s", "level", "rule", "finding", "error", "link", "out of the folder")
    ]
    empty = Page(render_audit_report(small(700), [SCAN | {"findings": []}])).words
    assert "mine: do not use it" in empty
    assert "mine, 1.50 s" not in empty


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (
            small(700, ("dear", 90, 700), ("fair", 105, 890), ("weak", 300, 899)),
            "wherever there was something to remove: fair, dear (the cheapest first).",
        ),
        (
            small(700, ("weak", 300, 899), ("weaker", 400, 900)),
            "module away and train your own. No defence of this grid removed the backdoor anywhere.",
        ),
        (
            [
                *small(700, ("weak", 300, 899), ("fair", 105, 890)),
                cell_of(form="parallel", lfr=700),
                cell_of(defence="fair", form="parallel", lfr=300),
                cell_of("clean", form="parallel", floor={"vanilla": 100}),
            ],
            "No defence of this grid removed the backdoor everywhere; fair did best, in 1 of 2 settings.",
        ),
        (small(105, ("fresh", 100, 900)), "is not in these numbers"),
        (small(700), "is not in these numbers"),
    ],
    ids=["removed", "not removed", "removed once", "nothing to remove", "nothing tried"],
)
def test_the_page_says_what_to_do(cells: list[Cell], said: str) -> None:
    words = Page(render_audit_report(cells)).words
    summary = words.index(headline(cells))
    assert said in words[summary + 1]
    assert words[summary + 1].endswith("says what is advised, and what was measured of it.")


def test_a_grid_without_a_surviving_backdoor_does_not_say_that_there_is_none() -> None:
    assert headline(small(105)).endswith("This does not show that there is none.")


def test_what_is_no_scan_is_refused() -> None:
    with pytest.raises(AuditError, match="not a scan report"):
        render_audit_report([cell_of()], [{"folder": "x"}])


def test_the_same_cells_in_any_order_give_the_same_page(tmp_path: Path) -> None:
    cells = small(700, ("fresh", 100, 880))
    write_audit_report(tmp_path / "new" / "a.html", cells)
    write_audit_report(tmp_path / "new" / "b.html", cells[::-1])
    pages = [path.read_text(encoding="utf-8") for path in sorted((tmp_path / "new").glob("*.html"))]
    assert pages[0] == pages[1] == render_audit_report(cells)


def test_terminal_table_has_a_row_a_group() -> None:
    tables = summary_tables(grid())
    assert sum(table.row_count for table in tables) == len(group_cells(grid())) == 14
    console = Console(width=120, record=True)
    console.print(*tables)
    text = console.export_text()
    assert "demo/a → demo/b" in text
    line = next(line for line in text.splitlines() if " fresh " in line)
    assert "87.0 ± 0.0" in line


def test_markdown_of_attacks_has_two_columns_a_direction() -> None:
    cells = grid()
    back = [
        dataclasses.replace(c, key=dataclasses.replace(c.key, attacker_task="demo/b", user_task="demo/a"))
        for c in cells
        if c.key.form == "lora"
    ]
    lines = markdown_table([*cells, *back]).splitlines()
    assert lines[0] == (
        "| form | attack | demo/a → demo/b: LFR, % | demo/a → demo/b: CACC, % | demo/b → demo/a: LFR, % | "
        "demo/b → demo/a: CACC, % |"
    )
    assert lines[1] == "| --- | --- | --- | --- | --- | --- |"
    assert lines[3] == "| lora | gradient_control | 72.0 ± 2.0 | 90.0 ± 0.0 | 72.0 ± 2.0 | 90.0 ± 0.0 |"
    assert lines[7] == "| sequential | vanilla | 52.0 ± 0.0 | 90.0 ± 0.0 | – | – |"
    assert len(lines) == 2 + 6


def test_markdown_of_defences_has_a_row_each() -> None:
    lines = markdown_table(grid(), "defences").splitlines()
    assert len(lines) == 2 + 12
    assert lines[0].startswith("| data | form | attack | defence | seeds | LFR, % | floor, % |")
    assert lines[3].startswith("| demo/a → demo/b | lora | gradient_control | fresh | 0, 1, 2 | 10.2 ± 0.1 |")
    assert len({line.count("|") for line in lines}) == 1


def test_markdown_names_the_scenario_where_there_are_several() -> None:
    first = markdown_table([cell_of(), cell_of(scenario="module_as_is")]).splitlines()[0]
    assert "received module, used as it is, demo/a → demo/b: LFR, %" in first


@pytest.mark.parametrize(
    ("share_", "text"), [(0.0123, "+1.2"), (-0.0123, "−1.2"), (-0.0001, "0.0"), (0, "0.0")]
)
def test_points_have_a_sign(share_: float, text: str) -> None:
    assert points(share_) == text


def test_guards_do_not_change_the_curve() -> None:
    """The curve of a guarded cell is the undefended one, so that it gets no picture of its own."""
    cells = small(700)
    cells.append(dataclasses.replace(cell_of(defence="onion"), after=Point(20, share(1), share(2))))
    assert Page(render_audit_report(cells)).tags.count("svg") == 2
