"""Decoder-only language models."""

from dataclasses import replace

from lightpeft.anatomy.families.encoder_decoders import BART_FFN, BART_SELF
from lightpeft.anatomy.rows import (
    FFN,
    Attention,
    AttentionView,
    Stack,
    blocks,
    interleaved,
    linear_at,
    row_parameters,
    separate,
)
from lightpeft.anatomy.units import HeadInput, Rows

GROUPS = {"num_heads": "heads", "num_key_value_heads": "groups", "num_key_value_groups": "group"}
GATED = FFN(("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj")
LLAMA_ATTENTION = Attention(
    "self_attn", "self_attn.o_proj", separate("q_proj", "k_proj", "v_proj"), follow=GROUPS
)
LLAMA = Stack("layers", LLAMA_ATTENTION, GATED)

MIXTURE = Stack(
    "layers",
    LLAMA_ATTENTION,
    None,
    note="experts are not cut: heads, PEFT modules and ranks are",
)

PHI3 = Stack(
    "layers",
    Attention(
        "self_attn",
        "self_attn.o_proj",
        blocks("qkv_proj"),
        # Phi-3 splits its fused projection by the configuration's head count.
        follow=GROUPS | {"config.num_attention_heads": "heads"},
    ),
    FFN(("mlp.gate_up_proj",), "mlp.down_proj", fused=2),
)

OPT = Stack(
    "decoder.layers",
    BART_SELF,
    BART_FFN,
)

GPT2_FFN = FFN(("mlp.c_fc",), "mlp.c_proj")

GPT2 = Stack(
    "h",
    Attention("attn", "attn.c_proj", blocks("c_attn"), follow={"num_heads": "heads", "split_size": "width"}),
    GPT2_FFN,
)

GPT_NEO = Stack(
    "h",
    replace(BART_SELF, module="attn.attention", out="attn.attention.out_proj"),
    GPT2_FFN,
)

FUSED_FFN = FFN(("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h")

GPT_NEOX = Stack(
    "layers",
    Attention("attention", "attention.dense", interleaved("query_key_value"), head_size="head_size"),
    FUSED_FFN,
)

BLOOM = Stack(
    "h",
    Attention(
        "self_attention",
        "self_attention.dense",
        interleaved("query_key_value"),
        follow={"num_heads": "heads"},
        head_inputs=(HeadInput("alibi"),),
        # The module adds the residual itself.
        returns=None,
    ),
    FUSED_FFN,
)


def falcon_rows(view: AttentionView) -> tuple[Rows, ...]:
    """Falcon's three ways to fuse: by KV group, one KV head behind all queries, or head by head."""
    name, attention = "query_key_value", view.attention
    if attention.new_decoder_architecture:
        linear, groups = f"{view.module}.{name}", attention.num_kv_heads
        assert isinstance(groups, int)
        cost = row_parameters(linear_at(view.base, linear))
        return (Rows(linear, "fused", 0, view.width(name) // groups, view.heads // groups, cost),)
    if attention.multi_query:
        return blocks(name)(view)
    return interleaved(name)(view)


FALCON = Stack(
    "h",
    Attention(
        "self_attention",
        "self_attention.dense",
        falcon_rows,
        follow={"num_heads": "heads", "num_kv_heads": "groups"},
        head_inputs=(HeadInput("alibi"), HeadInput("attention_mask")),
    ),
    FUSED_FFN,
)

DECODERS: dict[str, tuple[Stack, ...]] = {
    "llama": (LLAMA,),
    "mistral": (LLAMA,),
    "qwen2": (LLAMA,),
    "qwen3": (LLAMA,),
    "gemma": (LLAMA,),
    "gemma2": (LLAMA,),
    "gemma3_text": (LLAMA,),
    "smollm3": (LLAMA,),
    "phi3": (PHI3,),
    "mixtral": (MIXTURE,),
    "qwen2_moe": (MIXTURE,),
    "qwen3_moe": (MIXTURE,),
    "opt": (OPT,),
    "gpt2": (GPT2,),
    "gpt_neo": (GPT_NEO,),
    "gpt_neox": (GPT_NEOX,),
    "bloom": (BLOOM,),
    "falcon": (FALCON,),
}
