"""Random scores, random plans, and the gates under which an uncut model acts like the cut one."""

import torch
from peft import PeftModel
from torch import Tensor

from lightpeft import Budget, Plan, Scores, find_anatomy, make_plan
from tests.support.models import HEADS, LAYERS, NEURONS, ROWS, WIDTH

UNEVEN = Budget(heads=0.4, neurons=0.4, modules=0.3, ranks=0.4, heads_scope="global", neurons_scope="global")
"""Other counts in every layer; some modules go, some keep part of their ranks."""


def lora_names(model: PeftModel) -> list[str]:
    """Linears with LoRA, found by their state dict."""
    start, end = "base_model.model.", ".lora_A.default.weight"
    return [k.removeprefix(start).removesuffix(end) for k in model.state_dict() if k.endswith(end)]


def random_scores(model: PeftModel, seed: int = 0, *, gates: bool = False, means: bool = False) -> Scores:
    """Scores without estimation; with `gates`, ranked by the gates' magnitude as score `mask` does."""
    generator = torch.Generator().manual_seed(seed)
    row = ROWS[model.get_base_model().config.model_type]
    ranks = {
        name: torch.rand(
            model.get_base_model().get_submodule(f"{name}.lora_A.default").out_features,
            generator=generator,
        )
        for name in lora_names(model)
    }
    heads = [2 * torch.rand(HEADS, generator=generator) - 1 for _ in range(LAYERS)]
    neurons = [2 * torch.rand(NEURONS, generator=generator) - 1 for _ in range(LAYERS)]
    channels = {}
    for layer in range(LAYERS):
        channels[row.at(layer, "attention_out")] = heads[layer].repeat_interleave(WIDTH // HEADS)
        channels[row.at(layer, "ffn_out")] = neurons[layer]
    mean_inputs = {name: torch.randn(len(values), generator=generator) for name, values in channels.items()}
    return Scores(
        heads=tuple(values.abs() for values in heads),
        neurons=tuple(values.abs() for values in neurons),
        ranks=ranks,
        modules={name: float(torch.rand((), generator=generator)) for name in ranks},
        steps=1,
        methods={"base": "mask" if gates else "fisher", "module": "activation", "rank": "taylor"},
        gates=channels if gates else {},
        means=mean_inputs if means else {},
    )


def random_plan(model: PeftModel, seed: int = 0, budget: Budget = UNEVEN) -> Plan:
    """A plan that cuts some of everything."""
    return make_plan(random_scores(model, seed), find_anatomy(model), budget)


def plan_gates(plan: Plan, trained: dict[str, Tensor] | None = None, *, ranks: bool) -> dict[str, Tensor]:
    """Per module input: 0 for cut channels, the trained gate (or 1) for others; `ranks` closes cut ranks."""
    row = ROWS[plan.model_type]
    gates = {}
    for layer in plan.layers:
        heads = torch.zeros(layer.head_count)
        heads[list(layer.heads)] = 1
        neurons = torch.zeros(layer.neuron_count)
        neurons[list(layer.neurons)] = 1
        gates[row.at(layer.index, "attention_out")] = heads.repeat_interleave(WIDTH // HEADS)
        gates[row.at(layer.index, "ffn_out")] = neurons
    for name, values in (trained or {}).items():
        gates[name] = gates[name] * values
    for module in plan.modules if ranks else ():
        kept = torch.zeros(module.rank_count)
        kept[list(module.ranks)] = 1
        gates[f"{module.name}.lora_B.default"] = kept
    return gates
