"""LoRA on a head that is tied to the embedding, or on that embedding: cut and loaded, or refused."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tests.support.forms import enliven
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

import lightpeft
from lightpeft import AnatomyError, Budget, CheckpointError, Plan, SurgeryConfig, find_anatomy, make_plan
from lightpeft.adapters import find_modules
from lightpeft.checkpoint import export_full_adapter, export_merged, load_merged
from lightpeft.surgery import record_of

pytestmark = [  # PEFT's advice
    pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set"),
]

BATCH = {"input_ids": torch.randint(3, 50, (2, 10), generator=torch.Generator().manual_seed(0))}
FOLD = SurgeryConfig(compensate=False)


def llama(*, tied: bool) -> PreTrainedModel:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, tie_word_embeddings=tied, **sizes))


def gpt2(*, tied: bool) -> PreTrainedModel:
    config = GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=40)
    return GPT2LMHeadModel(config)


@dataclass(frozen=True)
class Row:
    """Where LoRA sits."""

    name: str
    base: Callable[..., PreTrainedModel]
    targets: tuple[str, ...]
    tied: bool = True
    options: dict[str, Any] = field(default_factory=dict)

    def model(self, folder: Path) -> PeftModel:
        torch.manual_seed(0)
        self.base(tied=self.tied).save_pretrained(folder)
        base = AutoModelForCausalLM.from_pretrained(folder)
        config = LoraConfig(
            r=4, target_modules=list(self.targets), task_type="CAUSAL_LM", lora_dropout=0.0, **self.options
        )
        model = get_peft_model(base, config)
        enliven(model)
        assert isinstance(model, PeftModel)
        return model


LLAMA, GPT2 = ("q_proj", "v_proj", "down_proj"), ("c_attn", "c_fc")
ROWS = [
    Row("head", llama, (*LLAMA, "lm_head")),
    Row("head of GPT-2", gpt2, (*GPT2, "lm_head")),
    Row("embedding", llama, (*LLAMA, "embed_tokens")),
    Row("both", llama, (*LLAMA, "embed_tokens", "lm_head")),
    Row("head, not tied", llama, (*LLAMA, "lm_head"), tied=False),
]
REFUSED = [
    Row("DoRA", llama, (*LLAMA, "lm_head"), options={"use_dora": True}),
    Row("tied pairs", llama, (*LLAMA, "lm_head", "embed_tokens"), options={"ensure_weight_tying": True}),
]


def plan_of(model: PeftModel, head: str) -> Plan:
    """The head's module goes whole, or keeps half of its ranks."""
    anatomy, modules = find_anatomy(model), find_modules(model)
    generator = torch.Generator().manual_seed(1)
    scores = lightpeft.Scores(
        heads=tuple(torch.rand(layer.heads, generator=generator) for layer in anatomy.layers),
        neurons=tuple(torch.rand(layer.neurons, generator=generator) for layer in anatomy.layers),
        ranks={m.name: torch.rand(m.rank, generator=generator) for m in modules},
        modules={
            m.name: (0.0 if head == "goes" else 9.0) if m.name == "lm_head" else 1.0 + i
            for i, m in enumerate(modules)
        },
        steps=1,
        methods={"base": "fisher", "module": "activation", "rank": "taylor"},
    )
    return make_plan(scores, anatomy, Budget(heads=0, neurons=0, ranks=0.5))


@torch.no_grad()
def logits(model: Any) -> Tensor:
    found: Tensor = model.eval()(**BATCH).logits
    return found


@pytest.mark.parametrize("head", ["goes", "stays"])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_all_that_went_is_still_there(row: Row, head: str, tmp_path: Path) -> None:
    """No head or neuron goes and every ΔW is kept, so that the cut model computes what the whole one did."""
    model = row.model(tmp_path / "base")
    expected = logits(model)
    lightpeft.cut(model, plan_of(model, head), batch=BATCH, config=FOLD)
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
    record = record_of(model)
    assert record is not None
    assert record.beside == ({"lm_head"} if row.tied and "lm_head" in row.targets else frozenset())
    loaded = lightpeft.load(lightpeft.save(model, tmp_path / "light"))
    assert torch.equal(logits(loaded), logits(model))
    full = export_full_adapter(tmp_path / "light", tmp_path / "full")
    torch.testing.assert_close(logits(full), expected, rtol=1e-4, atol=1e-4)
    if row.tied:
        with pytest.raises(
            CheckpointError, match=r"carries an adapter and its weights are tied.*lightpeft\.load"
        ):
            export_merged(tmp_path / "light", tmp_path / "merged")
        assert not (tmp_path / "merged").exists()
    else:
        export_merged(tmp_path / "light", tmp_path / "merged")
        torch.testing.assert_close(logits(load_merged(tmp_path / "merged")), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row.name)
def test_what_cannot_be_is_refused(row: Row, tmp_path: Path) -> None:
    model = row.model(tmp_path)
    with pytest.raises(AnatomyError, match="tied to another module's, so that it cannot be cut by itself"):
        find_modules(model)
