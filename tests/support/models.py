"""Tiny random encoders, one row per architecture, LoRA on them, batches, and gates made without lightpeft."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from lightpeft.surgery import AdaptersOn, FirstToken

LAYERS, HEADS, WIDTH, NEURONS, VOCABULARY = 3, 4, 32, 64, 99


@dataclass(frozen=True)
class Row:
    """One architecture: how its configuration names things, and where its linears are."""

    name: str
    sizes: Mapping[str, str]
    dropouts: tuple[str, ...]
    layer: str
    """Of encoder layer {}, relative to the model with a head."""
    query: str
    key: str
    value: str
    attention_out: str
    ffn_in: str
    ffn_out: str

    @property
    def linears(self) -> tuple[str, ...]:
        return (
            self.query,
            self.key,
            self.value,
            self.attention_out,
            self.ffn_in,
            self.ffn_out,
        )

    def at(self, layer: int, linear: str) -> str:
        """Full name of a linear of a layer."""
        return f"{self.layer.format(layer)}.{getattr(self, linear)}"


BERT_SIZES = {
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "width": "hidden_size",
    "neurons": "intermediate_size",
}
BERT_LINEARS = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_out": "attention.output.dense",
    "ffn_in": "intermediate.dense",
    "ffn_out": "output.dense",
}
BERT_DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob")
ROWS = {
    row.name: row
    for row in (
        *(
            Row(name, BERT_SIZES, BERT_DROPOUTS, f"{name}.encoder.layer.{{}}", **BERT_LINEARS)
            for name in ("bert", "roberta", "electra")
        ),
        Row(
            "distilbert",
            {"layers": "n_layers", "heads": "n_heads", "width": "dim", "neurons": "hidden_dim"},
            ("dropout", "attention_dropout", "seq_classif_dropout"),
            "distilbert.transformer.layer.{}",
            query="attention.q_lin",
            key="attention.k_lin",
            value="attention.v_lin",
            attention_out="attention.out_lin",
            ffn_in="ffn.lin1",
            ffn_out="ffn.lin2",
        ),
    )
}
NAMES = tuple(ROWS)


def tiny_config(
    name: str,
    *,
    layers: int = LAYERS,
    heads: int = HEADS,
    width: int = WIDTH,
    neurons: int = NEURONS,
    dropout: float = 0.0,
    **more: Any,
) -> PreTrainedConfig:
    """Configuration of a tiny encoder of the architecture `name`."""
    row = ROWS[name]
    sizes = {"layers": layers, "heads": heads, "width": width, "neurons": neurons}
    options: dict[str, Any] = {row.sizes[key]: value for key, value in sizes.items()}
    options |= dict.fromkeys(row.dropouts, dropout)
    if name == "electra":
        options["embedding_size"] = width
    return AutoConfig.for_model(name, vocab_size=VOCABULARY, max_position_embeddings=40, **options, **more)


def save_base(name: str, folder: Path, *, seed: int = 0, **sizes: Any) -> Path:
    """A random encoder *without* a head, saved as a stock checkpoint; every weight and bias is alive."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = AutoModel.from_config(tiny_config(name, **sizes))
        with torch.no_grad():
            for parameter in encoder.parameters():
                parameter.add_(0.15 * torch.randn_like(parameter))
    encoder.save_pretrained(folder)
    return folder


def load_base(
    folder: Path, *, attention: str = "sdpa", head_seed: int = 0, **options: Any
) -> PreTrainedModel:
    """The encoder with a classification head, which is random: it is not in the folder."""
    with torch.random.fork_rng():
        torch.manual_seed(head_seed)
        return AutoModelForSequenceClassification.from_pretrained(
            folder, attn_implementation=attention, **options
        )


def with_lora(
    base: PreTrainedModel,
    *,
    rank: int = 4,
    alpha: float = 6.0,
    targets: tuple[str, ...] | None = None,
    seed: int = 1,
    **options: Any,
) -> PeftModel:
    """LoRA on all six linears of every layer, B not zero, so that ΔW matters."""
    row = ROWS[base.config.model_type]
    chosen = targets if targets is not None else row.linears
    if targets is None:  # full names: `output.dense` alone would match the pooler's neighbours too
        count = getattr(base.config, row.sizes["layers"])
        chosen = tuple(f"{row.layer.format(i)}.{one}" for i in range(count) for one in row.linears)
    options = {"task_type": "SEQ_CLS", "lora_dropout": 0.0} | options
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(chosen), **options)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return living_lora(base, config)


def living_lora(base: PreTrainedModel, config: LoraConfig) -> PeftModel:
    """LoRA with random pairs, B not zero, so that ΔW matters."""
    model = get_peft_model(base, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.copy_(0.2 * torch.randn_like(parameter))
    assert isinstance(model, PeftModel)
    return model


def tiny_peft(name: str, folder: Path, **options: Any) -> PeftModel:
    """A fresh base saved in `folder`, with LoRA."""
    return with_lora(load_base(save_base(name, folder)), **options)


def make_batch(
    name: str,
    *,
    padded: bool = True,
    rows: int = 4,
    tokens: int = 10,
    seed: int = 3,
    labels: bool = False,
) -> dict[str, Tensor]:
    """Random tokens; with `padded` the rows have different lengths, the first one is full."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, VOCABULARY, (rows, tokens), generator=generator)
    batch = {"input_ids": ids}
    if padded:
        lengths = torch.tensor([max(2, tokens - 3 * row) for row in range(rows)])
        mask = (torch.arange(tokens)[None] < lengths[:, None]).long()
        ids[mask == 0] = 1 if name == "roberta" else 0
        batch["attention_mask"] = mask
    if labels:
        batch["labels"] = torch.randint(0, 2, (rows,), generator=generator)
    return batch


def widened(name: str, batch: Mapping[str, Tensor], by: int) -> dict[str, Tensor]:
    """The same batch with `by` more columns of padding."""
    rows = len(batch["input_ids"])
    pad = torch.full((rows, by), 1 if name == "roberta" else 0)
    wide = dict(batch)
    wide["input_ids"] = torch.cat([batch["input_ids"], pad], 1)
    wide["attention_mask"] = torch.cat([batch["attention_mask"], torch.zeros_like(pad)], 1)
    return wide


@torch.no_grad()
def outputs(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Logits, and every hidden state at the tokens that are not padding, in eval mode."""
    was_training = model.training
    model.eval()
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    found = model(**inputs, output_hidden_states=True)
    model.train(was_training)
    tokens = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
    states = {f"state {i}": value[tokens] for i, value in enumerate(found.hidden_states)}
    return {"logits": found.logits, **states}


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Equal within 1e-5, relative to values of order one."""
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}")


@contextmanager
def gated(base: nn.Module, gates: Mapping[str, Tensor]) -> Iterator[None]:
    """Multiply the input channels of named modules; written here anew, not lightpeft's."""

    def multiply(factors: Tensor) -> Any:
        return lambda module, args: (args[0] * factors, *args[1:])

    with ExitStack() as stack:
        for name, factors in gates.items():
            hook = base.get_submodule(name).register_forward_pre_hook(multiply(factors))
            stack.callback(hook.remove)
        yield


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """A deep copy of every tensor of the model."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_identical(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """The same names, shapes and bits; the random heads that PEFT keeps aside do not count."""
    names = [name for name in expected if ".original_module." not in name]
    assert [name for name in found if ".original_module." not in name] == names
    different = [name for name in names if not torch.equal(found[name], expected[name])]
    assert not different


def checkpoint_activations(base: PreTrainedModel, *, reentrant: bool) -> None:
    """Recompute activations in backward; older transformers call it gradient checkpointing."""
    enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable
    enable({"use_reentrant": reentrant})
    base.enable_input_require_grads()


def hook_count(model: nn.Module) -> int:
    """Forward hooks of all kinds on all modules, but for those that stay on a cut model."""
    return sum(
        not isinstance(getattr(hook, "__self__", hook), (AdaptersOn, FirstToken))
        for module in model.modules()
        for hook in [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    )
