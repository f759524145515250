"""A LLaMA-like light model as a GGUF file, for llama.cpp and what is built on it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from lightpeft.anatomy import base_of
from lightpeft.checkpoint.extras import need
from lightpeft.checkpoint.gguf_vocabulary import Vocabulary, read_vocabulary
from lightpeft.checkpoint.merged import merge
from lightpeft.errors import CheckpointError

FILE = "model.gguf"

Bytes = NDArray[np.uint8]

_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_LINEARS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclass(frozen=True)
class _Architecture:
    """One of llama.cpp, and where its tensors are in transformers' layers."""

    name: str
    norms: Mapping[str, str] = field(default_factory=lambda: _NORMS)
    rotates_halves: bool = True
    """Of a head, as transformers does; others rotate pairs of neighbours."""

    biased: frozenset[str] = frozenset()
    """Linears that may have a bias."""

    as_wide: bool = False
    """Whether all heads together have to be as wide as the model."""

    norms_add_one: bool = False
    """Whether transformers multiplies by one more than the weights of norms say."""

    activation: str = "silu"
    swa_pattern: int | None = None
    """Of that many layers one sees all tokens, the others a window."""


_PER_LAYER = _Architecture("deci", rotates_halves=False, biased=frozenset(_LINEARS))
"""llama.cpp's only LLaMA-like architecture with numbers of its own for each layer."""

_LLAMA = replace(_PER_LAYER, name="llama")
_GEMMA = _Architecture("gemma", norms_add_one=True, activation="gelu_pytorch_tanh")
_OWN = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _Architecture("qwen2", biased=frozenset({"attn_q", "attn_k", "attn_v"}), as_wide=True),
    "qwen3": _Architecture("qwen3", _NORMS | _HEAD_NORMS),
    "gemma": _GEMMA,
    "gemma3_text": replace(
        _GEMMA,
        name="gemma3",
        norms=_HEAD_NORMS
        | {
            "attn_norm": "input_layernorm",
            "post_attention_norm": "post_attention_layernorm",
            "ffn_norm": "pre_feedforward_layernorm",
            "post_ffw_norm": "post_feedforward_layernorm",
        },
        swa_pattern=6,
    ),
}
"""Per architecture of transformers the one of llama.cpp that an even cut is written as."""

_UNEVEN = {"llama", "mistral", "qwen2"}
"""Those of them that a `deci` computes, too."""

_SWA_THETA = 10000.0
"""Of the rotary positions in layers with a window, which llama.cpp takes for Gemma's."""

_LEAST_NEURONS = 32
"""Of a block that lost all of its own: zeros, because where there are none llama.cpp skips more than that."""

_INSTEAD = "Write the small model with its plan instead (--to merged), which lightpeft loads."


def check_gguf_extra() -> None:
    """Check that what a GGUF export needs is installed.

    Raises:
        ConfigError: a package of the extra `gguf` is not.
    """
    need("gguf", extra="gguf")


def require_gguf(described: Mapping[str, Any], source: Path) -> None:
    """Refuse, before it is built, a base that llama.cpp does not compute as transformers does.

    Args:
        described: what `describe_base` said of it.
        source: the light checkpoint, for its tokenizer.

    Raises:
        CheckpointError: it says what was found.
    """
    config = described.get("config") or {}
    found = f"the base is of class {described.get('auto_class')}"
    if described.get("auto_class") == "AutoModelForCausalLM":
        found = _what_differs(config)
    if found:
        raise CheckpointError(
            f"{found}; GGUF files are written of language models like {', '.join(_OWN)}, with plain rotary "
            f"positions and full attention, or Gemma 3's windows. {_INSTEAD}"
        )
    read_vocabulary(source, config["vocab_size"])


def _what_differs(config: Mapping[str, Any]) -> str:
    """What of a configuration llama.cpp computes otherwise, in words; empty if nothing does."""
    architecture = _OWN.get(str(config.get("model_type")))
    if architecture is None:
        return f"the base is a {config.get('model_type')}"
    rope = config.get("rope_parameters") or {}
    ropes = [one for one in rope.values() if isinstance(one, dict)] or [rope]
    others = [one["rope_type"] for one in ropes if one.get("rope_type", "default") != "default"]
    activation = config.get("hidden_activation") or config.get("hidden_act", architecture.activation)
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    size, scalar = config.get("head_dim"), config.get("query_pre_attn_scalar")
    capped = [name for name in ("attn_logit_softcapping", "final_logit_softcapping") if config.get(name)]
    local = (rope.get("sliding_attention") or {}).get("rope_theta", _SWA_THETA)
    if others:
        return f"its positions are of type {others[0]}"
    if activation not in (architecture.activation, "gelu" if architecture.norms_add_one else None):
        return f"its activation is {activation}"
    if architecture.swa_pattern is None and window is not None and window < config["max_position_embeddings"]:
        return f"it sees {window} tokens back alone"
    if capped or config.get("use_bidirectional_attention"):
        return f"it has {(capped or ['use_bidirectional_attention'])[0]}"
    if scalar not in (None, size):
        return f"it scales queries by {scalar} where heads are {size} wide"
    if local != _SWA_THETA:
        return f"its positions in windows turn by {local:g} instead of {_SWA_THETA:g}"
    return ""


def save_gguf(model: PeftModel, folder: Path, source: Path) -> None:
    """Write a light language model as `model.gguf`.

    Under its own architecture if every layer was cut alike, else, of those like LLaMA, as `deci`, which has
    numbers of heads and neurons for each layer.

    Args:
        model: what `load` gave; it is merged in place.
        folder: is there already.
        source: the light checkpoint, for its tokenizer.

    Raises:
        CheckpointError: the model cannot be merged, its tokenizer or its plan has no place in a GGUF file, or
            what was written reads back otherwise.
    """
    vocabulary = read_vocabulary(source, base_of(model).config.vocab_size)
    record, merged = merge(model)
    skipped = {layer.index for layer in record.plan.skipped_layers}
    layers = [
        _Layer(merged, number) for number in range(merged.config.num_hidden_layers) if number not in skipped
    ]
    _write(merged, layers, vocabulary, folder / FILE)


class _Layer:
    """The tensors of a layer, by llama.cpp's names."""

    def __init__(self, model: PreTrainedModel, number: int) -> None:
        self.number = number
        self._state = {
            name.removeprefix(f"model.layers.{number}."): value
            for name, value in model.state_dict().items()
            if name.startswith(f"model.layers.{number}.")
        }
        self.head_dim = _head_dim(model.config)
        self.groups = model.config.num_attention_heads // model.config.num_key_value_heads
        self.has_heads = self._rows("attn_q") > 0
        self.has_neurons = self._rows("ffn_up") > 0
        self.heads = self._rows("attn_q") // self.head_dim if self.has_heads else self.groups
        self.kv_heads = self._rows("attn_k") // self.head_dim if self.has_heads else 1
        self.neurons = self._rows("ffn_up") if self.has_neurons else _LEAST_NEURONS

    def _rows(self, name: str) -> int:
        return len(self._state[f"{_LINEARS[name]}.weight"])

    @property
    def biased(self) -> set[str]:
        """Linears with a bias."""
        return {name for name, path in _LINEARS.items() if f"{path}.bias" in self._state}

    def tensors(self, architecture: _Architecture) -> Iterator[tuple[str, Tensor]]:
        """Weights and biases."""
        pairs = not architecture.rotates_halves
        for name, path in architecture.norms.items():
            yield f"{name}.weight", self._state[f"{path}.weight"] + float(architecture.norms_add_one)
        for name, path in _LINEARS.items():
            weight, bias = self._state[f"{path}.weight"], self._state.get(f"{path}.bias")
            heads = {"attn_q": self.heads, "attn_k": self.kv_heads}.get(name)
            weight = self._filled(name, weight)
            if bias is not None and not len(bias):
                bias = bias.new_zeros(len(weight))
            if heads is not None and pairs:
                weight = _in_pairs(weight, heads)
                bias = None if bias is None else _in_pairs(bias[:, None], heads)[:, 0]
            yield f"{name}.weight", weight
            if bias is not None:
                yield f"{name}.bias", bias

    def _filled(self, name: str, weight: Tensor) -> Tensor:
        """Zeros in place of a block that has no units left."""
        is_ffn = name.startswith("ffn_")
        if self.has_neurons if is_ffn else self.has_heads:
            return weight
        kv = name in ("attn_k", "attn_v")
        inner = self.neurons if is_ffn else self.head_dim * (self.kv_heads if kv else self.heads)
        if name in ("attn_output", "ffn_down"):
            return weight.new_zeros(len(weight), inner)
        return weight.new_zeros(inner, weight.shape[1])


def _in_pairs(weight: Tensor, heads: int) -> Tensor:
    """Rows of heads whose two halves are rotated, as those of heads whose neighbours are."""
    rows, columns = weight.shape
    return weight.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)


def _head_dim(config: PreTrainedConfig) -> int:
    found: int | None = getattr(config, "head_dim", None)
    return found or config.hidden_size // config.num_attention_heads


@dataclass(frozen=True)
class _Sizes:
    heads: int | list[int]
    kv_heads: int | list[int]
    neurons: int | list[int]


def _architecture(config: PreTrainedConfig, layers: list[_Layer]) -> tuple[_Architecture, _Sizes]:
    own = _OWN[config.model_type]
    counts = {(layer.heads, layer.kv_heads, layer.neurons) for layer in layers}
    if len(counts) == 1 and all(_fits(layer, own, config) for layer in layers):
        return own, _Sizes(*counts.pop())
    if config.model_type not in _UNEVEN:
        raise CheckpointError(
            f"as GGUF a {config.model_type} has the same numbers of heads and neurons in every layer, and no "
            f"biases of compensation. Cut with budget.uniform=true and surgery.compensate=false. {_INSTEAD}"
        )
    return _PER_LAYER, _Sizes(
        [layer.heads for layer in layers],
        [layer.kv_heads for layer in layers],
        [layer.neurons for layer in layers],
    )


def _fits(layer: _Layer, own: _Architecture, config: PreTrainedConfig) -> bool:
    """Whether an architecture has room for what is in a layer."""
    is_as_wide = layer.heads * layer.head_dim == config.hidden_size
    return layer.biased <= own.biased and (is_as_wide or not own.as_wide)


def _write(model: PreTrainedModel, layers: list[_Layer], vocabulary: Vocabulary, path: Path) -> None:
    import gguf

    config = model.config
    architecture, sizes = _architecture(config, layers)
    kind = _KINDS.get(model.dtype, _KINDS[torch.float32])
    writer = gguf.GGUFWriter(str(path), architecture.name)
    writer.add_file_type(getattr(gguf.LlamaFileType, kind[0]))
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(len(layers))
    writer.add_head_count(sizes.heads)
    writer.add_head_count_kv(sizes.kv_heads)
    writer.add_feed_forward_length(sizes.neurons)
    writer.add_key_length(_head_dim(config))
    writer.add_value_length(_head_dim(config))
    writer.add_rope_dimension_count(_head_dim(config))
    rope = config.rope_parameters or {}
    writer.add_rope_freq_base(float(rope.get("full_attention", rope).get("rope_theta", 10000.0)))
    if architecture.swa_pattern is not None:
        _write_windows(writer, config, layers, architecture.swa_pattern)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    vocabulary.write(writer)
    written = {
        tensor_name: _add(writer, tensor_name, value, kind[1])
        for tensor_name, value in _tensors(model, layers, architecture)
    }
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    _read_back(path, written)


def _write_windows(writer: Any, config: PreTrainedConfig, layers: list[_Layer], pattern: int) -> None:
    """Which of the layers that are left see a window, where that is not the usual pattern any more."""
    windowed = [config.layer_types[layer.number] == "sliding_attention" for layer in layers]
    writer.add_sliding_window(config.sliding_window)
    if windowed != [(place + 1) % pattern != 0 for place in range(len(layers))]:
        writer.add_sliding_window_pattern(windowed)


_KINDS = {
    torch.float32: ("ALL_F32", "F32"),
    torch.float16: ("MOSTLY_F16", "F16"),
    torch.bfloat16: ("MOSTLY_BF16", "BF16"),
}
"""Per dtype of a model GGUF's names of a file and of a tensor of it."""


def _tensors(
    model: PreTrainedModel, layers: list[_Layer], architecture: _Architecture
) -> Iterator[tuple[str, Tensor]]:
    state = model.state_dict()
    yield "token_embd.weight", state["model.embed_tokens.weight"]
    for number, layer in enumerate(layers):
        for name, value in layer.tensors(architecture):
            yield f"blk.{number}.{name}", value
    yield "output_norm.weight", state["model.norm.weight"] + float(architecture.norms_add_one)
    if not model.config.tie_word_embeddings:
        yield "output.weight", state["lm_head.weight"]


def _add(writer: Any, name: str, value: Tensor, kind: str) -> Bytes:
    """Add matrices in the model's dtype, vectors in float32, as llama.cpp wants them; what was added."""
    import gguf

    wanted = getattr(gguf.GGMLQuantizationType, "F32" if value.dim() == 1 else kind)
    stored = gguf.quants.quantize(value.detach().cpu().float().contiguous().numpy(), wanted)
    writer.add_tensor(name, stored, raw_dtype=wanted)
    return stored.view(np.uint8).reshape(-1)


def _read_back(path: Path, written: dict[str, Bytes]) -> None:
    import gguf

    found = {one.name: one.data.view(np.uint8).reshape(-1) for one in gguf.GGUFReader(path).tensors}
    odd = [name for name, value in written.items() if name not in found or (found[name] != value).any()]
    if odd or len(found) != len(written):
        raise CheckpointError(
            f"{path.name} does not hold the model's tensors ({odd[:3]}); the disk may be faulty."
        )
