"""Committed results stay usable when an option is added."""

import copy
from typing import Any

import pytest

from lightpeft import LightConfig
from lightpeft.bench.earlier import as_recorded_now

NOW: dict[str, Any] = {
    "model": "bert",
    "task": {"training": None},
    "training": {"batch_size": 32, "group_by_length": True},
    "methods": {"default": {"name": "light, default", "light": LightConfig().to_dict()}},
}


@pytest.mark.parametrize("group", [None, "estimation", "budget", "surgery", "prefix", "target"])
def test_an_option_that_came_later_has_its_default(group: str | None) -> None:
    light = NOW["methods"]["default"]["light"]
    for option in light if group is None else light[group]:
        found = copy.deepcopy(NOW)
        of = found["methods"]["default"]["light"]
        del (of if group is None else of[group])[option]
        assert as_recorded_now(found, NOW) == NOW


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("methods", "default", "light", "surgery", "reconstruct_rank"), 32),
        (("methods", "default", "light", "learning_rate_factor"), 3.0),
        (("training", "batch_size"), 8),
    ],
)
def test_another_value_than_the_default_is_another_setting(path: tuple[str, ...], value: Any) -> None:
    wanted, found = copy.deepcopy(NOW), copy.deepcopy(NOW)
    of_wanted, of_found = wanted, found
    for key in path[:-1]:
        of_wanted, of_found = of_wanted[key], of_found[key]
    of_wanted[path[-1]] = value
    assert as_recorded_now(found, wanted) != wanted
    del of_found[path[-1]]
    assert as_recorded_now(found, wanted) != wanted


@pytest.mark.parametrize("path", [("model",), ("methods", "default"), ("methods", "default", "name")])
def test_what_is_no_option_must_be_there(path: tuple[str, ...]) -> None:
    found = copy.deepcopy(NOW)
    of_found = found
    for key in path[:-1]:
        of_found = of_found[key]
    del of_found[path[-1]]
    assert as_recorded_now(found, NOW) != NOW
