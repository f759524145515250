"""Every architecture, tiny, from its configuration: what it is made of, told apart from lightpeft's table.

A row says how to build the model and which linears carry units; gates on their inputs are the oracle.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForSpeechSeq2Seq,
    PreTrainedConfig,
    PreTrainedModel,
)

from tests.support.forms import FORM_ROWS

VOCABULARY, WIDTH, HEADS, NEURONS = 99, 32, 4, 48
AUTO: dict[str, Any] = {
    "text": AutoModelForSequenceClassification,
    "causal": AutoModelForCausalLM,
    "seq2seq": AutoModelForSeq2SeqLM,
    "image": AutoModelForImageClassification,
    "speech": AutoModelForSpeechSeq2Seq,
    "audio": AutoModelForAudioClassification,
    "towers": AutoModel,
}


@dataclass(frozen=True)
class Outs:
    """Output projections of one kind: `{}` is the layer's number."""

    path: str
    kind: str
    layers: int
    units: int
    group: int = 1
    """Query heads per KV head."""

    splits: bool = True
    """Whether query heads of a KV group can go apart."""

    fixed: tuple[int, ...] = ()
    """Layers in which nothing can go."""


@dataclass(frozen=True)
class Animal:
    """One architecture, or one variant of it."""

    name: str
    task: str
    options: Mapping[str, Any]
    outs: tuple[Outs, ...]
    model_type: str = ""
    attentions: tuple[str, ...] = ("eager", "sdpa")
    whole: tuple[str, ...] = ("heads", "neurons")
    """Kinds of units of which a layer may lose all."""

    generates: bool = field(default=False)

    def build(self, attention: str = "sdpa", seed: int = 0) -> PreTrainedModel:
        """A random model in which every weight and bias is alive."""
        config = AutoConfig.for_model(self.model_type or self.name, **self.options)
        without_dropout(config)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = AUTO[self.task].from_config(config, attn_implementation=attention)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
        return model.eval()

    def with_peft(self, form: str = "lora", attention: str = "sdpa", rank: int = 3) -> PeftModel:
        """A form of PEFT with living weights, on every linear of every layer where the form allows it."""
        return FORM_ROWS[form].put_on(self, self.build(attention), rank)

    def with_lora(self, attention: str = "sdpa", rank: int = 3) -> PeftModel:
        """LoRA with a living ΔW on every linear of every layer."""
        return self.with_peft("lora", attention, rank)

    def linears(self, base: PreTrainedModel) -> list[str]:
        """Every linear beside or above an output projection in its layer, routers left out."""
        layers = {out.path.partition(".{}.")[0] + f".{i}." for out in self.outs for i in range(out.layers)}
        return [
            name
            for name, module in base.named_modules()
            if type(module).__name__ in ("Linear", "Conv1D", "FalconLinear")
            and any(name.startswith(layer) for layer in layers)
            and not any(part in name for part in ("gate_router", "shared_expert", "relative_attention"))
        ]

    def batch(self, *, padded: bool, labels: bool = False, seed: int = 3) -> dict[str, Tensor]:
        """Random inputs; with `padded` the rows have different lengths, the first one is full."""
        generator = torch.Generator().manual_seed(seed)
        rows, tokens = 3, 10
        batch: dict[str, Tensor] = {}
        if self.task in ("image", "towers"):
            size = 8
            batch["pixel_values"] = torch.randn(rows, 3, size, size, generator=generator)
        if self.task == "speech":
            batch["input_features"] = torch.randn(rows, 8, 20, generator=generator)
        if self.task == "audio":
            batch["input_values"] = torch.randn(rows, 400, generator=generator)
        if self.task not in ("image", "speech", "audio"):
            batch["input_ids"] = torch.randint(5, VOCABULARY - 1, (rows, tokens), generator=generator)
            if padded:
                lengths = torch.tensor([max(3, tokens - 3 * row) for row in range(rows)])
                mask = (torch.arange(tokens)[None] < lengths[:, None]).long()
                batch["input_ids"][mask == 0] = 1
                batch["attention_mask"] = mask
        if self.task in ("text", "image", "audio"):
            if labels:
                batch["labels"] = torch.randint(0, 2, (rows,), generator=generator)
        elif self.task in ("seq2seq", "speech"):
            key = "labels" if labels else "decoder_input_ids"
            batch[key] = torch.randint(5, VOCABULARY - 1, (rows, 7), generator=generator)
        elif self.task == "towers" and labels:
            batch["return_loss"] = torch.tensor(True)
        elif self.task == "causal" and labels:
            ignored = batch.get("attention_mask", torch.ones(rows, tokens)) == 0
            batch["labels"] = batch["input_ids"].masked_fill(ignored, -100)
        return batch


def without_dropout(config: PreTrainedConfig) -> None:
    """Switch off everything random in training, in nested configurations too."""
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            without_dropout(value)
        elif isinstance(value, float) and ("drop" in name or name == "mask_time_prob"):
            setattr(config, name, 0.0)


def _attention(path: str, layers: int = 2, **more: Any) -> Outs:
    return Outs(path, "heads", layers, more.pop("units", HEADS), **more)


def _ffn(path: str, layers: int = 2, units: int = NEURONS) -> Outs:
    return Outs(path, "neurons", layers, units)


TOKENS = {"vocab_size": VOCABULARY, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
BERT = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "intermediate_size": NEURONS,
    "max_position_embeddings": 40,
    **TOKENS,
}
LLAMA = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 4,
    "intermediate_size": NEURONS,
    "max_position_embeddings": 40,
    **TOKENS,
}
BART = {
    "d_model": WIDTH,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": NEURONS,
    "decoder_ffn_dim": NEURONS,
    "max_position_embeddings": 40,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
    **TOKENS,
}
VIT = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "intermediate_size": NEURONS,
    "image_size": 8,
    "patch_size": 4,
}


def _bert(name: str, prefix: str, **options: Any) -> Animal:
    layers = f"{prefix}.encoder.layer.{{}}"
    outs = (_attention(f"{layers}.attention.output.dense"), _ffn(f"{layers}.output.dense"))
    eager = options.pop("attentions", ("eager", "sdpa"))
    return Animal(name, "text", BERT | options, outs, attentions=eager)


def _llama(name: str, **options: Any) -> Animal:
    model_type, attentions = options.pop("model_type", ""), options.pop("attentions", ("eager", "sdpa"))
    attention = _attention("model.layers.{}.self_attn.o_proj", units=8, group=2)
    ffn = (_ffn("model.layers.{}.mlp.down_proj"),) if options.pop("ffn", True) else ()
    return Animal(
        name,
        "causal",
        LLAMA | options,
        (attention, *ffn),
        model_type=model_type,
        attentions=attentions,
        generates=True,
    )


def _bart(prefix: str, cross: bool = True) -> tuple[Outs, ...]:
    decoder = f"{prefix}.decoder.layers.{{}}"
    return (
        _attention(f"{prefix}.encoder.layers.{{}}.self_attn.out_proj"),
        _ffn(f"{prefix}.encoder.layers.{{}}.fc2"),
        _attention(f"{decoder}.self_attn.out_proj"),
        _ffn(f"{decoder}.fc2"),
        _attention(f"{decoder}.encoder_attn.out_proj"),
    )


def _t5(name: str, **options: Any) -> Animal:
    def block(stack: str, number: int, module: str) -> str:
        return f"{stack}.block.{{}}.layer.{number}.{module}"

    outs = (
        _attention(block("encoder", 0, "SelfAttention.o"), fixed=(0,)),
        _ffn(block("encoder", 1, "DenseReluDense.wo")),
        _attention(block("decoder", 0, "SelfAttention.o"), fixed=(0,)),
        _ffn(block("decoder", 2, "DenseReluDense.wo")),
        _attention(block("decoder", 1, "EncDecAttention.o")),
    )
    sizes = {"d_model": WIDTH, "d_kv": 8, "d_ff": NEURONS, "num_layers": 2, "num_heads": HEADS}
    more = TOKENS | {"decoder_start_token_id": 0} | options
    return Animal(name, "seq2seq", sizes | more, outs, model_type="t5", generates=True)


def _falcon(name: str, heads: Outs, **options: Any) -> Animal:
    sizes = {
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "ffn_hidden_size": NEURONS,
    }
    return Animal(
        name,
        "causal",
        sizes | TOKENS | options,
        (heads, _ffn("transformer.h.{}.mlp.dense_4h_to_h")),
        model_type="falcon",
        generates=True,
    )


GPT2_LIKE = "transformer.h.{}"
FALCON_OUT = "transformer.h.{}.self_attention.dense"
DEBERTA = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 16}

ANIMALS: tuple[Animal, ...] = (
    _bert("bert", "bert"),
    _bert("roberta", "roberta"),
    _bert("xlm-roberta", "roberta"),
    _bert("camembert", "roberta"),
    _bert("electra", "electra", embedding_size=WIDTH),
    Animal(
        "distilbert",
        "text",
        {"dim": WIDTH, "n_layers": 2, "n_heads": HEADS, "hidden_dim": NEURONS} | TOKENS,
        (
            _attention("distilbert.transformer.layer.{}.attention.out_lin"),
            _ffn("distilbert.transformer.layer.{}.ffn.lin2"),
        ),
    ),
    Animal(
        "albert",
        "text",
        BERT | {"num_hidden_groups": 2, "num_hidden_layers": 4, "embedding_size": 16},
        (
            _attention("albert.encoder.albert_layer_groups.{}.albert_layers.0.attention.dense"),
            _ffn("albert.encoder.albert_layer_groups.{}.albert_layers.0.ffn_output"),
        ),
        whole=("neurons",),
    ),
    Animal(
        "modernbert",
        "text",
        BERT | {"cls_token_id": 0, "sep_token_id": 2, "global_attn_every_n_layers": 2, "local_attention": 4},
        (_attention("model.layers.{}.attn.Wo"), _ffn("model.layers.{}.mlp.Wo")),
    ),
    Animal(
        "mpnet",
        "text",
        BERT,
        (_attention("mpnet.encoder.layer.{}.attention.attn.o"), _ffn("mpnet.encoder.layer.{}.output.dense")),
        attentions=("eager",),
    ),
    _bert("deberta", "deberta", attentions=("eager",), **DEBERTA),
    _bert("deberta-v2", "deberta", attentions=("eager",), **DEBERTA),
    Animal(
        "deberta-v3",
        "text",
        BERT | DEBERTA | {"share_att_key": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm"},
        _bert("", "deberta").outs,
        model_type="deberta-v2",
        attentions=("eager",),
    ),
    _llama("llama"),
    _llama("mistral", sliding_window=None),
    _llama("qwen2"),
    _llama("qwen3"),
    _llama("gemma"),
    _llama("gemma2", attentions=("eager",)),
    _llama("gemma3", model_type="gemma3_text"),
    _llama("smollm3"),
    _llama("phi3"),
    _llama("mixtral", ffn=False, num_local_experts=2),
    _llama(
        "qwen2_moe",
        ffn=False,
        num_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    ),
    _llama("qwen3_moe", ffn=False, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=16),
    Animal(
        "opt",
        "causal",
        BERT | {"ffn_dim": NEURONS, "word_embed_proj_dim": WIDTH},
        (_attention("model.decoder.layers.{}.self_attn.out_proj"), _ffn("model.decoder.layers.{}.fc2")),
        generates=True,
    ),
    Animal(
        "gpt2",
        "causal",
        {"n_embd": WIDTH, "n_layer": 2, "n_head": HEADS, "n_inner": NEURONS, "n_positions": 40} | TOKENS,
        (_attention(f"{GPT2_LIKE}.attn.c_proj"), _ffn(f"{GPT2_LIKE}.mlp.c_proj")),
        whole=("heads",),
        generates=True,
    ),
    Animal(
        "gpt_neo",
        "causal",
        {
            "hidden_size": WIDTH,
            "num_layers": 2,
            "num_heads": HEADS,
            "intermediate_size": NEURONS,
            "max_position_embeddings": 40,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 4,
            **TOKENS,
        },
        (_attention(f"{GPT2_LIKE}.attn.attention.out_proj"), _ffn(f"{GPT2_LIKE}.mlp.c_proj")),
        attentions=("eager",),
        generates=True,
    ),
    Animal(
        "gpt_neox",
        "causal",
        BERT,
        (
            _attention("gpt_neox.layers.{}.attention.dense"),
            _ffn("gpt_neox.layers.{}.mlp.dense_4h_to_h"),
        ),
        generates=True,
    ),
    Animal(
        "bloom",
        "causal",
        {"hidden_size": WIDTH, "n_layer": 2, "n_head": HEADS} | TOKENS,
        (_attention(FALCON_OUT), _ffn("transformer.h.{}.mlp.dense_4h_to_h", units=4 * WIDTH)),
        attentions=("eager",),
        whole=("neurons",),
        generates=True,
    ),
    _falcon(
        "falcon (grouped)",
        _attention(FALCON_OUT, units=8, group=2, splits=False),
        new_decoder_architecture=True,
        num_kv_heads=4,
    ),
    _falcon("falcon (multi-query)", _attention(FALCON_OUT, units=8, group=8), multi_query=True),
    _falcon("falcon (alibi)", _attention(FALCON_OUT, units=8), multi_query=False, alibi=True, bias=True),
    Animal("bart", "seq2seq", BART, _bart("model"), generates=True),
    _t5("t5"),
    _t5("t5 (gated)", feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    Animal(
        "vit",
        "image",
        VIT,
        (_attention("vit.layers.{}.attention.o_proj"), _ffn("vit.layers.{}.mlp.fc2")),
    ),
    Animal(
        "dinov2",
        "image",
        VIT | {"mlp_ratio": 2},
        (
            _attention("dinov2.encoder.layer.{}.attention.o_proj"),
            _ffn("dinov2.encoder.layer.{}.mlp.fc2", units=2 * WIDTH),
        ),
    ),
    Animal(
        "clip",
        "towers",
        {
            "text_config": BERT | {"projection_dim": 16},
            "vision_config": VIT | {"projection_dim": 16},
            "projection_dim": 16,
        },
        tuple(
            outs
            for tower in ("text_model", "vision_model")
            for outs in (
                _attention(f"{tower}.encoder.layers.{{}}.self_attn.out_proj"),
                _ffn(f"{tower}.encoder.layers.{{}}.mlp.fc2"),
            )
        ),
    ),
    Animal(
        "whisper",
        "speech",
        BART | {"num_mel_bins": 8, "max_source_positions": 10, "max_target_positions": 20},
        _bart("model"),
    ),
    Animal(
        "wav2vec2",
        "audio",
        BERT
        | {
            "conv_dim": [8],
            "conv_kernel": [10],
            "conv_stride": [10],
            "num_feat_extract_layers": 1,
            "num_conv_pos_embeddings": 4,
            "num_conv_pos_embedding_groups": 2,
        },
        (
            _attention("wav2vec2.encoder.layers.{}.attention.out_proj"),
            _ffn("wav2vec2.encoder.layers.{}.feed_forward.output_dense"),
        ),
    ),
)
BY_NAME = {animal.name: animal for animal in ANIMALS}
