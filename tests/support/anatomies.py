"""Anatomies without models."""

from lightpeft.anatomy import Layer, Rows, Units


def attention_units(
    query: str, key: str, value: str, out: str, heads: int, size: int, *, width: int = 32, group: int = 1
) -> Units:
    """Heads with a linear each for query, key and value; `group` query heads share a KV head."""
    rows = (
        Rows(query, "query", 0, size, 1, width + 1),
        Rows(key, "key", 0, size, group, width + 1),
        Rows(value, "value", 0, size, group, width + 1),
    )
    return Units("heads", "attention", out, heads, size, rows, size * width, group=group, returns=2)


def ffn_units(up: str, down: str, neurons: int, *, width: int = 32) -> Units:
    """Neurons between two linears."""
    rows = (Rows(up, "input", 0, 1, 1, width + 1),)
    return Units("neurons", "ffn", down, neurons, 1, rows, width, returns=1)


def layer(index: int, attention: Units | None, ffn: Units | None, module: str | None = None) -> Layer:
    """A layer with norms and biases of 32 wide."""
    return Layer(index, f"layer {index}", module or f"layers.{index}", attention, ffn, 32 * 6)
