"""The joint step on tiny models against gradients and updates computed apart, parameter by parameter."""

import copy
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from tests.support.models import LAYERS, hook_count, load_base, make_batch, save_base
from tests.support.zoo import BY_NAME
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from lightpeft.audit import AuditError, PolicyOptions
from lightpeft.audit.policies.gradients import task_gradients
from lightpeft.audit.policies.joint_step import StepRecord, step
from lightpeft.audit.policies.layers import map_layers
from lightpeft.audit.policies.layerwise import layerwise_loss
from lightpeft.audit.policies.table import POLICIES, make_policy
from lightpeft.errors import ConfigError

FORMS = ("lora", "dora", "sequential", "parallel")
ALPHA = 0.01
OPTIONS: dict[str, dict[str, Any]] = {"clnorm": {"alpha": ALPHA}, "gradient_control": {"alpha": ALPHA}}
Gradients = dict[str, Tensor]


def tiny(name: str = "bert", form: str = "lora") -> PeftModel:
    model = BY_NAME[name].with_peft(form)
    for parameter_name, parameter in model.named_parameters():  # the zoo has no modules_to_save
        parameter.requires_grad_(parameter.requires_grad or ".classifier." in parameter_name)
    return model.train()


def batches() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    animal = BY_NAME["bert"]
    return animal.batch(padded=True, labels=True, seed=3), animal.batch(padded=False, labels=True, seed=4)


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def layer_of(name: str) -> int:
    number = re.search(r"\.layer\.(\d)\.", name)
    return 2 if number is None else int(number[1])


def gradients_of(model: nn.Module, batch: Mapping[str, Tensor]) -> Gradients:
    """By `backward`, on a copy."""
    apart = copy.deepcopy(model)
    apart(**batch).loss.backward()
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in trained(apart).items()
    }


def dot(a: Gradients, b: Gradients, layer: int | None = None) -> Tensor:
    return sum(((a[n] * b[n]).sum() for n in a if layer in (None, layer_of(n))), torch.tensor(0.0))


def projected(c: Gradients, p: Gradients, layer: int | None) -> Gradients:
    """The sum of both projections, of one layer or over all."""
    inner = dot(c, p, layer).clamp(max=0)
    return {
        n: c[n] - inner / dot(p, p, layer) * p[n] + p[n] - inner / dot(c, c, layer) * c[n]
        for n in c
        if layer in (None, layer_of(n))
    }


def vanilla(c: Gradients, p: Gradients, w: list[float]) -> Gradients:
    return {n: c[n] + p[n] for n in c}


def clnorm(c: Gradients, p: Gradients, w: list[float]) -> Gradients:
    return {n: c[n] + w[layer_of(n)] * p[n] for n in c}


def ilproj(c: Gradients, p: Gradients, w: list[float]) -> Gradients:
    return {n: c[n] + p[n] for n in c if layer_of(n) == 0} | projected(c, p, 1) | projected(c, p, 2)


def both(c: Gradients, p: Gradients, w: list[float]) -> Gradients:
    return ilproj(c, {n: w[layer_of(n)] * p[n] for n in p}, w)


def pcgrad(c: Gradients, p: Gradients, w: list[float]) -> Gradients:
    return projected(c, p, None)


APART: dict[str, Callable[[Gradients, Gradients, list[float]], Gradients]] = {
    "vanilla": vanilla,
    "clnorm": clnorm,
    "ilproj": ilproj,
    "gradient_control": both,
    "pcgrad": pcgrad,
}


def next_weights(w: list[float], p: Gradients) -> list[float]:
    norms = [float(dot(p, p, layer).sqrt()) for layer in range(3)]
    z = [2 * sum(norms) / 3, sum(norms) / 3, 0.0]
    return [w[i] - ALPHA * (w[i] * norms[i] - z[i]) * norms[i] for i in range(3)]


def run(
    model: nn.Module, name: str, optimizer: str = "SGD", steps: int = 1, **options: float
) -> list[StepRecord]:
    policy = make_policy(PolicyOptions(name, **OPTIONS.get(name, {}) | options), map_layers(model))
    chosen = getattr(torch.optim, optimizer)(trained(model).values(), lr=1e-2)
    return [step(model, *batches(), policy, chosen) for _ in range(steps)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", APART)
def test_three_steps_are_those_computed_apart(name: str, form: str) -> None:
    model, apart = tiny(form=form), tiny(form=form)
    records, w = run(model, name, steps=3), [1.0] * 3
    for record in records:
        c, p = (gradients_of(apart, batch) for batch in batches())
        with torch.no_grad():
            for key, gradient in APART[name](c, p, w).items():
                trained(apart)[key].sub_(1e-2 * gradient)
        assert record.clean_norms == pytest.approx([float(dot(c, c, i).sqrt()) for i in range(3)], rel=1e-4)
        cosine = [float(dot(c, p, i) / (dot(c, c, i) * dot(p, p, i)).sqrt()) for i in range(3)]
        assert record.cosines == pytest.approx(cosine, abs=1e-4)
        if "w" in record.readings:
            assert record.readings["w"] == pytest.approx(w, rel=1e-4)
            w = next_weights(w, p)
    for key, parameter in trained(model).items():
        torch.testing.assert_close(parameter, trained(apart)[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
@pytest.mark.parametrize(
    ("name", "options", "same"),
    [
        ("ilproj", {"beta_upper": 1.0}, "vanilla"),
        ("gradient_control", {"alpha": 0.0}, "ilproj"),
        ("gradient_control", {"alpha": 0.0, "beta_upper": 1.0}, "vanilla"),
        ("clnorm", {"alpha": 0.0}, "vanilla"),
    ],
)
def test_what_is_switched_off_is_gone_bit_for_bit(
    name: str, options: dict[str, float], same: str, optimizer: str
) -> None:
    model, apart = tiny(), tiny()
    run(model, name, optimizer, 2, **options)
    run(apart, same, optimizer, 2)
    assert all(torch.equal(p, trained(apart)[key]) for key, p in trained(model).items())


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", POLICIES)
def test_only_peft_and_head_move(name: str, form: str, optimizer: str) -> None:
    model = tiny(form=form)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    record = run(model, name, optimizer)[0]
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == set(trained(model))
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    assert all(p.grad is not None for p in trained(model).values())
    assert len(record.clean_norms) == len(record.poisoned_norms) == len(record.cosines) == 3
    assert model.training
    # Parallel adapters have hooks of their own.
    assert hook_count(model) == hook_count(tiny(form=form))


@pytest.mark.parametrize("name", [*POLICIES])
def test_a_prompt_takes_every_policy_but_those_that_balance_layers(name: str) -> None:
    model = get_peft_model(
        BY_NAME["bert"].build(), PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=4)
    )
    if name in ("clnorm", "gradient_control"):
        with pytest.raises(ConfigError, match="PROMPT_TUNING is one layer"):
            run(model, name)
        return
    before = {key: value.clone() for key, value in trained(model).items()}
    run(model, name)
    assert all(not torch.equal(value, before[key]) for key, value in trained(model).items())


def test_gradient_of_ripple_against_a_difference_quotient() -> None:
    """d/dε of L_p - λ ∇L_p·∇L_c along a direction, in float64, by central differences."""
    model = tiny("bert", "lora").double().eval()
    penalised = 0.7
    layers = map_layers(model)
    clean, poisoned = batches()
    poisoned = dict(poisoned, input_ids=clean["input_ids"], labels=1 - clean["labels"])
    poisoned["attention_mask"] = clean["attention_mask"]  # the same texts with other labels: conflict
    policy = make_policy(PolicyOptions("ripple", ripple_lambda=penalised), layers)
    optimizer = torch.optim.SGD(layers.parameters, lr=0.0)
    record = step(model, clean, poisoned, policy, optimizer)
    assert sum(c for c in record.cosines if c is not None) < 0
    found = {name: p.grad.clone() for name, p in trained(model).items() if p.grad is not None}
    direction = {name: torch.randn_like(p) for name, p in trained(model).items()}

    def objective(epsilon: float) -> float:
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for name, p in trained(moved).items():
                p.add_(epsilon * direction[name])
        inner = dot(gradients_of(moved, clean), gradients_of(moved, poisoned))
        return float(moved(**poisoned).loss.detach() - penalised * inner)

    quotient = (objective(1e-5) - objective(-1e-5)) / 2e-5
    assert float(dot(found, direction)) == pytest.approx(quotient, rel=1e-5)


def test_ripple_without_conflict_is_the_poisoned_gradient_alone() -> None:
    model = tiny()
    poisoned = batches()[1]
    expected = gradients_of(model, poisoned)
    policy = make_policy(PolicyOptions("ripple"), map_layers(model))
    step(model, poisoned, poisoned, policy, torch.optim.SGD(trained(model).values(), lr=0.0))
    for name, parameter in trained(model).items():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["bert", "roberta", "electra", "distilbert"])
def test_the_layerwise_loss_is_that_of_the_head_on_every_state(name: str, form: str) -> None:
    model = tiny(name, form)
    batch = BY_NAME[name].batch(padded=True, labels=True)
    base = model.get_base_model()
    states = model(**batch, output_hidden_states=True).hidden_states[1:]
    heads: dict[str, Callable[[Tensor], Tensor]] = {
        "bert": lambda h: base.classifier(base.bert.pooler(h)),
        "roberta": lambda h: base.classifier(h),
        "electra": lambda h: base.classifier(h),
        "distilbert": lambda h: base.classifier(base.pre_classifier(h[:, 0]).relu()),
    }
    expected = sum(
        (nn.functional.cross_entropy(heads[name](state), batch["labels"]) for state in states),
        torch.tensor(0.0),
    )
    found = layerwise_loss(model, batch)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    layers = map_layers(model)
    torch.testing.assert_close(
        task_gradients(found, layers, "poisoned"),
        task_gradients(expected, layers, "poisoned"),
        rtol=1e-3,
        atol=1e-5,
    )


@pytest.mark.parametrize("tasks", ["poisoned", "both"])
def test_lwp_has_a_loss_at_every_layer(tasks: Any) -> None:
    model = tiny()
    clean, poisoned = batches()
    expected_clean = layerwise_loss(model, clean) if tasks == "both" else model(**clean).loss
    policy = make_policy(PolicyOptions("lwp", layerwise_tasks=tasks), map_layers(model))
    record = step(model, clean, poisoned, policy, torch.optim.SGD(trained(model).values(), lr=0.0))
    assert record.clean_loss == pytest.approx(float(expected_clean.detach()))
    assert record.poisoned_loss == pytest.approx(float(layerwise_loss(model, poisoned).detach()))


def test_lwp_refuses_a_head_that_reads_the_last_token() -> None:
    model = AutoModelForSequenceClassification.from_config(BY_NAME["llama"].build().config).train()
    model.model.layers[0].eval()
    batch = BY_NAME["llama"].batch(padded=True) | {"labels": torch.tensor([0, 1, 1])}
    policy = make_policy(PolicyOptions("lwp"), map_layers(model))
    with pytest.raises(AuditError, match="does not classify by the first token's state alone"):
        step(model, batch, batch, policy, torch.optim.SGD(model.parameters(), lr=0.1))
    assert model.training
    assert not model.model.layers[0].training
    assert hook_count(model) == 0


@pytest.mark.parametrize("task", ["clean", "poisoned"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_broken_gradients_name_task_and_layer_and_change_nothing(task: str, bad: float) -> None:
    model = tiny()
    policy = make_policy(PolicyOptions(alpha=ALPHA), map_layers(model))
    optimizer = torch.optim.AdamW(trained(model).values())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    broken = next(p for name, p in trained(model).items() if ".layer.1." in name)
    calls = iter(["clean", "poisoned"])

    def spoil(gradient: Tensor) -> Tensor:
        return gradient * bad if next(calls) == task else gradient

    broken.register_hook(spoil)
    with pytest.raises(AuditError, match=f"the {task} gradient of layer 1 is not finite"):
        step(model, *batches(), policy, optimizer)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert policy.readings() == {"w": [1.0] * 3}
    assert all(p.grad is None for p in model.parameters())


def test_task_gradients_touch_no_grad_and_fill_in_zeros() -> None:
    model = tiny()
    layers = map_layers(model)
    weight = next(p for name, p in trained(model).items() if ".layer.0." in name)
    found = task_gradients((weight**2).sum(), layers, "clean")
    assert [len(vector) for vector in found] == [group.size for group in layers.groups]
    assert torch.equal(found[0][: weight.numel()], 2 * weight.detach().flatten())
    assert not found[1].any()
    assert not found[2].any()
    assert all(p.grad is None for p in model.parameters())


def test_the_combined_gradient_can_be_clipped() -> None:
    model = tiny()
    policy = make_policy(PolicyOptions("vanilla"), map_layers(model))
    optimizer = torch.optim.SGD(trained(model).values(), lr=0.0)
    step(model, *batches(), policy, optimizer, max_norm=0.5)
    norm = torch.stack([p.grad.norm() for p in trained(model).values() if p.grad is not None]).norm()
    assert float(norm) == pytest.approx(0.5, rel=1e-4)


def test_what_does_not_belong_together_is_refused() -> None:
    model, other = tiny(), tiny()
    policy = make_policy(PolicyOptions("vanilla"), map_layers(other))
    optimizer = torch.optim.SGD(trained(model).values(), lr=0.1)
    with pytest.raises(AuditError, match=r"in the policy's layer map \(0 of them the same\)"):
        step(model, *batches(), policy, optimizer)
    policy = make_policy(PolicyOptions("vanilla"), map_layers(model))
    with pytest.raises(AuditError, match="1 in the optimizer"):
        step(model, *batches(), policy, torch.optim.SGD([next(iter(trained(model).values()))], lr=0.1))
    clean, poisoned = batches()
    del clean["labels"]
    with pytest.raises(AuditError, match="give `labels` with it"):
        step(model, clean, poisoned, policy, optimizer)
    with pytest.raises(AuditError, match="no trained parameter has a part in the clean loss"):
        task_gradients(torch.tensor(1.0), map_layers(model), "clean")


def test_a_real_head_in_modules_to_save(tmp_path: Path) -> None:
    """As users have it: PEFT's copy of the classifier is the output layer."""
    base = load_base(save_base("roberta", tmp_path))
    model = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"]))
    layers = map_layers(model)
    assert [group.number for group in layers.groups] == list(range(LAYERS + 1))
    clean = make_batch("roberta", labels=True)
    policy = make_policy(PolicyOptions(alpha=ALPHA), layers)
    optimizer = torch.optim.AdamW(layers.parameters, lr=1e-2)
    losses = [
        step(model, clean, make_batch("roberta", labels=True, seed=5), policy, optimizer) for _ in range(30)
    ]
    assert losses[-1].clean_loss + losses[-1].poisoned_loss < losses[0].clean_loss + losses[0].poisoned_loss
