import dataclasses
import importlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from tests.support.pages import Page

from lightpeft.config import Budget
from lightpeft.errors import ConfigError, OutputError
from lightpeft.evidence import Agreement, Evidence
from lightpeft.outputs import RECORD
from lightpeft.plan import Plan
from lightpeft.report import (
    Curve,
    Measurement,
    Result,
    render_report,
    seed_cuts,
    side_by_side,
    write_report,
)
from lightpeft.report import figures as drawing
from lightpeft.scores import Scores

EVIL = "<script>alert('x')</script>"


@pytest.fixture(scope="module")
def page(result: Result, plan: Plan, scores: Scores) -> str:
    return render_report(result, plan, scores)


def test_page_has_every_section(page: str, plan: Plan) -> None:
    read = Page(page)
    for heading in (
        "Sentiment with MiniLM",
        "Side by side",
        "Per seed",
        "Training",
        "What was cut, and why",
        "How to get these numbers again",
        "Environment",
        "Configuration",
    ):
        assert heading in read.words
    assert read.tags.count("svg") == 10
    assert len(read.ids) == len(set(read.ids))
    assert "lightpeft demo --out runs/demo" in read.words
    assert any('"heads": 0.25' in text for text in read.words)
    assert set(plan.reasons) <= set(read.words)


def test_page_shows_the_numbers(page: str) -> None:
    words = Page(page).words
    assert any("65 % of the encoder, 22 % of the PEFT parameters" in text for text in words)
    row = words.index("training step")
    assert words[row + 1 : row + 4] == ["200 ms", "110 ms", "0.55×"]
    mean = words.index("mean ± sd")
    assert words[mean + 1 : mean + 4] == ["0.912 ± 0.003", "0.908 ± 0.003", "−0.4 ± 0.0 points"]
    run = words.index("mean ± sd", mean + 1)
    assert words[run + 1 : run + 3] == ["21.0 ± 1.4 s", "14.7 ± 1.0 s"]


def test_everything_says_which_seeds_it_is_of(page: str) -> None:
    """A number or picture without its seed was the reason why one lucky seed's curves stood beside a mean."""
    read = Page(page)
    headline = next(text for text in read.words if text.startswith("Against plain"))
    assert "0.908 ± 0.003 against 0.912 ± 0.003, seeds 0, 1" in headline
    assert any(
        text.startswith("accuracy and whole run: mean ± standard deviation over seeds") for text in read.words
    )
    assert any(text.startswith("Seeds 0, 1. Thin lines are single seeds") for text in read.words)
    assert any("This is the plan of seed 0, whose model is saved." in text for text in read.words)
    assert sum(text.startswith("Seed 0. Each") for text in read.words) == 3
    assert "Scores of seed 0" in read.words


def test_what_counts_the_same_is_the_same_everywhere(page: str, plan: Plan, result: Result) -> None:
    """One module that lost its last rank: 9 go as a whole, 10 in all."""
    counts = plan.counts
    emptied = counts.modules.cut - plan.cutoffs[2].cut
    text = " ".join(Page(page).words)
    modules, ranks = counts.modules, counts.ranks
    assert f"PEFT modules: {modules.cut} of {modules.total} go" in text
    assert (
        f"PEFT modules: {modules.kept} of {modules.total} stay, with {ranks.kept} of {ranks.total} ranks"
        in text
    )
    assert f"PEFT modules: {modules.cut} cut, {modules.kept} kept" in text
    assert f"ranks: {ranks.cut} of {ranks.total} go" in text
    assert f"Ranks: {ranks.cut} cut, {ranks.kept} kept" in text
    assert f"total {counts.heads.kept}/{counts.heads.total}" in text
    assert f"{modules.kept}/{modules.total} {ranks.kept}/{ranks.total}" in text
    assert (f"and {emptied} with their last rank" in text) == (emptied > 0)
    shown = set(re.findall(r"(\d+) of 18\b", text))
    assert shown <= {str(modules.kept), str(modules.cut)}


@pytest.mark.parametrize("number", ["run_seconds", "train_step_seconds", "inference_seconds"])
def test_a_time_has_one_ratio_on_the_whole_page(
    make_result: Callable[..., Result], vanilla: Measurement, light: Measurement, number: str
) -> None:
    halved = dataclasses.replace(light, **{number: 0.41 * getattr(vanilla, number)})
    result = make_result(light=halved, seeds=(5,), per_seed=(), curves=())
    page = render_report(result)
    assert page.count("0.41×") == 3  # sentence, table, bars
    assert not [text for text in Page(page).words if "samples/s" in text or "2.44×" in text]
    console = Console(width=200, color_system=None)
    with console.capture() as captured:
        console.print(side_by_side(result))
    assert captured.get().count("0.41×") == 1


def test_seeds_that_agree_and_those_that_do_not(
    make_result: Callable[..., Result], make_scores: Callable[..., Scores], planned: Callable[..., Plan]
) -> None:
    plans = [planned(make_scores()) for _ in range(2)]
    words = Page(render_report(make_result(curves=(), seed_cuts=seed_cuts(plans)), plans[0])).words
    row = words.index("heads", words.index("by chance"))
    found = seed_cuts(plans)[0]
    assert words[row + 1 : row + 4] == ["3, 3", str(found.by_all), "0.8"]
    with pytest.raises(
        ConfigError, match=r"the plan is of another run than result\.json, whose first seed cut 3 of 12"
    ):
        render_report(make_result(seed_cuts=seed_cuts(plans)), planned(make_scores(), Budget(heads=0.5)))


def test_what_the_plan_rests_on_is_said_and_weakness_warned_about(result: Result, plan: Plan) -> None:
    weak, firm = (Evidence(20, (Agreement("heads", share, 0.25),)) for share in (0.3, 0.95))
    for evidence in (weak, firm):
        shown = dataclasses.replace(plan, evidence=evidence)
        page = Page(render_report(dataclasses.replace(result, curves=()), shown))
        assert any(f"({evidence.describe()})" in text for text in page.words)
        assert (evidence.weakness() in page.words) == (evidence is weak)


def test_nothing_is_wider_than_a_narrow_screen(page: str) -> None:
    """Pictures shrink with the screen, and none is so wide that its text would be too small there."""
    sizes = [int(width) for width in re.findall(r'<svg [^>]*?width="(\d+)"', page)]
    assert sizes
    assert max(sizes) <= 400
    drawn = page.partition("</style>")[2]
    smallest = min(float(size) for size in re.findall(r"font-size: ([\d.]+)px", drawn))
    assert smallest * 100 / 72 * (400 - 2 * 12) / max(sizes) > 10
    style = page[page.index("<style>") : page.index("</style>")]
    assert "nowrap" not in style
    assert "overflow-x" not in style
    assert "figure svg { display: block; width: 100%; height: auto; }" in style
    assert "white-space: pre-wrap" in style


def test_page_asks_for_nothing_from_outside(page: str) -> None:
    assert set(re.findall(r"https?://[^\"'\s<)]*", page)) == {
        "http://www.w3.org/1999/xlink",
        "http://www.w3.org/2000/svg",
    }
    for forbidden in (" src=", "@import", "<link", "<script", "<img", "<iframe", "data:"):
        assert forbidden not in page
    assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', page))
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))
    assert "default-src 'none'" in page


def test_page_is_light_and_dark_and_labelled(page: str) -> None:
    assert "prefers-color-scheme: dark" in page
    assert "var(--kept, #0072b2)" in page
    assert page.count("<svg ") == page.count('<svg role="img" aria-label="')
    assert '<th scope="row">' in page
    assert '<html lang="en">' in page


def test_texts_from_outside_are_escaped(
    make_result: Callable[..., Result],
    make_scores: Callable[..., Scores],
    planned: Callable[..., Plan],
    vanilla: Measurement,
    light: Measurement,
) -> None:
    scores = make_scores(layers=1, places=("q", EVIL))
    scores = dataclasses.replace(scores, methods=dict.fromkeys(scores.methods, EVIL))
    result = make_result(
        title=EVIL,
        vanilla=dataclasses.replace(vanilla, metric_name=EVIL),
        light=dataclasses.replace(light, metric_name=EVIL),
        curves=(Curve(EVIL, "loss", (1, 2), (0.5, 0.4)), Curve("x", "metric", (1,), (0.5,))),
        environment={EVIL: EVIL},
        config={EVIL: [EVIL]},
        command=EVIL,
    )
    page = render_report(result, planned(scores), scores)
    assert "script" not in Page(page).tags
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 10


def test_page_without_vanilla_plan_and_scores(make_result: Callable[..., Result]) -> None:
    alone = make_result(
        kind="train", vanilla=None, curves=(), per_seed=(), seeds=(), environment={}, command=""
    )
    read = Page(render_report(alone))
    assert "svg" not in read.tags
    assert "plain LoRA" not in read.words
    for heading in ("Per seed", "Training", "What was cut, and why", "Environment"):
        assert heading not in read.words
    assert "110 ms" in read.words


def test_page_with_a_plan_but_no_scores(make_result: Callable[..., Result], plan: Plan) -> None:
    alone = make_result(vanilla=None, curves=())
    assert Page(render_report(alone, plan)).tags.count("svg") == 3


def test_a_seed_without_vanilla_has_no_mean_of_vanilla(make_result: Callable[..., Result]) -> None:
    known = make_result().per_seed[1]
    rows = (
        {"seed": 7, "vanilla": None, "light": 0.906, "vanilla_seconds": None, "light_seconds": 14.0},
        known,
    )
    words = Page(render_report(make_result(seeds=(7, 1), per_seed=rows, curves=()))).words
    seed, mean = words.index("7"), words.index("mean ± sd")
    assert words[seed + 1 : seed + 3] == ["–", "0.906"]
    assert words[mean + 1 : mean + 3] == ["–", "0.908 ± 0.003"]


def test_report_is_written_whole_or_not_at_all(
    result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = dataclasses.replace(result, vanilla=None, curves=())
    target = tmp_path / "new" / "report.html"
    write_report(target, result)
    before = target.read_text(encoding="utf-8")
    assert before == render_report(result)

    def broken(self: Path, *arguments: object, **options: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", broken)
    with pytest.raises(OutputError, match="disk full"):
        write_report(target, result)
    assert target.read_text(encoding="utf-8") == before
    assert sorted(one.name for one in target.parent.iterdir()) == [RECORD, "report.html"]


def test_missing_jinja_names_the_extra(result: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def missing(name: str) -> object:
        if name == "jinja2":
            raise ImportError(name)
        return real(name)

    monkeypatch.setattr(drawing.importlib, "import_module", missing)
    with pytest.raises(ConfigError, match=r"jinja2.*pip install lightpeft\[report\]"):
        render_report(result)
