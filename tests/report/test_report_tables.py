import dataclasses
from collections.abc import Callable

import pytest
from rich.console import Console
from rich.table import Table
from tests.support.probing import random_scores
from tests.support.zoo import BY_NAME

from lightpeft import find_anatomy, make_plan
from lightpeft.config import Budget
from lightpeft.plan import Plan
from lightpeft.report import Measurement, Result, plan_table, side_by_side, summary
from lightpeft.report.pictures import heads_picture
from lightpeft.report.plan_axes import module_grid
from lightpeft.report.score_axes import score_groups
from lightpeft.report.seeds import SeedCuts, seed_cuts
from lightpeft.report.tables import comparison_rows, seed_rows, seeds_note
from lightpeft.report.units import (
    count,
    difference,
    metric,
    percent,
    seconds,
    seed_names,
    size,
    times,
)
from lightpeft.scores import Scores


def shown(table: Table) -> list[list[str]]:
    """The table's lines as cells."""
    console = Console(width=200, color_system=None)
    with console.capture() as captured:
        console.print(table)
    lines = captured.get().splitlines()
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]


def test_side_by_side_shows_the_numbers(result: Result) -> None:
    assert shown(side_by_side(result)) == [
        ["accuracy", "0.912 ± 0.003", "0.908 ± 0.003", "−0.4 ± 0.0 points"],
        ["whole run", "21.0 ± 1.4 s", "14.7 ± 1.0 s", "0.70×"],
        ["training step", "200 ms", "110 ms", "0.55×"],
        ["estimation step", "–", "250 ms (200 steps)", "1.25×"],
        ["inference/sample", "2.50 ms", "1.56 ms", "0.62×"],
        ["peak memory", "2.00 GB", "1.50 GB", "0.75×"],
        ["encoder parameters", "10.0 M", "6.50 M", "0.65×"],
        ["PEFT parameters", "400 k", "88.0 k", "0.22×"],
        ["checkpoint", "1.60 MB", "400 kB", "0.25×"],
    ]


def test_a_loss_is_shown_as_a_ratio_and_a_difference(
    one_seed: Callable[..., Result], vanilla: Measurement, light: Measurement
) -> None:
    before = dataclasses.replace(vanilla, metric=1.5, metric_name="loss")
    after = dataclasses.replace(light, metric=1.53, metric_name="loss")
    result = one_seed(before, after)
    assert shown(side_by_side(result))[0] == ["loss", "1.500", "1.530", "1.02× (+0.030)"]
    assert "loss +0.030 (1.530 against 1.500, seed 3)." in summary(result)


def test_a_small_loss_is_not_in_points(
    one_seed: Callable[..., Result], vanilla: Measurement, light: Measurement
) -> None:
    before = dataclasses.replace(vanilla, metric=0.5, metric_name="loss")
    after = dataclasses.replace(light, metric=0.45, metric_name="loss")
    assert shown(side_by_side(one_seed(before, after)))[0][3] == "0.90× (−0.050)"


def test_the_table_says_which_seeds_its_numbers_are_of(
    result: Result, one_seed: Callable[..., Result], make_result: Callable[..., Result]
) -> None:
    assert str(side_by_side(result).caption) == seeds_note(result)
    assert seeds_note(result).startswith(
        "accuracy and whole run: mean ± standard deviation over seeds 0, 1; the rest: the models of seed 0."
    )
    assert seeds_note(one_seed()).startswith("All of seed 3:")
    assert "ratio" not in seeds_note(make_result(vanilla=None))
    assert seeds_note(make_result(seeds=(), per_seed=())) == ""


def test_whole_runs_that_were_not_timed_are_left_out(
    one_seed: Callable[..., Result], vanilla: Measurement, light: Measurement
) -> None:
    old = one_seed(*(dataclasses.replace(one, run_seconds=None) for one in (vanilla, light)), seeds=(0, 1))
    assert "whole run" not in [line[0] for line in shown(side_by_side(old))]
    assert "whole run" not in summary(old) + seeds_note(old)


def test_seed_rows_end_in_the_numbers_of_the_first_rows(result: Result) -> None:
    rows = seed_rows(result)
    assert [row.seed for row in rows] == ["0", "1", "mean ± sd"]
    first, run = comparison_rows(result)[:2]
    assert rows[-1][1:] == (first.plain, first.light, first.ratio, run.plain, run.light)
    assert rows[0][1:] == ("0.910", "0.906", "−0.4 points", "20.0 s", "14.0 s")


def test_side_by_side_without_vanilla_has_two_columns(make_result: Callable[..., Result]) -> None:
    lines = shown(side_by_side(make_result(vanilla=None)))
    assert lines[0] == ["accuracy", "0.908 ± 0.003"]
    assert ["training step", "110 ms"] in lines
    assert {len(line) for line in lines} == {2}


def test_markup_in_texts_is_shown_as_it_is(make_result: Callable[..., Result], light: Measurement) -> None:
    renamed = dataclasses.replace(light, metric_name="[red]acc[/red]")
    result = make_result(title="[bold]x[/nonsense]", vanilla=None, light=renamed)
    table = side_by_side(result)
    assert shown(table)[0][0] == "[red]acc[/red]"
    assert str(table.title) == "[bold]x[/nonsense]"


def test_plan_table_adds_up(plan: Plan) -> None:
    lines = shown(plan_table(plan))
    assert [line[0] for line in lines] == ["0", "1", "2", "total"]
    assert lines[0][1:3] == ["3/4", "11/16"]
    assert lines[-1] == ["total", "9/12", "33/48", f"{len(plan.kept_modules)}/18", "18/72"]
    modules = [module for module in plan.modules if ".layer.1." in module.name]
    kept = sum(len(module.ranks) for module in modules)
    assert lines[1][4] == f"{kept}/{sum(module.rank_count for module in modules)}"


def test_a_skipped_layer_is_shown_as_such(
    make_scores: Callable[..., Scores], planned: Callable[..., Plan]
) -> None:
    scores = make_scores()
    plan = planned(scores, Budget(layers=1 / 3))
    lines = shown(plan_table(plan))
    ((row, layer),) = [(number, one) for number, one in enumerate(plan.layers) if one.skipped]
    assert lines[row] == [f"{layer.index} (skipped)", "0/4", "0/16", "0/6", "0/24"]
    assert f"{layer.index} (skipped)" in heads_picture(plan)
    assert [group.line for group in score_groups(scores, plan)[:3]] == [None] * 3
    assert seed_cuts([plan, plan])[-1] == SeedCuts("layers", 3, (1, 1), 1)


def test_plan_table_has_a_row_for_modules_outside_layers(
    make_scores: Callable[..., Scores], planned: Callable[..., Plan]
) -> None:
    plan = planned(make_scores(layers=1, extra=("classifier",)), Budget(0, 0, 0, 0))
    assert shown(plan_table(plan))[1] == ["other", "–", "–", "1/1", "4/4"]


def test_plan_table_without_modules(make_scores: Callable[..., Scores], planned: Callable[..., Plan]) -> None:
    lines = shown(plan_table(planned(make_scores(layers=1, places=()))))
    assert lines[0][3:] == lines[1][3:] == ["–", "–"]


def two_stacks() -> Plan:
    """A plan of BART: encoder, decoder, cross-attention."""
    model = BY_NAME["bart"].with_lora()
    return make_plan(random_scores(model), find_anatomy(model), Budget(heads=0.5, modules=0, ranks=0))


def test_plan_table_keeps_stacks_and_cross_attention_apart() -> None:
    rows = {line[0]: line[1:] for line in shown(plan_table(two_stacks()))}
    assert rows["encoder 0"][0] == rows["decoder 1 cross-attention"][0] == "2/4"
    assert rows["decoder 0"][2] == "6/6"
    assert rows["decoder 0 cross-attention"][1:3] == ["–", "4/4"]
    assert rows["total"][0] == "12/24"


def test_modules_of_every_stack_are_drawn_in_their_own_rows() -> None:
    columns, rows = module_grid(two_stacks())
    assert rows == list(range(6))
    assert "self_attn.q_proj" in columns
    assert "encoder_attn.q_proj" in columns


def test_summary_in_plain_words(result: Result) -> None:
    assert summary(result) == (
        "Against plain LoRA: whole run 0.70×, training step 0.55×, inference time 0.62×, peak memory 0.75×, "
        "65 % of the encoder, 22 % of the PEFT parameters, accuracy −0.4 ± 0.0 points (0.908 ± 0.003 "
        "against 0.912 ± 0.003, seeds 0, 1)."
    )


def test_summary_without_vanilla(make_result: Callable[..., Result]) -> None:
    assert summary(make_result(vanilla=None)) == (
        "The light model reached accuracy 0.908 ± 0.003 (seeds 0, 1) with 6.50 M encoder parameters and "
        "88.0 k PEFT parameters; a training step takes 110 ms, a task is stored in 400 kB."
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (count(0), "0"),
        (count(999), "999"),
        (count(1000), "1.00 k"),
        (count(999_999), "1.00 M"),
        (count(412.34), "412"),
        (count(7_103_232), "7.10 M"),
        (size(512), "512 B"),
        (size(41_000_000), "41.0 MB"),
        (size(10**16), "10000 TB"),
        (seconds(0), "0 µs"),
        (seconds(0.0000005), "0.50 µs"),
        (seconds(0.0123), "12.3 ms"),
        (seconds(75), "75.0 s"),
        (times(None), "–"),
        (times(0.5512), "0.55×"),
        (percent(0.652), "65 %"),
        (metric(0.91234), "0.912"),
        (metric(33.21), "33.2"),
        (difference("accuracy", 0.908, 0.912), "−0.4 points"),
        (difference("accuracy", 0.9121, 0.9119), "0.0 points"),
        (difference("matthews", -0.1, 0.2), "−30.0 points"),
        (difference("eval_loss", 0.5, 0.25), "+0.250"),
        (difference("perplexity", 12.5, 12.0), "+0.500"),
        (difference("accuracy", 0.908, 0.912, 0.0123), "−0.4 ± 1.2 points"),
        (difference("loss", 0.5, 0.25, 0.01), "+0.250 ± 0.010"),
        (metric(0.9, 0.0123), "0.900 ± 0.012"),
        (metric(33.21, 0.123), "33.2 ± 0.1"),
        (seconds(75, 1.5), "75.0 ± 1.5 s"),
        (seconds(0.0123, 0.0004), "12.3 ± 0.4 ms"),
        (seconds(5021.5, 0), "5022 ± 0 s"),
        (seed_names((3,)), "seed 3"),
        (seed_names((0, 1)), "seeds 0, 1"),
    ],
)
def test_units(text: str, expected: str) -> None:
    assert text == expected
