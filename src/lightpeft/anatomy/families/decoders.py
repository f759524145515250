"""Decoder-only language models."""

from dataclasses import replace

from lightpeft.anatomy.families.encoder_decoders import BART_FFN, BART_SELF
from lightpeft.anatomy.rows import (
    FFN,
    Attention,
    AttentionView,
    Sibling,
    Stack,
    Stock,
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

GROUPED = {"num_attention_heads": "heads", "num_key_value_heads": "groups", "head_dim": "size"}
GROUPED_STOCK = Stock(heads=GROUPED)
BIASED_STOCK = Stock(heads=GROUPED, attention_bias="attention_bias")
LLAMA_STOCK = Stock(
    heads=GROUPED,
    attention_bias="attention_bias",
    ffn_bias="mlp_bias",
    divides="hidden_size",
    sibling=Sibling("mistral", {"sliding_window": None}),
)
GEMMA_STOCK = replace(BIASED_STOCK, divides="hidden_size")
SMOLLM_STOCK = Stock(
    heads=GROUPED,
    attention_bias="attention_bias",
    ffn_bias="mlp_bias",
    lists=("layer_types", "no_rope_layers"),
)
SPARSE: dict[str, object] = {"mlp_only_layers": [], "decoder_sparse_step": 1}

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
    stock=GROUPED_STOCK,
)

OPT = Stack(
    "decoder.layers",
    BART_SELF,
    BART_FFN,
    stock=Stock(neurons="ffn_dim"),
)

GPT2_FFN = FFN(("mlp.c_fc",), "mlp.c_proj")

GPT2 = Stack(
    "h",
    Attention("attn", "attn.c_proj", blocks("c_attn"), follow={"num_heads": "heads", "split_size": "width"}),
    GPT2_FFN,
    stock=Stock(neurons="n_inner", layers="n_layer", numbered={"scale_attn_by_inverse_layer_idx": False}),
)

GPT_NEO = Stack(
    "h",
    replace(BART_SELF, module="attn.attention", out="attn.attention.out_proj"),
    GPT2_FFN,
    # Its kinds of attention are a pattern that repeats.
    stock=Stock(layers=None),
)

FUSED_FFN = FFN(("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h")

GPT_NEOX = Stack(
    "layers",
    Attention("attention", "attention.dense", interleaved("query_key_value"), head_size="head_size"),
    FUSED_FFN,
    stock=Stock(),
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
    stock=Stock(neurons=None, layers="n_layer"),
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
    stock=Stock(neurons="ffn_hidden_size", attention_bias="bias", ffn_bias="bias"),
)

DECODERS: dict[str, tuple[Stack, ...]] = {
    "llama": (replace(LLAMA, stock=LLAMA_STOCK),),
    "mistral": (replace(LLAMA, stock=GROUPED_STOCK),),
    "qwen2": (replace(LLAMA, stock=GROUPED_STOCK),),
    "qwen3": (replace(LLAMA, stock=BIASED_STOCK),),
    "gemma": (replace(LLAMA, stock=BIASED_STOCK),),
    "gemma2": (replace(LLAMA, stock=GEMMA_STOCK),),
    "gemma3_text": (replace(LLAMA, stock=GEMMA_STOCK),),
    "smollm3": (replace(LLAMA, stock=SMOLLM_STOCK),),
    "phi3": (PHI3,),
    "mixtral": (replace(MIXTURE, stock=GROUPED_STOCK),),
    "qwen2_moe": (replace(MIXTURE, stock=replace(GROUPED_STOCK, numbered=SPARSE)),),
    "qwen3_moe": (replace(MIXTURE, stock=replace(BIASED_STOCK, numbered=SPARSE)),),
    "opt": (OPT,),
    "gpt2": (GPT2,),
    "gpt_neo": (GPT_NEO,),
    "gpt_neox": (GPT_NEOX,),
    "bloom": (BLOOM,),
    "falcon": (FALCON,),
}
