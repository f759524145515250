import dataclasses
import importlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.support.pages import Page

from lightpeft.errors import ConfigError, OutputError
from lightpeft.outputs import RECORD
from lightpeft.plan import Plan
from lightpeft.report import Curve, Measurement, Result, render_report, write_report
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
    assert read.tags.count("svg") == read.tags.count("figcaption") == 6
    assert len(read.ids) == len(set(read.ids))
    assert "lightpeft demo --out runs/demo" in read.words
    assert any('"heads": 0.25' in text for text in read.words)
    assert set(plan.reasons) <= set(read.words)


def test_page_shows_the_numbers(page: str) -> None:
    words = Page(page).words
    assert any("65 % of the encoder, 22 % of the PEFT parameters" in text for text in words)
    row = words.index("training step")
    assert words[row + 1 : row + 4] == ["200 ms", "110 ms", "0.55×"]
    mean = words.index("mean")
    assert words[mean + 1 : mean + 3] == ["0.912", "0.908"]


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


def test_seed_without_vanilla_has_no_mean(make_result: Callable[..., Result]) -> None:
    rows = ({"seed": 7, "vanilla": None, "light": 0.5}, {"seed": 8, "vanilla": 0.5, "light": 0.7})
    words = Page(render_report(make_result(per_seed=rows, curves=()))).words
    seed, mean = words.index("7"), words.index("mean")
    assert words[seed + 1 : seed + 3] == ["–", "0.500"]
    assert words[mean + 1 : mean + 3] == ["–", "0.600"]


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
