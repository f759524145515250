"""The architectures lightpeft knows. A new one is one row: a `Family` and its `model_type`s in `FAMILIES`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """Where the units of one architecture live: module names relative to an encoder layer."""

    layers: str
    """The list of layers, relative to the encoder (`model.base_model`)."""

    attention: str
    """The module that reshapes to heads and carries the head counts."""

    query: str
    key: str
    value: str
    attention_out: str
    ffn_in: tuple[str, ...]
    """Linears whose output rows are neurons (two for gated FFNs)."""

    ffn_out: str
    head_count: str
    """Attribute of `attention`: number of heads."""

    head_size: str
    """Attribute of `attention`: width of one head."""

    head_width: str | None = None
    """Attribute of `attention`: heads × head size, where it exists apart from the head count."""


BERT = Family(
    layers="encoder.layer",
    attention="attention.self",
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    attention_out="attention.output.dense",
    ffn_in=("intermediate.dense",),
    ffn_out="output.dense",
    head_count="num_attention_heads",
    head_size="attention_head_size",
    head_width="all_head_size",
)

DISTILBERT = Family(
    layers="transformer.layer",
    attention="attention",
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    attention_out="attention.out_lin",
    ffn_in=("ffn.lin1",),
    ffn_out="ffn.lin2",
    head_count="n_heads",
    head_size="attention_head_size",
    head_width="dim",
)

FAMILIES: dict[str, Family] = {
    "bert": BERT,
    "roberta": BERT,
    "electra": BERT,
    "distilbert": DISTILBERT,
}
