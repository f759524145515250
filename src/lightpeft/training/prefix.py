"""The frozen prefix: the lowest layers, which nothing trains, give every example once what they give it.

Below the lowest trained PEFT module nothing needs a backward pass. Without dropout what these layers put out
for an example is a constant. Here they run without a graph and in eval mode, and for an example that was seen
before their output comes from a cache (Embedding Recycling, Saad-Falcon et al. 2023).
"""

import contextlib
import functools
import inspect
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from lightpeft.anatomy import base_of, lowest_stack
from lightpeft.config import PrefixConfig
from lightpeft.training.examples import Batch, UnknownInputError
from lightpeft.training.row_cache import RowCache

logger = logging.getLogger(__name__)

_PAST = "past_key_values"
_RECORDED = ("output_hidden_states", "output_attentions")
_LEAST_REPEATS = 0.05
"""Share of examples that have been seen before, below which the cache is given up..."""
_PASSES = 1.25
"""... after so many passes over the data,"""
_UNKNOWN_ROWS = 50_000
"""or, where nobody knows how many examples there are, after so many of them."""


@dataclass(frozen=True)
class Ahead:
    """What is left of a run."""

    passes: float | None
    """Passes over the training data; None where their length is not known."""

    rows: int | None
    """Examples of one pass, if known."""

    folder: Path
    """Where a file may be made."""


def freeze_prefix(
    model: nn.Module, config: PrefixConfig, ahead: Ahead, is_over: Callable[[], bool]
) -> "FrozenPrefix | None":
    """Run the lowest layers of a cut model apart, if there are any and it is asked for."""
    if not config.frozen:
        return None
    count = len(frozen_layer_names(model))
    if count == 0:
        logger.info("frozen prefix: none, because the lowest layer is trained")
        return None
    cache, how = None, "without a cache, because prefix.cache is off"
    if config.cache and ahead.passes is not None and ahead.passes <= 1:
        how = "without a cache, because one pass over the data is left"
    elif config.cache:
        dtype = None if config.dtype == "compute" else torch.bfloat16
        memory, disk = (int(size * 2**30) for size in (config.memory, config.disk))
        cache, how = RowCache(memory, disk, ahead.folder, dtype), "from a cache for examples seen before"
    logger.info("frozen prefix: the lowest %d layers run without graph and dropout, %s", count, how)
    return FrozenPrefix(model, cache=cache, rows=ahead.rows, is_over=is_over)


class FrozenPrefix:
    """Runs the lowest layers of a model apart from the rest, for as long as it is attached.

    When the model calls its stack of layers, the lowest ones are run first, alone, for those examples of the
    batch that the cache does not have: the stack itself is called, and left after the last of them. Then the
    ordinary call goes on; in it they are passed over, and the last of them hands on what is known already.
    So whatever the stack builds beside its layers (masks, rotary tables, position biases) is there as ever.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        cache: RowCache | None = None,
        rows: int | None = None,
        is_over: Callable[[], bool] = lambda: False,
    ) -> None:
        """Attach to a model.

        Args:
            cache: keeps what the layers put out; without one they run each time.
            rows: how many examples a pass over the training data has, if known.
            is_over: whether the training ended without `remove`; asked where the model is about to be used.
        """
        base = base_of(model)
        names = frozen_layer_names(model)
        self.layers = tuple(base.get_submodule(name) for name in names)
        self._cache, self._is_over = cache, is_over
        self._most_without_repeats = _UNKNOWN_ROWS if rows is None else int(_PASSES * rows)
        self._seen = self._repeated = 0
        self._outputs: list[_Outputs | None] = [None] * len(self.layers)
        self._by_token = False
        self._computes = self._suspended = False
        self._hidden: Tensor | None = None
        self._handles: list[RemovableHandle] = []
        self._below: str | None = None
        if not self.layers:
            return
        self._stack = _stack_of(base, names[0])
        self._handles.append(self._stack.register_forward_pre_hook(self._enter, with_kwargs=True))
        for number, layer in enumerate(self.layers):
            vars(layer)["forward"] = _PassedOver(self, number, layer)

    @property
    def is_attached(self) -> bool:
        """Whether the layers run apart."""
        return bool(self._handles)

    @property
    def caches(self) -> bool:
        """Whether what the layers put out is kept."""
        return self._cache is not None

    def remove(self) -> None:
        """Give the layers back to the model."""
        for handle in self._handles:
            handle.remove()
        if self._handles:
            for layer in self.layers:
                vars(layer).pop("forward", None)
                layer.train(self._stack.training)
        self._handles, self._hidden = [], None
        self.stop_caching()

    def stop_caching(self) -> None:
        """Run the layers each time from here on."""
        if self._cache is not None:
            self._cache.close()
            self._cache = None

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """Leave the model to itself, for the time of the context."""
        self._suspended = True
        try:
            yield
        finally:
            self._suspended = False

    def __deepcopy__(self, memo: dict[int, Any]) -> "FrozenPrefix":
        """A copy of the model runs all of its layers."""
        copied = object.__new__(FrozenPrefix)
        copied.__dict__ = {
            **self.__dict__,
            "_cache": None,
            "_handles": [],
            "_hidden": None,
            "_suspended": True,
            "_is_over": lambda: False,
        }
        return copied

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _enter(self, stack: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._computes or self._suspended:
            return
        self._hidden = None
        if self._is_over():
            self.remove()
            return
        for layer in self.layers:
            layer.eval()
        if not stack.training and self._cache is None:
            return
        inputs = _by_name(stack, args, kwargs)
        if not stack.training and _keeps_or_reads_layers(stack, inputs):
            return
        try:
            _require_constant(stack, inputs)
            self._hidden = self._outputs_for(Batch(inputs, _main_input(stack)))
        except UnknownInputError as error:
            self._give_up(str(error))

    def _outputs_for(self, batch: Batch) -> Tensor | None:
        """What the last of the layers puts out for a batch."""
        if self._outputs[-1] is None or self._cache is None:
            hidden = self._compute(batch, range(batch.size))
            if self._outputs[-1] is None:
                return None
            if self._cache is None:
                return hidden
        return self._recalled(batch)

    def _recalled(self, batch: Batch) -> Tensor:
        """The same from the cache, after what is missing in there was computed."""
        assert self._cache is not None
        keys = batch.keys(by_token=self._by_token)
        known = [self._cache.get(key) for key in keys]
        missing = [row for row, value in enumerate(known) if value is None]
        if missing:
            hidden = self._compute(batch, missing)
            for row, value in zip(missing, self._unpadded(hidden, batch, missing), strict=True):
                self._cache.put(keys[row], value)
                known[row] = value
            if len(missing) == batch.size:
                self._count(batch.size, 0)
                return hidden
        self._count(batch.size, batch.size - len(missing))
        return self._padded([value for value in known if value is not None], batch)

    def _compute(self, batch: Batch, rows: Sequence[int]) -> Tensor:
        """Run the layers for some examples of a batch, without graph and dropout."""
        modes = [(module, module.training) for module in self._stack.modules()]
        self._stack.eval()
        self._computes = True
        try:
            with torch.no_grad(), self._noting_what_is_trained_below():
                self._stack.forward(**batch.rows(rows))
        except _Reached as reached:
            hidden = reached.hidden
        else:
            raise UnknownInputError("the layers were not called one after another")
        finally:
            self._computes = False
            for module, mode in modes:
                module.training = mode
        if self._below is not None:
            raise UnknownInputError(f"{self._below} is trained below them")
        if len(hidden) != len(rows):
            raise UnknownInputError("the layers' hidden states are not one row per example")
        tokens = batch.mask.shape[1] if batch.mask is not None else -1
        self._by_token = hidden.dim() == 3 and hidden.shape[1] == tokens
        return hidden

    @contextlib.contextmanager
    def _noting_what_is_trained_below(self) -> Iterator[None]:
        """Find out, at the first time, whether something is trained that runs before the layers do."""
        if self._outputs[-1] is not None:
            yield
            return
        with contextlib.ExitStack() as hooks:
            for name, module in self._stack.named_modules():
                if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
                    note = functools.partial(self._note_trained, name)
                    hooks.callback(module.register_forward_pre_hook(note).remove)
            yield

    def _note_trained(self, name: str, module: nn.Module, args: Any) -> None:
        self._below = name

    def _unpadded(self, hidden: Tensor, batch: Batch, rows: Sequence[int]) -> Iterator[Tensor]:
        """What is stored of each row: (tokens, width), or all of it where tokens are not known."""
        if not self._by_token:
            return iter(hidden.cpu())
        assert batch.mask is not None
        masks = batch.mask[list(rows)].cpu()
        return (values[mask] for values, mask in zip(hidden.cpu(), masks, strict=True))

    def _padded(self, values: list[Tensor], batch: Batch) -> Tensor:
        """Rows as a batch on the stack's device; zeros where it is padded."""
        device = next(self._stack.parameters()).device
        if not self._by_token:
            return torch.stack(values).to(device)
        assert batch.mask is not None
        mask = batch.mask.cpu()
        hidden = values[0].new_zeros(*mask.shape, values[0].shape[-1])
        hidden[mask] = torch.cat(values)
        return hidden.to(device)

    def _count(self, seen: int, repeated: int) -> None:
        """Give the cache up where training examples do not come again."""
        if not self._stack.training:
            return
        self._seen, self._repeated = self._seen + seen, self._repeated + repeated
        if self._seen > self._most_without_repeats and self._repeated < _LEAST_REPEATS * self._seen:
            logger.info(
                "frozen prefix: no cache from here on, because of %s examples only %s had been seen before",
                *(f"{self._seen:,}", f"{self._repeated:,}"),
            )
            self.stop_caching()
        if self._seen > self._most_without_repeats:
            self._seen = self._repeated = 0

    def _give_up(self, why: str) -> None:
        logger.info("frozen prefix: off, because %s", why)
        self.remove()

    def _run(self, number: int, layer: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """One of the layers was called."""
        last = number == len(self.layers) - 1
        if self._computes:
            output = layer(*args, **kwargs)
            self._outputs[number] = _Outputs(args, kwargs, output)
            if last:
                raise _Reached(_hidden_of(output))
            return output
        outputs, hidden = self._outputs[number], self._hidden
        if hidden is None or outputs is None:
            return layer(*args, **kwargs)
        before = _hidden_in(args, kwargs)
        made: Any = None
        if outputs.makes_more:
            with torch.no_grad():
                made = layer(*args, **kwargs)
        if not last:
            return outputs.filled(before, args, kwargs, made)
        self._hidden = None
        if before.requires_grad and torch.is_grad_enabled():
            # Reentrant gradient checkpointing wants an input that requires a gradient.
            hidden = hidden.detach().requires_grad_()
        return outputs.filled(hidden, args, kwargs, made)


class _PassedOver:
    """The forward of a layer of the prefix."""

    def __init__(self, prefix: FrozenPrefix, number: int, layer: nn.Module) -> None:
        self._prefix, self._number, self._layer = prefix, number, layer
        self._before = vars(layer).get("forward")

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._prefix._run(self._number, self._own, args, kwargs)

    def _own(self, *args: Any, **kwargs: Any) -> Any:
        if self._before is not None:
            return self._before(*args, **kwargs)
        return type(self._layer).forward(self._layer, *args, **kwargs)


class _Outputs:
    """In which form a layer returns its hidden states, and what else it returns."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self._sources: list[int | str | None] | None = None
        self.makes_more = False
        if not isinstance(output, Tensor):
            given: dict[int, int | str] = {id(value): where for where, value in enumerate(args)}
            given |= {id(value): where for where, value in kwargs.items()}
            rest = output[1:]
            self._sources = [given.get(id(value)) for value in rest]
            self.makes_more = any(
                value is not None and source is None
                for value, source in zip(rest, self._sources, strict=True)
            )

    def filled(self, hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], made: Any) -> Any:
        """What the layer returns, with other hidden states."""
        if self._sources is None:
            return hidden
        if made is not None:
            return (hidden, *made[1:])
        return (hidden, *(_at(source, args, kwargs) for source in self._sources))


def _at(source: int | str | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if source is None:
        return None
    return args[source] if isinstance(source, int) else kwargs[source]


class _Reached(Exception):  # noqa: N818 - a way out of the stack, no error
    """The last layer of the prefix has run."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


def frozen_layer_names(model: nn.Module) -> tuple[str, ...]:
    """The lowest layers (of an encoder-decoder: of the encoder) in which nothing is trained, by name."""
    base = base_of(model)
    return tuple(
        itertools.takewhile(
            lambda name: not any(p.requires_grad for p in base.get_submodule(name).parameters()),
            lowest_stack(base),
        )
    )


def _stack_of(base: PreTrainedModel, layer: str) -> PreTrainedModel:
    """The innermost transformers model around a layer that is given the examples themselves."""
    parent = layer
    while parent:
        parent = parent.rpartition(".")[0]
        module = base.get_submodule(parent)
        if (
            isinstance(module, PreTrainedModel)
            and _main_input(module) in inspect.signature(module.forward).parameters
        ):
            return module
    return base


def _by_name(stack: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call, without those that are None."""
    bound = inspect.signature(stack.forward).bind_partial(*args, **kwargs)
    given: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        more = bound.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
        given |= value if more else {name: value}
    return {name: value for name, value in given.items() if value is not None}


def _main_input(stack: nn.Module) -> str:
    return str(getattr(stack, "main_input_name", "input_ids"))


def _require_constant(stack: nn.Module, inputs: dict[str, Any]) -> None:
    """Refuse calls in which what the layers put out is needed one by one, or is not the same each time.

    Raises:
        UnknownInputError: says why.
    """
    trained = [name for name, value in inputs.items() if isinstance(value, Tensor) and value.requires_grad]
    if trained:
        raise UnknownInputError(f"{trained[0]} is computed by something that is trained")
    if _PAST in inputs:
        raise UnknownInputError("keys and values of earlier tokens are handed in")
    recorded = _recorded(stack, inputs)
    if recorded is not None:
        raise UnknownInputError(f"{recorded} is set, which reads every layer")
    config = getattr(stack, "config", None)
    masks = any(getattr(config, f"mask_{what}_prob", 0) for what in ("time", "feature"))
    if stack.training and masks and getattr(config, "apply_spec_augment", False):
        raise UnknownInputError("SpecAugment masks the inputs anew each time (config.apply_spec_augment)")


def _keeps_or_reads_layers(stack: nn.Module, inputs: dict[str, Any]) -> bool:
    """Whether a call in eval mode, as for generation, needs all of the layers."""
    keeps = inputs.get("use_cache", getattr(getattr(stack, "config", None), "use_cache", False))
    return bool(keeps) or _PAST in inputs or _recorded(stack, inputs) is not None


def _recorded(stack: nn.Module, inputs: dict[str, Any]) -> str | None:
    config = getattr(stack, "config", None)
    return next((name for name in _RECORDED if inputs.get(name, getattr(config, name, False))), None)


def _hidden_of(output: Any) -> Tensor:
    hidden: Tensor = output if isinstance(output, Tensor) else output[0]
    return hidden


def _hidden_in(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    given = [*args, *kwargs.values()]
    return next(value for value in given if isinstance(value, Tensor))
