"""Encoder-decoders for text."""

from dataclasses import replace

from lightpeft.anatomy.rows import FFN, Attention, Stack, Stock, separate
from lightpeft.anatomy.units import HeadInput

BART_SELF = Attention(
    "self_attn",
    "self_attn.out_proj",
    separate("q_proj", "k_proj", "v_proj"),
    follow={"num_heads": "heads"},
)
BART_CROSS = replace(BART_SELF, module="encoder_attn", out="encoder_attn.out_proj")
BART_FFN = FFN(("fc1",), "fc2")
BART = (
    Stack(
        "encoder.layers",
        BART_SELF,
        BART_FFN,
        title="encoder",
        stock=Stock(neurons="encoder_ffn_dim", layers="encoder_layers"),
    ),
    Stack(
        "decoder.layers",
        BART_SELF,
        BART_FFN,
        cross=BART_CROSS,
        title="decoder",
        stock=Stock(neurons="decoder_ffn_dim", layers="decoder_layers"),
    ),
)


def _t5_attention(module: str) -> Attention:
    return Attention(
        module,
        f"{module}.o",
        separate("q", "k", "v"),
        head_size="key_value_proj_dim",
        follow={"n_heads": "heads", "inner_dim": "width"},
        head_inputs=(HeadInput("position_bias", returned_at=1),),
        fixed_if=(
            "has_relative_attention_bias",
            "it computes the relative position bias of all heads for every layer above",
        ),
        returns=3,
    )


def _t5_ffn(position: int) -> FFN:
    names = ("wi", "wi_0", "wi_1")
    block = f"layer.{position}.DenseReluDense"
    return FFN(tuple(f"{block}.{name}" for name in names), f"{block}.wo")


T5_STOCK = Stock(neurons="d_ff", heads={"num_heads": "heads"}, layers="num_layers")
T5 = (
    Stack(
        "encoder.block",
        _t5_attention("layer.0.SelfAttention"),
        _t5_ffn(1),
        title="encoder",
        stock=T5_STOCK,
    ),
    Stack(
        "decoder.block",
        _t5_attention("layer.0.SelfAttention"),
        _t5_ffn(2),
        cross=_t5_attention("layer.1.EncDecAttention"),
        title="decoder",
        stock=replace(T5_STOCK, layers="num_decoder_layers"),
    ),
)

ENCODER_DECODERS: dict[str, tuple[Stack, ...]] = {
    "bart": BART,
    "mbart": BART,
    "t5": T5,
    "mt5": T5,
}
