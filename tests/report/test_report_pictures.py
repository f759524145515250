import dataclasses
import re
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree as ET

import matplotlib as mpl
import pytest
import torch

from lightpeft.config import Budget
from lightpeft.errors import ConfigError
from lightpeft.plan import Plan
from lightpeft.report import (
    Curve,
    Measurement,
    Result,
    curves_pictures,
    heads_picture,
    modules_picture,
    neurons_picture,
    ratios_picture,
    readme_picture,
    scores_picture,
)
from lightpeft.report import figures as drawing
from lightpeft.report.plan_axes import module_grid
from lightpeft.report.run_axes import _mean_curve, _smoothed, curve_colours
from lightpeft.report.score_axes import score_groups
from lightpeft.scores import Scores

NOTHING = Budget(heads=0, neurons=0, modules=0, ranks=0)
SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    """The texts of a picture; fails if it is not well-formed."""
    return ["".join(one.itertext()) for one in ET.fromstring(svg).iter(f"{SVG}text")]


def crosses(svg: str) -> int:
    """How often the cross marker is used."""
    return len(re.findall(r"<use [^>]*stroke: var\(--cut", svg))


def test_heads_map_crosses_what_is_cut(plan: Plan) -> None:
    svg = heads_picture(plan)
    assert "Attention heads: 9 of 12 stay" in texts(svg)
    assert crosses(svg) == 3


def test_neurons_bars_show_the_kept_width(plan: Plan) -> None:
    found = texts(neurons_picture(plan))
    assert "FFN neurons: 33 of 48 stay" in found
    assert found.count("11") == 3


def test_modules_map_shows_ranks_and_removed_modules(plan: Plan) -> None:
    svg = modules_picture(plan)
    found = texts(svg)
    assert crosses(svg) == len(plan.removed_modules) > 0
    assert f"PEFT modules: {len(plan.kept_modules)} of 18 stay, with 18 of 72 ranks" in " ".join(found)
    assert {f"attention.self.{name}" for name in ("query", "key", "value")} <= set(found)


def test_module_grid_has_a_last_row_for_the_rest(
    make_scores: Callable[..., Scores], planned: Callable[..., Plan]
) -> None:
    scores = make_scores(layers=2, places=("q", "v"), extra=("pooler.dense",))
    plan = planned(scores, NOTHING)
    assert module_grid(plan) == (["q", "v", "pooler.dense"], [0, 1, None])
    assert "other" in texts(modules_picture(plan))


def test_many_long_columns_are_slanted(
    make_scores: Callable[..., Scores], planned: Callable[..., Plan]
) -> None:
    places = [f"mixture_of_experts.expert_{number}.up" for number in range(14)]
    svg = modules_picture(planned(make_scores(layers=1, places=places), NOTHING))
    assert places[13] in texts(svg)
    assert "rotate(-35" in svg


def test_score_groups_hold_every_unit_on_its_side(scores: Scores, plan: Plan) -> None:
    heads, neurons, modules, ranks = score_groups(scores, plan)
    assert (len(heads.cut), len(heads.kept)) == (3, 9)
    assert (len(neurons.cut), len(neurons.kept)) == (15, 33)
    assert len(modules.cut) == len(plan.removed_modules)
    assert sorted(modules.kept) == sorted(scores.modules[one.name] for one in plan.kept_modules)
    assert (len(ranks.cut), len(ranks.kept)) == (54, 18)
    assert ranks.line == plan.cutoffs[3].sides == (plan.cutoffs[3].highest_cut, min(ranks.kept))


def test_a_module_that_lost_its_last_rank_counts_as_cut(
    make_scores: Callable[..., Scores], planned: Callable[..., Plan]
) -> None:
    low, high = (f"bert.encoder.layer.0.{name}" for name in "ab")
    drawn = make_scores(layers=1, places=("a", "b"), rank=2)
    ranks = {low: torch.tensor([1.0, 2.0]), high: torch.tensor([3.0, 4.0])}
    scores = dataclasses.replace(drawn, ranks=ranks, modules={low: 9.0, high: 5.0})
    plan = planned(scores, Budget(heads=0, neurons=0, modules=0, ranks=0.5))
    modules, all_ranks = score_groups(scores, plan)[2:]
    assert (modules.kept, modules.cut) == ((5.0,), (9.0,))
    assert (all_ranks.kept, all_ranks.cut) == ((3.0, 4.0), (1.0, 2.0))


def test_no_line_is_drawn_through_scores_that_were_not_compared_as_they_are(
    make_scores: Callable[..., Scores], planned: Callable[..., Plan]
) -> None:
    scores = make_scores(layers=4, places=("attention.self.query",), constant=1.0)
    lowest = dict(zip(scores.modules, (1.2, 0.9, 1.0, 1.1), strict=True))
    scores = dataclasses.replace(scores, modules=lowest)
    budget = Budget(heads=0, neurons=0, modules=0.5, ranks=0, frozen_layers=1)
    plan = planned(scores, budget)
    modules = score_groups(scores, plan)[2]
    assert modules.cut == pytest.approx((1.2, 0.9))
    assert modules.line is None
    assert plan.cutoffs[2].sides == pytest.approx((0.9, 1.0))
    assert "PEFT modules: 2 cut, 2 kept" in texts(scores_picture(score_groups(scores, plan)[2], "x"))


def test_scores_over_decades_are_drawn_on_a_log_scale(scores: Scores, plan: Plan) -> None:
    found = texts(scores_picture(score_groups(scores, plan)[0], "x"))
    assert "score (fisher), log scale" in found
    assert "Heads: 3 cut, 9 kept" in found
    assert any(text.startswith("10⁻") for text in found)


def test_zero_scores_have_a_bin_of_their_own(
    make_scores: Callable[..., Scores], planned: Callable[..., Plan]
) -> None:
    scores = make_scores()
    zeroed = Scores(
        heads=scores.heads,
        neurons=tuple(
            torch.where(torch.arange(16) < 8, torch.zeros(()), values) for values in scores.neurons
        ),
        ranks=scores.ranks,
        modules=scores.modules,
        steps=scores.steps,
        methods=scores.methods,
    )
    assert "0" in texts(scores_picture(score_groups(zeroed, planned(zeroed))[1], "x"))


@pytest.mark.parametrize(
    "shape",
    [
        {"layers": 1},
        {"layers": 1, "heads": 1, "neurons": 1, "rank": 1, "places": ("q",)},
        {"layers": 2, "places": ()},
        {"layers": 34, "heads": 18, "neurons": 4, "rank": 1, "places": ("q",)},
    ],
    ids=["one layer", "one of each", "no modules", "many layers"],
)
def test_edge_cases_are_drawn(
    make_scores: Callable[..., Scores],
    planned: Callable[..., Plan],
    result: Result,
    shape: dict[str, Any],
) -> None:
    scores = make_scores(**shape)
    plan = planned(scores, NOTHING)
    assert plan.cuts_nothing
    heads = sum(layer.head_count for layer in plan.layers)
    assert f"Attention heads: {heads} of {heads} stay" in texts(heads_picture(plan))
    assert crosses(modules_picture(plan)) == 0
    assert f"Heads: 0 cut, {heads} kept" in texts(scores_picture(score_groups(scores, plan)[0], "x"))
    none = "PEFT modules: none" in texts(readme_picture(result, plan))
    assert none == (not plan.modules)


@pytest.mark.parametrize("constant", [0.5, 0.0, -2.0])
def test_equal_scores_are_drawn(
    make_scores: Callable[..., Scores], planned: Callable[..., Plan], constant: float
) -> None:
    scores = make_scores(constant=constant)
    found = texts(scores_picture(score_groups(scores, planned(scores))[0], "x"))
    assert "Heads: 3 cut, 9 kept" in found
    assert "score (fisher)" in found


def test_curves_mark_the_cut(result: Result) -> None:
    loss, accuracy = map(texts, curves_pictures(result))
    for title, found in (("Training loss", loss), ("Validation accuracy", accuracy)):
        assert {title, "plain LoRA, mean of 2", "light PEFT, mean of 2"} <= set(found)
        assert found.count("cut") == 1


def test_long_curves_are_smoothed_from_the_cut_on(make_result: Callable[..., Result]) -> None:
    steps = tuple(range(100))
    curve = Curve("light", "loss", steps, tuple(1.0 if s <= 50 else 0.0 for s in steps), 50)
    assert _smoothed(curve) == list(curve.values)
    assert "light" in texts(curves_pictures(make_result(curves=(curve,)))[0])


def test_no_curves_no_picture(make_result: Callable[..., Result]) -> None:
    assert curves_pictures(make_result(curves=())) == []


def test_every_seed_is_drawn_and_the_mean_is_of_the_steps_that_all_have(
    make_result: Callable[..., Result],
) -> None:
    curves = tuple(
        Curve("light", "loss", (1, 2, 3 + seed), (0.5, 0.4 + seed, 0.1), 1, seed) for seed in range(3)
    )
    assert len(curve_colours(curves)) == 1
    assert _mean_curve(curves) == ([1, 2], pytest.approx([0.5, 1.4]))
    (svg,) = curves_pictures(make_result(curves=curves))
    assert texts(svg).count("light, mean of 3") == 1
    assert len(re.findall(r"stroke: var\(--kept[^\"]*stroke-opacity", svg)) == 3


def test_ratios_are_written_at_their_bars(result: Result, make_result: Callable[..., Result]) -> None:
    assert {"0.65×", "0.22×", "0.70×", "0.55×", "0.62×"} <= set(texts(ratios_picture(result)))
    assert "plain PEFT was not run" in texts(ratios_picture(make_result(vanilla=None)))


def test_a_loss_is_drawn_among_the_ratios(
    result: Result, one_seed: Callable[..., Result], vanilla: Measurement, light: Measurement
) -> None:
    before = dataclasses.replace(vanilla, metric=2.0, metric_name="loss")
    after = dataclasses.replace(light, metric=2.06, metric_name="loss")
    assert {"loss", "1.03×"} <= set(texts(ratios_picture(one_seed(before, after))))
    assert "accuracy" not in texts(ratios_picture(result))


def test_readme_picture_is_one_card(result: Result, plan: Plan) -> None:
    svg = readme_picture(result, plan)
    found = texts(svg)
    assert {"Attention heads: 9 of 12 stay", "Light over plain: less is better"} <= set(found)
    assert "Plan and models of seed 0. Whole run: mean of seeds 0, 1." in found
    assert "var(--" not in svg
    assert "fill: #ffffff" in svg


def test_pictures_are_deterministic_and_stand_alone(scores: Scores, plan: Plan) -> None:
    svg = scores_picture(score_groups(scores, plan)[0], "x")
    assert svg == scores_picture(score_groups(scores, plan)[0], "x")
    assert set(re.findall(r"https?://[^\"]*", svg)) == {
        "http://www.w3.org/1999/xlink",
        "http://www.w3.org/2000/svg",
    }
    root = ET.fromstring(svg)
    assert root.get("role") == "img"
    assert root.get("aria-label")
    ids = [one.get("id") for one in root.iter() if one.get("id")]
    assert len(ids) == len(set(ids))
    assert all(str(name).startswith("scores-") for name in ids)
    used = {one.get("{http://www.w3.org/1999/xlink}href", "#")[1:] for one in root.iter()} - {""}
    assert used | set(re.findall(r"url\(#([^)]*)\)", svg)) <= set(ids)


def test_labels_are_text_whatever_they_hold(make_result: Callable[..., Result]) -> None:
    labels = ["<script>alert(1)</script>", "$x_1$ & \\frac", "_hidden", "模型"]
    curves = tuple(Curve(label, "loss", (1, 2), (0.5, 0.4)) for label in labels)
    (svg,) = curves_pictures(make_result(curves=curves))
    assert "<script" not in svg
    assert {label.strip() for label in texts(svg)} >= set(labels)


def test_matplotlib_is_left_as_it_was(plan: Plan) -> None:
    before = dict(mpl.rcParams)
    mpl.rcParams["text.usetex"] = True
    try:
        heads_picture(plan)
        assert mpl.rcParams["text.usetex"] is True
    finally:
        mpl.rcParams["text.usetex"] = before["text.usetex"]
    assert dict(mpl.rcParams) == before


def test_missing_matplotlib_names_the_extra(monkeypatch: pytest.MonkeyPatch, plan: Plan) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(drawing.importlib, "import_module", missing)
    with pytest.raises(ConfigError, match=r"pip install lightpeft\[report\]"):
        heads_picture(plan)
