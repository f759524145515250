"""Gradient policies against values worked out by hand, on vectors of two or a few numbers."""

import dataclasses
import math
import warnings
from itertools import pairwise
from typing import Any

import pytest
import torch
from tests.audit.vectors import layer_map, pair
from torch import Tensor

from lightpeft.audit import PolicyOptions
from lightpeft.audit.policies.gradient_control import project, wanted_norms
from lightpeft.audit.policies.gradients import TaskPair
from lightpeft.audit.policies.policy import Policy
from lightpeft.audit.policies.table import POLICIES, make_policy
from lightpeft.errors import ConfigError

CLEAN, AGAINST, ALONG = torch.tensor([2.0, 0.0]), torch.tensor([-3.0, 4.0]), torch.tensor([3.0, 4.0])


def policy(name: str, depth: int = 2, single: str | None = None, **options: Any) -> Policy:
    return make_policy(PolicyOptions(name, **options), layer_map(depth, single=single))


def vectors(rows: list[list[float]]) -> list[Tensor]:
    return [torch.tensor(row) for row in rows]


def equal(found: list[Tensor], expected: list[list[float]]) -> None:
    torch.testing.assert_close(found, vectors(expected), rtol=1e-6, atol=1e-6)


CONFLICT = [AGAINST] * 3
AGREE = [ALONG] * 3
SUM = [-1.0, 4.0]
# g_c - (-6/25) g_p + g_p - (-6/4) g_c
PROJECTED = [2 - 0.24 * 3 - 3 + 3, 0.24 * 4 + 4]


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("vanilla", {}, [SUM, SUM, SUM]),
        ("pcgrad", {}, [PROJECTED] * 3),
        ("ilproj", {}, [SUM, PROJECTED, PROJECTED]),
        ("ilproj", {"beta_lower": 0.0}, [PROJECTED] * 3),
        ("ilproj", {"beta_upper": 1.0}, [SUM] * 3),
        ("ilproj", {"beta_lower": 0.25, "beta_upper": 0.25}, [[1.28 * 0.75 - 0.25, 4.96 * 0.75 + 1]] * 3),
        ("clnorm", {}, [SUM] * 3),
        ("gradient_control", {}, [SUM, PROJECTED, PROJECTED]),
        ("gradnorm", {}, [SUM] * 3),
    ],
)
def test_the_first_step_where_tasks_conflict(
    name: str, options: dict[str, float], expected: list[list[float]]
) -> None:
    equal(policy(name, **options).combine(pair([CLEAN] * 3, CONFLICT)), expected)


@pytest.mark.parametrize("name", ["vanilla", "pcgrad", "ilproj", "clnorm", "gradient_control", "gradnorm"])
def test_where_tasks_agree_nothing_is_projected(name: str) -> None:
    equal(policy(name).combine(pair([CLEAN] * 3, AGREE)), [[5.0, 4.0]] * 3)


def test_the_literal_projection_takes_agreement_away_too() -> None:
    found = policy("ilproj", projection="literal").combine(pair([CLEAN] * 3, AGREE))
    equal(found, [[5.0, 4.0], *[[2 - 0.24 * 3 + 3 - 3, -0.24 * 4 + 4]] * 2])


def test_pcgrad_looks_at_all_layers_together_and_ilproj_at_each() -> None:
    both = pair([CLEAN, CLEAN, CLEAN], [AGAINST, ALONG * 2, ALONG * 0])
    # Over all layers g_c · g_p = -6 + 12 > 0: no conflict.
    equal(policy("pcgrad").combine(both), [SUM, [8.0, 8.0], [2.0, 0.0]])
    equal(policy("ilproj", beta_lower=0.0).combine(both), [PROJECTED, [8.0, 8.0], [2.0, 0.0]])


@pytest.mark.parametrize("projection", ["conditional", "literal"])
@pytest.mark.parametrize("seed", range(5))
def test_the_projection_is_orthogonal(projection: Any, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    g_i, g_j = torch.randn(2, 50, generator=draw, dtype=torch.float64)
    g_j = -g_j if g_i @ g_j > 0 else g_j
    found = project(g_i, g_j, projection)
    assert abs(float(found @ g_j)) < 1e-12 * float(g_i.norm() * g_j.norm()) + 1e-12
    torch.testing.assert_close(g_i - found, (g_i @ g_j) / (g_j @ g_j) * g_j)


def test_parallel_gradients_stay_or_vanish() -> None:
    both = pair(vectors([[1.0, 2.0]] * 3), vectors([[3.0, 6.0]] * 3))
    conditional = policy("ilproj", beta_lower=0.0).combine(both)
    assert all(torch.equal(found, torch.tensor([4.0, 8.0])) for found in conditional)
    literal = policy("ilproj", beta_lower=0.0, projection="literal").combine(both)
    equal(literal, [[0.0, 0.0]] * 3)


@pytest.mark.parametrize("projection", ["conditional", "literal"])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-22])
def test_a_gradient_of_nearly_nothing_does_not_divide_by_zero(size: float, projection: Any) -> None:
    found = project(CLEAN, AGAINST * size, projection)
    assert torch.isfinite(found).all()
    if size == 0:
        assert torch.equal(found, CLEAN)


@pytest.mark.parametrize("name", ["ilproj", "gradient_control"])
def test_beta_one_is_vanilla_bit_for_bit(name: str) -> None:
    gradients = [list(torch.randn(4, 100)) for _ in range(2)]
    both = pair(*gradients)
    controlled = policy(name, depth=3, beta_upper=1.0).combine(both)
    vanilla = policy("vanilla", depth=3).combine(both)
    assert all(torch.equal(a, b) for a, b in zip(controlled, vanilla, strict=True))


def test_alpha_zero_is_projection_only() -> None:
    control, alone = policy("gradient_control", depth=3, alpha=0.0), policy("ilproj", depth=3)
    for _ in range(5):
        both = pair([torch.randn(30) for _ in range(4)], [torch.randn(30) for _ in range(4)])
        found, expected = control.combine(both), alone.combine(both)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        control.update(both)
    assert control.readings() == {"w": [1.0] * 4}


def test_gradient_control_normalises_first() -> None:
    control, alone = policy("gradient_control", alpha=0.01), policy("ilproj")
    both = pair([CLEAN] * 3, CONFLICT)
    control.update(both)
    weights = control.readings()["w"]
    weighted = pair([CLEAN] * 3, [w * AGAINST for w in weights])
    torch.testing.assert_close(control.combine(both), alone.combine(weighted))


@pytest.mark.parametrize("depth", [1, 2, 5, 12])
def test_the_wanted_norms_fall_from_twice_the_mean_to_nothing(depth: int) -> None:
    norms = [1.0 + math.sin(number) for number in range(depth + 1)]
    mean = sum(norms) / len(norms)
    found = wanted_norms(norms, range(depth + 1), depth / 2, depth)
    assert found[0] == pytest.approx(2 * mean)
    assert found[-1] == 0
    assert sum(found) / len(found) == pytest.approx(mean)
    steps = [a - b for a, b in pairwise(found)]
    assert steps == pytest.approx([2 * mean / depth] * depth)


def test_other_ends_of_the_line() -> None:
    assert wanted_norms([2.0, 4.0, 6.0], [0, 1, 2], 2, 0) == [0.0, 2.0, 4.0]
    assert wanted_norms([3.0, 3.0, 3.0], [0, 1, 2], 0.5, 1) == [6.0, 0.0, 0.0]
    rising = policy("clnorm", alpha=0.1, middle_layer=1.0, zero_layer=0.0)
    rising.update(pair([CLEAN] * 3, [torch.tensor([1.0, 0.0])] * 3))
    assert rising.readings()["w"] == pytest.approx([0.9, 1.0, 1.1])


def test_one_step_of_the_weights_by_hand() -> None:
    normed = policy("clnorm", alpha=0.01)
    both = pair([CLEAN] * 3, vectors([[3.0, 4.0], [0.0, 2.0], [2.0, 0.0]]))
    normed.update(both)  # g = 5, 2, 2; mean 3; z = 6, 3, 0
    assert normed.readings()["w"] == pytest.approx([1 - 0.01 * -5, 1 - 0.01 * -2, 1 - 0.01 * 4])
    equal(normed.combine(both), [[2 + 3.15, 4.2], [2.0, 2.04], [3.92, 0.0]])


@pytest.mark.parametrize(
    "options", [{"alpha": 0.02}, {"alpha": 0.5, "alpha_scale": "relative", "alpha_memory": 0.5}]
)
def test_weights_converge_to_the_wanted_norm_over_the_norm(options: dict[str, Any]) -> None:
    normed = policy("clnorm", **options)
    both = pair([CLEAN] * 3, vectors([[3.0, 4.0], [0.0, 2.0], [2.0, 0.0]]))
    for _ in range(2000):
        normed.update(both)
    assert normed.readings()["w"] == pytest.approx([6 / 5, 3 / 2, 0.0], abs=1e-6)


def test_relative_alpha_does_not_know_the_scale() -> None:
    found = []
    for scale in (1.0, 1e-4):
        normed = policy("clnorm", alpha=0.1, alpha_scale="relative")
        for step in range(5):
            normed.update(
                pair([CLEAN] * 3, [scale * (1 + step) * v for v in vectors([[1, 0], [0, 2], [3, 0]])])
            )
        found.append(normed.readings()["w"])
    assert found[0] == pytest.approx(found[1])


def test_a_relative_alpha_of_nothing_keeps_the_weights() -> None:
    normed = policy("clnorm", alpha=0.1, alpha_scale="relative")
    normed.update(pair([CLEAN] * 3, [torch.zeros(2)] * 3))
    assert normed.readings() == {"w": [1.0] * 3}


def test_weights_that_will_swing_are_warned_about_once() -> None:
    normed = policy("clnorm", alpha=1.0)
    both = pair([CLEAN] * 3, [ALONG] * 3)
    with pytest.warns(RuntimeWarning, match=r"α · g² is 25; above 2"):
        normed.update(both)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        normed.update(both)


def test_a_weight_that_would_jump_over_zero_stays_there_and_this_is_said_once() -> None:
    normed = policy("clnorm", alpha=1.9, alpha_scale="relative")
    both = pair([CLEAN] * 3, vectors([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]))  # z = 2, 1, 0
    with pytest.warns(RuntimeWarning, match=r"a weight w_l would be -0.9, and is 0"):
        normed.update(both)
    assert normed.readings()["w"] == pytest.approx([2.9, 1.0, 0.0])
    normed.weights = [1.0, 1.0, 0.5]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        normed.update(both)
    assert normed.readings()["w"][2] == 0.0


@pytest.mark.parametrize("name", ["clnorm", "gradient_control"])
def test_one_layer_cannot_be_balanced(name: str) -> None:
    with pytest.raises(ConfigError, match="PROMPT is one layer; use 'ilproj'"):
        policy(name, depth=1, single="PROMPT is one layer")


def test_a_prompt_is_projected() -> None:
    found = policy("ilproj", depth=1, single="PROMPT is one layer").combine(pair([CLEAN] * 2, [AGAINST] * 2))
    equal(found, [PROJECTED] * 2)


def test_gradnorm_by_hand() -> None:
    balanced = policy("gradnorm", gradnorm_rate=0.1, gradnorm_alpha=1.0)
    # Norms 2√3 and 5√3 at equal rates: the poisoned task's gradient is too large.
    balanced.update(pair([CLEAN] * 3, CONFLICT, losses=(0.5, 2.0)))
    w_c, w_p = balanced.readings()["task_weights"]
    assert (w_c, w_p) == pytest.approx((1.1, 0.9))  # Adam's first step is its rate, and the sum stays 2
    equal(balanced.combine(pair([CLEAN] * 3, CONFLICT)), [[2 * 1.1 - 3 * 0.9, 4 * 0.9]] * 3)


def test_gradnorm_helps_the_slower_task() -> None:
    balanced = policy("gradnorm", gradnorm_rate=0.05)
    equal_norms = [torch.tensor([0.0, 2.0])] * 3
    for step in range(20):  # the poisoned loss falls, the clean one does not
        balanced.update(pair([CLEAN] * 3, equal_norms, losses=(1.0, 1.0 / (1 + step))))
    w_c, w_p = balanced.readings()["task_weights"]
    assert w_c > 1 > w_p > 0
    assert w_c + w_p == pytest.approx(2)


def test_gradnorm_is_safe_where_losses_and_gradients_are_nothing() -> None:
    balanced = policy("gradnorm")
    for _ in range(3):
        balanced.update(pair([torch.zeros(2)] * 3, [torch.zeros(2)] * 3, losses=(0.0, 0.0)))
    assert all(math.isfinite(w) for w in balanced.readings()["task_weights"])


def test_every_policy_is_made_and_reads_options_that_there_are() -> None:
    options = {field.name for field in dataclasses.fields(PolicyOptions)}
    assert all(set(kind.reads) <= options for kind in POLICIES.values())
    assert all(isinstance(policy(name), kind) for name, kind in POLICIES.items())


def test_a_new_policy_is_a_class_and_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    class Half(Policy):
        reads = ("alpha",)

        def combine(self, pair: TaskPair) -> list[Tensor]:
            return [g / 2 for g in pair.clean]

    monkeypatch.setitem(POLICIES, "half", Half)
    assert policy("half", alpha=0.5).options.alpha == 0.5
    equal(policy("half").combine(pair([CLEAN] * 3, [AGAINST] * 3)), [[1.0, 0.0]] * 3)
    with pytest.raises(ConfigError, match="policy 'half' does not read ripple_lambda"):
        PolicyOptions("half", ripple_lambda=0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "clnrom"}, r"policy.name is 'clnrom'.* Did you mean 'clnorm'\?"),
        ({"name": "vanilla", "alpha": 1e-3}, "'vanilla' does not read alpha; .* no options"),
        ({"name": "pcgrad", "beta_upper": 1.0}, "does not read beta_upper"),
        ({"name": "clnorm", "projection": "literal"}, "does not read projection"),
        ({"name": "clnorm", "alpha_memory": 0.5}, "does not read alpha_memory"),
        ({"alpha": -1.0}, "policy.alpha is -1.0"),
        ({"alpha": math.nan}, "policy.alpha is nan"),
        ({"beta_lower": 1.5}, r"policy.beta_lower is 1.5; give a number in \[0, 1\]"),
        ({"alpha_memory": 1.0, "alpha_scale": "relative"}, "policy.alpha_memory is 1.0"),
        ({"projection": "always"}, "policy.projection"),
        ({"alpha_scale": "log"}, "policy.alpha_scale"),
        ({"middle_layer": 3, "zero_layer": 3}, "cannot be the mean and 0"),
        ({"name": "lwp", "layerwise_tasks": "clean"}, "policy.layerwise_tasks"),
        ({"name": "ripple", "ripple_lambda": math.inf}, "ripple_lambda is inf"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PolicyOptions(**options)


@pytest.mark.parametrize("options", [{"zero_layer": 0.0}, {"middle_layer": 2.0}])
def test_ends_of_the_line_that_meet_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"are both .* in a model of 2 layers"):
        policy("clnorm", **options)
