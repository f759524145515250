"""Text encoders."""

from lightpeft.anatomy.rows import FFN, Attention, Stack, Stock, blocks, interleaved, separate
from lightpeft.anatomy.units import HeadInput

BERT_COUNTS = {"num_attention_heads": "heads", "all_head_size": "width"}
BERT_FFN = FFN(("intermediate.dense",), "output.dense")

BERT = Stack(
    "encoder.layer",
    Attention(
        "attention.self",
        "attention.output.dense",
        separate("query", "key", "value"),
        head_size="attention_head_size",
        follow=BERT_COUNTS,
    ),
    BERT_FFN,
    stock=Stock(),
)

DISTILBERT = Stack(
    "transformer.layer",
    Attention(
        "attention",
        "attention.out_lin",
        separate("q_lin", "k_lin", "v_lin"),
        head_size="attention_head_size",
        follow={"n_heads": "heads", "dim": "width"},
    ),
    FFN(("ffn.lin1",), "ffn.lin2"),
    stock=Stock(neurons="hidden_dim", layers="n_layers"),
)

ALBERT = Stack(
    "encoder.albert_layer_groups.*.albert_layers",
    Attention(
        "attention",
        "attention.dense",
        separate("query", "key", "value"),
        head_size="attention_head_size",
        follow=BERT_COUNTS,
        returns=None,
    ),
    FFN(("ffn",), "ffn_output"),
    title="shared layer",
    stock=Stock(layers=None),
    note="ALBERT runs the same layer many times; what is cut, is cut from every run of it",
)

MODERNBERT = Stack(
    "layers",
    Attention("attn", "attn.Wo", blocks("Wqkv")),
    FFN(("mlp.Wi",), "mlp.Wo", fused=2),
    stock=Stock(
        attention_bias="attention_bias",
        ffn_bias="mlp_bias",
        first="the first layer alone has no norm before its attention",
    ),
)

MPNET = Stack(
    "encoder.layer",
    Attention(
        "attention.attn",
        "attention.attn.o",
        separate("q", "k", "v"),
        head_size="attention_head_size",
        follow=BERT_COUNTS,
        head_inputs=(HeadInput("position_bias"),),
    ),
    BERT_FFN,
    stock=Stock(),
)

DEBERTA = Stack(
    "encoder.layer",
    Attention(
        "attention.self",
        "attention.output.dense",
        interleaved("in_proj", position=("pos_proj", "pos_q_proj"), vectors=("q_bias", "v_bias")),
        head_size="attention_head_size",
        follow=BERT_COUNTS,
        fixed_if=("talking_head", "its talking heads mix all heads"),
    ),
    BERT_FFN,
    stock=Stock(),
)

DEBERTA_V2 = Stack(
    "encoder.layer",
    Attention(
        "attention.self",
        "attention.output.dense",
        separate("query_proj", "key_proj", "value_proj", position=("pos_key_proj", "pos_query_proj")),
        head_size="attention_head_size",
        follow=BERT_COUNTS,
    ),
    BERT_FFN,
    stock=Stock(numbered={"conv_kernel_size": 0}),
)

ENCODERS: dict[str, tuple[Stack, ...]] = {
    "bert": (BERT,),
    "roberta": (BERT,),
    "xlm-roberta": (BERT,),
    "camembert": (BERT,),
    "electra": (BERT,),
    "distilbert": (DISTILBERT,),
    "albert": (ALBERT,),
    "modernbert": (MODERNBERT,),
    "mpnet": (MPNET,),
    "deberta": (DEBERTA,),
    "deberta-v2": (DEBERTA_V2,),
}
