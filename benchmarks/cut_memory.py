"""What a cut needs beside a training step of the same run: the most memory that either holds at once.

python benchmarks/cut_memory.py --out benchmarks/results/cut-memory.json
"""

import argparse
import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM

from lightpeft import Budget, EstimationConfig, cut, estimate, find_anatomy, make_plan
from lightpeft.bench import result_file, save_result
from lightpeft.memory import LiveBytes
from lightpeft.report import environment
from lightpeft.runs import MINILM, resolve_model
from lightpeft.runs.measure import training_action

BUDGET = Budget(align_neurons=32, frozen_layers="auto")


@dataclass(frozen=True)
class Case:
    """A model and the shape of its batches, (rows, tokens)."""

    model: Callable[[], PeftModel]
    shape: tuple[int, int]
    causal: bool = False

    def batch(self) -> dict[str, Tensor]:
        """Random tokens; the second row is padded."""
        ids = torch.randint(1000, 8000, self.shape, generator=torch.Generator().manual_seed(0))
        mask = torch.ones_like(ids)
        mask[1:2, self.shape[1] // 2 :] = 0
        labels = ids if self.causal else torch.zeros(self.shape[0], dtype=torch.int64)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=result_file, required=True)
    options = parser.parse_args()
    result = {name: measure(case) for name, case in CASES.items()}
    save_result(options.out, {"bytes": result, "environment": environment()})


def measure(case: Case) -> dict[str, float]:
    """The most bytes that torch holds at once, weights and optimizer included, and the ratio."""
    with LiveBytes() as live:
        torch.manual_seed(0)
        model, batch = case.model(), case.batch()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        step = training_action(model, batch, optimizer)
        step()
        step_bytes = peak_of(live, step)
        scores = estimate(model, [batch] * 2, EstimationConfig(steps=2))
        plan = make_plan(scores, find_anatomy(model), BUDGET)
        cut_bytes = peak_of(live, lambda: cut(model, plan, optimizer, scores=scores, batch=batch))
    print(f"step {step_bytes:,}, cut {cut_bytes:,}: {cut_bytes / step_bytes:.2f}")
    return {"training_step": step_bytes, "cut": cut_bytes, "ratio": cut_bytes / step_bytes}


def peak_of(live: LiveBytes, action: Callable[[], object]) -> int:
    """The most bytes held at once while `action` runs."""
    live.reset_peak()
    action()
    return live.peak


def minilm() -> PeftModel:
    base = AutoModelForSequenceClassification.from_pretrained(resolve_model(MINILM))
    base = copy.deepcopy(base)  # the file's own memory does not count, a copy does
    return with_lora(base, r".*layer\.\d+\..*(query|key|value|dense)")


def llama(**options: int) -> Callable[[], PeftModel]:
    def make() -> PeftModel:
        sizes = {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 8, "vocab_size": 8000}
        config = LlamaConfig(intermediate_size=704, num_key_value_heads=4, **(sizes | options))
        return with_lora(LlamaForCausalLM(config), r".*layers\..*_proj")

    return make


def checkpointed_llama() -> PeftModel:
    model = llama(hidden_size=512)()
    model.enable_input_require_grads()
    model.get_base_model().gradient_checkpointing_enable()
    return model


def with_lora(base: torch.nn.Module, targets: str) -> PeftModel:
    model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules=targets))
    assert isinstance(model, PeftModel)
    return model


CASES = {
    "MiniLM, 32 x 128": Case(minilm, (32, 128)),
    "MiniLM, 32 x 32": Case(minilm, (32, 32)),
    "MiniLM, 8 x 32": Case(minilm, (8, 32)),
    "LLaMA, 8 x 128": Case(llama(), (8, 128), causal=True),
    "LLaMA, 2 x 64": Case(llama(), (2, 64), causal=True),
    "LLaMA, 1 x 512, activations checkpointed": Case(checkpointed_llama, (1, 512), causal=True),
}


if __name__ == "__main__":
    main()
