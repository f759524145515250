"""What is measured in the forward pass: inputs of gated linears, shares of PEFT modules, hidden states."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from lightpeft.adapters import PeftModule
from lightpeft.anatomy import Anatomy, hidden_in, hidden_of
from lightpeft.errors import EstimationError
from lightpeft.estimation.sites import Site
from lightpeft.estimation.statistics import WindowSums


class Tokens(NamedTuple):
    """Which tokens count."""

    weights: Tensor
    """1 or 0 of each token, float32 and flat."""

    total: Tensor
    """Their sum, a scalar."""


class TokenWeights:
    """Which tokens of the current batch count: those that its attention masks do not hide.

    A decoder is often not told its padding; then its own inputs say it, whatever became of the labels.
    """

    def __init__(self, base: PreTrainedModel, anatomy: Anatomy) -> None:
        self._masks: dict[str, Tensor] = {}
        self._known: dict[tuple[str, torch.Size], Tokens] = {}
        self._cross = _readers_of_the_encoder(anatomy)
        self._padding = getattr(base.config, "pad_token_id", None)
        self._starts_with_padding = getattr(base.config, "decoder_start_token_id", None) == self._padding
        self.handles = [base.base_model.register_forward_pre_hook(self._note_mask, with_kwargs=True)]
        if base.config.is_encoder_decoder and base.get_decoder() not in (base, base.base_model):
            self.handles.append(
                base.get_decoder().register_forward_pre_hook(self._note_decoder, with_kwargs=True)
            )

    def of(self, activations: Tensor, module: str) -> Tokens:
        """The tokens of activations (..., channels) in front of `module`.

        Where no mask has their shape (pooled outputs, positions, patches of an image), every row counts.
        """
        shape = activations.shape[:-1]
        own = "decoder" if ".decoder." in f".{module}" and module not in self._cross else "encoder"
        if (own, shape) not in self._known:
            weights = self._weights(own, shape, activations.device)
            self._known[own, shape] = Tokens(weights, weights.sum())
        return self._known[own, shape]

    def _weights(self, own: str, shape: torch.Size, device: torch.device) -> Tensor:
        for kind in (own,) if own == "decoder" else ("encoder", "decoder"):
            mask = self._masks.get(kind)
            if mask is not None and kind == own and len(shape) == 2 and mask.shape[1] > shape[1]:
                mask = mask[:, -shape[1] :]  # the rest is of a prefix
            if mask is not None and (mask.shape == shape or (len(shape) == 1 and mask.numel() == shape[0])):
                return mask.reshape(-1).float()
        return torch.ones(shape.numel(), device=device)

    def _note_mask(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
        self._masks = {"encoder": _flat(given)} if isinstance(given, Tensor) else {}
        self._known = {}

    def _note_decoder(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
        tokens = kwargs.get("input_ids", args[0] if args else None)
        self._known = {}
        if isinstance(given, Tensor):
            self._masks["decoder"] = _flat(given)
        elif isinstance(tokens, Tensor) and tokens.dim() == 2 and self._padding is not None:
            real = tokens != self._padding
            if self._starts_with_padding:  # as T5 and Marian: that token is none
                real[:, 0] = True
            self._masks["decoder"] = real


def _flat(mask: Tensor) -> Tensor:
    if mask.dim() != 2:
        raise EstimationError(
            f"the model got an attention mask of shape {tuple(mask.shape)}; estimation needs (batch, tokens) "
            "to know which tokens are padding."
        )
    return mask


def _readers_of_the_encoder(anatomy: Anatomy) -> frozenset[str]:
    """Keys and values of cross-attention, which is a layer after its own and of the same module."""
    names: set[str] = set()
    above = None
    for layer in anatomy.layers:
        if layer.module == above and layer.attention is not None:
            names |= {rows.name for rows in layer.attention.rows if rows.role in ("key", "value")}
        above = layer.module
    return frozenset(names)


def measure_inputs(
    base: PreTrainedModel, sites: Sequence[Site], sums: WindowSums, tokens: TokenWeights, *, squares: bool
) -> list[RemovableHandle]:
    """Sum the inputs of gated linears over the tokens that count.

    Sums go to `input_sum` (all channels, site after site), to `input_count` (one per site), and with
    `squares` to `input_square`.
    """

    def hook_for(name: str, position: int, start: int, stop: int) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if not module.training:
                return
            with torch.no_grad():
                flat = inputs[0].detach().flatten(0, -2).float()
                real = tokens.of(inputs[0], name)
                sums.current("input_sum")[start:stop] += real.weights @ flat
                sums.current("input_count")[position] += real.total
                if squares:
                    sums.current("input_square")[start:stop] += real.weights @ flat.square()

        return hook

    handles, start = [], 0
    for position, site in enumerate(sites):
        module = base.get_submodule(site.module)
        stop = start + site.channels
        handles.append(module.register_forward_pre_hook(hook_for(site.module, position, start, stop)))
        start = stop
    return handles


def measure_contributions(
    modules: Sequence[PeftModule], sums: WindowSums, tokens: TokenWeights
) -> list[RemovableHandle]:
    """Sum each module's share, ‖ΔW_k x‖₂ / ‖W_k x‖₂ or its like, over the tokens that count.

    Sums go to `share_sum` and `share_count`, one entry per module. A forward that gradient checkpointing
    repeats adds to both alike, so the mean stays.
    """

    def note_for(position: int, module: PeftModule) -> Callable[[Tensor, Tensor], None]:
        def note(ratio: Tensor, activations: Tensor) -> None:
            real = tokens.of(activations, module.name)
            sums.current("share_sum")[position] += ratio @ real.weights
            sums.current("share_count")[position] += real.total

        return note

    return [
        handle
        for position, module in enumerate(modules)
        for handle in module.measure(note_for(position, module))
    ]


def measure_similarities(
    base: PreTrainedModel, layers: Sequence[str], sums: WindowSums, tokens: TokenWeights
) -> list[RemovableHandle]:
    """Sum the cosine between the hidden states before and after each layer over the tokens that count.

    Sums go to `similarity_sum` and `similarity_count`, one entry per layer.
    """
    return _measure_layers(base, layers, sums, tokens, ("similarity_sum", "similarity_count"), _cosine)


def measure_hidden_states(
    base: PreTrainedModel, layers: Sequence[str], sums: WindowSums, tokens: TokenWeights
) -> list[RemovableHandle]:
    """Sum the squared norm of the hidden states before each layer over the tokens that count.

    Sums go to `hidden_square` and `hidden_count`, one entry per layer.
    """
    return _measure_layers(base, layers, sums, tokens, ("hidden_square", "hidden_count"), _square)


def _cosine(before: Tensor, after: Tensor) -> Tensor:
    return torch.cosine_similarity(before.float(), after.float(), dim=-1)


def _square(before: Tensor, after: Tensor) -> Tensor:
    del after
    return before.float().square().sum(-1)


def _measure_layers(
    base: PreTrainedModel,
    layers: Sequence[str],
    sums: WindowSums,
    tokens: TokenWeights,
    names: tuple[str, str],
    value_of: Callable[[Tensor, Tensor], Tensor],
) -> list[RemovableHandle]:
    """Sum a number of each token, from the hidden states before and after a layer, and count the tokens."""
    total, count = names

    def hook_for(name: str, position: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if not module.training:
                return
            with torch.no_grad():
                before = hidden_in(args, kwargs)
                real = tokens.of(before, name)
                sums.current(total)[position] += value_of(before, hidden_of(output)).flatten() @ real.weights
                sums.current(count)[position] += real.total

        return hook

    return [
        base.get_submodule(name).register_forward_hook(hook_for(name, position), with_kwargs=True)
        for position, name in enumerate(layers)
    ]
