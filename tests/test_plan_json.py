"""Plans as JSON: read back equal, refused when malformed."""

import copy
import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from lightpeft import Budget, Plan, PlanError, Scores, Target, make_plan
from lightpeft.errors import CheckpointError
from lightpeft.files import read_tensors, write_tensors
from lightpeft.indices import format_indices, parse_indices
from tests.test_plan import anatomy_of, drawn

ANATOMY = anatomy_of([6, 4, 5], [40, 33, 8])
AGREEMENT = {"kind": "heads", "share": 0.5, "chance": 0.3}
TARGET = {"quantity": "inference", "share": 0.5, "cuts": "width", "predicted": 0.5}
EVIDENCE = {"scored_steps": 7, "agreements": [AGREEMENT]}


def a_plan(seed: int = 0, budget: Budget | None = None, target: Target | None = None) -> Plan:
    return make_plan(drawn(ANATOMY, seed), ANATOMY, budget or Budget(heads_scope="global"), target=target)


@pytest.mark.parametrize("seed", range(6))
def test_round_trip_is_equal(seed: int) -> None:
    plan = a_plan(seed, Budget(modules=0.3, ranks=0.6), Target(parameters=0.7))
    assert plan.target is not None
    read = Plan.from_json(plan.to_json())
    assert read == plan
    assert read.to_json() == plan.to_json()
    assert read.describe() == plan.describe()


@pytest.mark.parametrize("steps", [None, 0, 1, 11])
@pytest.mark.parametrize("halves", [False, True])
def test_what_a_plan_rests_on_survives_json(halves: bool, steps: int | None) -> None:
    scores = replace(
        drawn(ANATOMY, 0),
        scored_steps=steps,
        halves=(drawn(ANATOMY, 1), drawn(ANATOMY, 2)) if halves else (),
    )
    for methods in (scores.methods, scores.methods | {"base": "of another version"}):
        plan = make_plan(replace(scores, methods=methods), ANATOMY, Budget())
        assert (plan.evidence is None) == (steps is None)
        assert Plan.from_json(plan.to_json()) == plan


def without_skips() -> dict[str, Any]:
    """A plan as versions 1 and 2 had it."""
    value = a_plan().to_dict()
    for layer in value["layers"]:
        del layer["skipped"]
    return value


def test_plans_and_scores_of_version_1_are_read_without_what_they_rest_on(tmp_path: Any) -> None:
    value = without_skips()
    del value["evidence"]
    assert Plan.from_dict(value | {"format_version": 1}) == a_plan()
    path = tmp_path / "scores.safetensors"
    drawn(ANATOMY, 0).save(path)
    tensors, header = read_tensors(path)
    del header["scored_steps"], header["halves"]
    write_tensors(path, tensors, header | {"format_version": 1})
    read = Scores.load(path)
    assert (read.scored_steps, read.halves) == (None, ())
    assert make_plan(read, ANATOMY, Budget()) == make_plan(drawn(ANATOMY, 0), ANATOMY, Budget())
    write_tensors(path, tensors, header | {"format_version": 4})
    with pytest.raises(CheckpointError, match="version 4"):
        Scores.load(path)


def test_plans_of_version_2_are_read_without_their_depth_cost() -> None:
    value = without_skips()
    del value["frozen_layers"], value["target"]
    old = value["budget"] | {"depth_cost": 0.25, "keep_parameters": None}
    read = Plan.from_dict(value | {"format_version": 2, "budget": old})
    assert (read.layers, read.modules, read.budget) == (a_plan().layers, a_plan().modules, a_plan().budget)
    assert read.cutoffs[2].sides is None
    assert read.cutoffs[1] == a_plan().cutoffs[1]
    same = Plan.from_dict(value | {"format_version": 2, "budget": old | {"depth_cost": 0.0}})
    assert same == a_plan()


def test_halves_survive_the_scores_file(tmp_path: Any) -> None:
    """Also where both have the same tensors, as of a score that does not come from the steps."""
    half = drawn(ANATOMY, 1)
    scores = replace(drawn(ANATOMY, 0), scored_steps=5, halves=(half, replace(half, scored_steps=2)))
    scores.save(tmp_path / "scores.safetensors")
    read = Scores.load(tmp_path / "scores.safetensors")
    assert [one.scored_steps for one in (read, *read.halves)] == [5, None, 2]
    assert make_plan(read, ANATOMY, Budget()) == make_plan(scores, ANATOMY, Budget())


def test_round_trip_of_a_plan_that_cuts_nothing() -> None:
    plan = a_plan(0, Budget(heads=0, neurons=0, modules=0, ranks=0))
    assert plan.cuts_nothing
    assert Plan.from_json(plan.to_json()) == plan


def at(value: Any, *path: Any) -> Any:
    for key in path:
        value = value[key]
    return value


def changed(*path: Any, to: Any) -> dict[str, Any]:
    """The dictionary of a plan with one value changed."""
    value = copy.deepcopy(a_plan().to_dict())
    at(value, *path[:-1])[path[-1]] = to
    return value


def without(*path: Any) -> dict[str, Any]:
    value = copy.deepcopy(a_plan().to_dict())
    del at(value, *path[:-1])[path[-1]]
    return value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (changed("format_version", to=4), "version 4"),
        (changed("format_version", to="1"), "version '1'"),
        (without("format_version"), "version None"),
        (changed("layers", 0, "heads", to="0-6"), "index 6 is out of range, there are only 6"),
        (changed("layers", 1, "neurons", to="0,33"), "index 33 is out of range"),
        (changed("layers", 0, "heads", to="0,2,2"), "index 2 is duplicated"),
        (changed("layers", 0, "heads", to="0-3,3"), "index 3 is duplicated"),
        (changed("layers", 0, "heads", to="3,1"), "index 1 comes after 3"),
        (changed("layers", 0, "heads", to="3-1,4"), "3-1"),
        (changed("layers", 0, "heads", to="-1"), "not an index"),
        (changed("layers", 0, "heads", to="1.5"), "not an index"),
        (changed("layers", 0, "heads", to="0, 1"), "not an index"),
        (changed("layers", 0, "heads", to="0,,1"), "not an index"),
        (changed("layers", 0, "heads", to="²"), "not an index"),
        (changed("layers", 0, "heads", to=[0, 1]), "malformed"),
        (changed("layers", 0, "heads", to=None), "malformed"),
        (changed("layers", 0, "head_count", to="6"), "malformed"),
        (changed("layers", 0, "head_count", to=6.5), "malformed|head_count"),
        (changed("layers", 0, "head_count", to=-1), "out of range|head_count"),
        (changed("layers", 1, "index", to=0), "numbered"),
        (changed("modules", 0, "ranks", to="0-4"), "m0: index 4 is out of range"),
        (changed("modules", 1, "name", to="m0"), "m0 twice"),
        (changed("modules", 1, "name", to=1), "malformed|name"),
        (changed("model_type", to=None), "malformed|model_type"),
        (changed("estimation_steps", to="many"), "malformed|estimation_steps"),
        (changed("budget", "heads", to=2.0), r"budget\.heads is 2\.0"),
        (changed("budget", "surprise", to=1), "surprise"),
        (changed("surprise", to=1), "surprise"),
        (changed("layers", 0, "surprise", to=1), "surprise"),
        (changed("modules", 0, "surprise", to=1), "surprise"),
        (changed("layers", 0, "skipped", to=True), "layer 0 is skipped, but keeps heads or neurons"),
        (changed("layers", 0, "skipped", to=1), "skipped is 1, expected true or false"),
        (changed("cutoffs", 0, "surprise", to=1), "surprise"),
        (changed("cutoffs", to=3), "malformed"),
        (changed("evidence", to=3), "malformed"),
        (changed("evidence", to={"scored_steps": 1}), "malformed"),
        (changed("evidence", to=EVIDENCE | {"surprise": 1}), "malformed"),
        (changed("evidence", to=EVIDENCE | {"scored_steps": -1}), "malformed"),
        (changed("evidence", to=EVIDENCE | {"scored_steps": True}), "malformed"),
        (changed("evidence", to=EVIDENCE | {"agreements": 3}), "malformed"),
        (changed("evidence", to=EVIDENCE | {"agreements": [AGREEMENT | {"share": 1.5}]}), "malformed"),
        (changed("evidence", to=EVIDENCE | {"agreements": [AGREEMENT | {"chance": "1"}]}), "malformed"),
        (changed("evidence", to=EVIDENCE | {"agreements": [AGREEMENT | {"kind": 1}]}), "malformed"),
        (changed("evidence", to=EVIDENCE | {"agreements": [AGREEMENT | {"surprise": 1}]}), "malformed"),
        (without("evidence"), "evidence"),
        (changed("frozen_layers", to=-1), "frozen_layers is -1"),
        (without("frozen_layers"), "frozen_layers"),
        (without("target"), "target"),
        (changed("target", to=TARGET | {"quantity": "speed"}), "target's quantity is 'speed'"),
        (changed("target", to=TARGET | {"predicted": "0.5"}), "target's predicted is '0.5'"),
        (changed("target", to=TARGET | {"surprise": 1}), "malformed"),
        (changed("layers", to="all"), "malformed"),
        (changed("layers", 0, to=None), "malformed"),
        (without("layers"), "layers"),
        (without("layers", 0, "heads"), "heads"),
        (without("modules"), "modules"),
        (without("budget"), "budget"),
        (without("model_type"), "model_type"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_malformed_plans_are_refused_with_what_was_found(value: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Plan.from_json(json.dumps(value))


@pytest.mark.parametrize("kind", ["head", "neuron"])
def test_a_huge_range_is_refused_before_it_is_counted_out(kind: str) -> None:
    """A few bytes of JSON must not become gigabytes of indices."""
    value = changed("layers", 0, f"{kind}_count", to=10**15)
    value["layers"][0][f"{kind}s"] = f"0-{10**15 - 1}"
    with pytest.raises(PlanError):
        Plan.from_dict(value)


@pytest.mark.parametrize(
    "text", ["", "{", "not a plan", "[1]", "null", '"plan"', "3", "[" * 100_000, "\ufeff{}"]
)
def test_what_is_not_a_json_object_is_refused(text: str) -> None:
    with pytest.raises(PlanError):
        Plan.from_json(text)


@pytest.mark.parametrize("seed", range(8))
def test_index_sets_survive_their_text(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    kept = tuple(torch.nonzero(torch.rand(50, generator=generator) < 0.6).flatten().tolist())
    assert parse_indices(format_indices(kept), 50, "x") == kept


def test_index_text_is_short() -> None:
    assert format_indices([0, 1, 2, 3, 5, 8, 9]) == "0-3,5,8-9"
    assert format_indices([]) == ""


def test_check_fits_names_the_layer_that_differs() -> None:
    plan = a_plan()
    plan.check_fits(ANATOMY)
    with pytest.raises(PlanError, match="layer 1: the plan is for 4 heads and 33 neurons"):
        plan.check_fits(anatomy_of([6, 3, 5], [40, 33, 8]))


def test_scores_survive_their_file(tmp_path: Any) -> None:
    scores = drawn(ANATOMY, 1)
    scores.means["0.o"] = torch.rand(4)
    scores.gates["0.o"] = torch.rand(4)
    scores.save(tmp_path / "scores.safetensors")
    read = Scores.load(tmp_path / "scores.safetensors")
    for mine, found in ((scores.heads, read.heads), (scores.neurons, read.neurons)):
        assert all(torch.equal(a, b) for a, b in zip(mine, found, strict=True))
    for name in ("ranks", "means", "gates"):
        mine, found = getattr(scores, name), getattr(read, name)
        assert mine.keys() == found.keys()
        assert all(torch.equal(mine[key], found[key]) for key in mine)
    assert (read.modules, read.steps, read.methods) == (scores.modules, 7, scores.methods)
    assert make_plan(read, ANATOMY, Budget()) == make_plan(scores, ANATOMY, Budget())


def test_a_truncated_scores_file_is_refused(tmp_path: Any) -> None:
    path = tmp_path / "scores.safetensors"
    drawn(ANATOMY, 1).save(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="cannot be read"):
        Scores.load(path)


def test_missing_scores_are_refused(tmp_path: Any) -> None:
    with pytest.raises(CheckpointError, match="missing"):
        Scores.load(tmp_path / "scores.safetensors")
