"""The frozen prefix: the lowest layers, which nothing trains, give every example once what they give it.

Below the lowest trained PEFT module nothing needs a backward pass. Without dropout what these layers put out
for an example is a constant. Here they run without a graph and in eval mode, and for an example that was seen
before their output comes from a cache (Embedding Recycling, Saad-Falcon et al. 2023).
"""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightpeft.anatomy import base_of, hidden_in, hidden_of
from lightpeft.calls import inputs_by_name, recorded
from lightpeft.edits import Journal
from lightpeft.surgery import evaluating
from lightpeft.training.prefix.examples import Batch, UnknownInputError
from lightpeft.training.prefix.layers import Outputs, PassedOver, Reached
from lightpeft.training.prefix.repeats import Repeats
from lightpeft.training.prefix.row_cache import RowCache
from lightpeft.training.prefix.stack import (
    PAST,
    frozen_layer_names,
    main_input,
    require_constant,
    stack_of,
)

logger = logging.getLogger(__name__)


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
        self._repeats = Repeats(rows)
        self._outputs: list[Outputs | None] = [None] * len(self.layers)
        self._by_token = False
        self._computes = self._suspended = False
        self._hidden: Tensor | None = None
        self._handles: list[RemovableHandle] = []
        self._journal = Journal()
        self._below: str | None = None
        self._unread: set[nn.Module] = set()
        """Dropouts that run before the layers, whose output nobody reads where the layers' own is known."""
        if not self.layers:
            return
        self._stack = stack_of(base, names[0])
        self._handles.append(self._stack.register_forward_pre_hook(self._enter, with_kwargs=True))
        for number, layer in enumerate(self.layers):
            self._journal.set_own(layer, "forward", PassedOver(self._run, number, layer.forward))

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
            self._journal.undo()
            for layer in self.layers:
                layer.train(self._stack.training)
            self._let_drop(self._stack.training)
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
            "_unread": set(),
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
        inputs = inputs_by_name(stack, args, kwargs)
        if not stack.training and self._needs_every_layer(inputs):
            return
        try:
            require_constant(stack, inputs)
            self._hidden = self._outputs_for(Batch(inputs, main_input(stack)))
            self._let_drop(False)
        except UnknownInputError as error:
            self._give_up(str(error))

    def _outputs_for(self, batch: Batch) -> Tensor:
        """What the last of the layers puts out for a batch."""
        everything = range(batch.size)
        if self._cache is None:
            return self._compute(batch, everything)
        if self._outputs[-1] is None:
            self._compute(batch, everything)  # shows what is stored of an example
        keys = batch.keys(by_token=self._by_token)
        known = [self._cache.get(key) for key in keys]
        missing = [row for row, value in enumerate(known) if value is None]
        self._count(batch.size, batch.size - len(missing))
        if not missing:
            return self._padded(known, batch)
        hidden = self._compute(batch, missing)
        for row, value in zip(missing, self._unpadded(hidden, batch, missing), strict=True):
            known[row] = value
            if self._cache is not None:
                self._cache.put(keys[row], value)
        return hidden if len(missing) == batch.size else self._padded(known, batch)

    def _compute(self, batch: Batch, rows: Sequence[int]) -> Tensor:
        """Run the layers for some examples of a batch, without graph and dropout."""
        self._computes = True
        try:
            with evaluating(self._stack), self._noting_what_is_below():
                self._stack.forward(**batch.rows(rows))
        except Reached as reached:
            hidden = reached.hidden
        else:
            raise UnknownInputError("the layers were not called one after another")
        finally:
            self._computes = False
        if self._below is not None:
            raise UnknownInputError(f"{self._below} is trained below them")
        if len(hidden) != len(rows):
            raise UnknownInputError("the layers' hidden states are not one row per example")
        tokens = batch.mask.shape[1] if batch.mask is not None else -1
        self._by_token = hidden.dim() == 3 and hidden.shape[1] == tokens
        return hidden

    def _needs_every_layer(self, inputs: dict[str, Any]) -> bool:
        """Whether a call in eval mode, as for generation, reads the layers or keeps their keys and values."""
        config = getattr(self._stack, "config", None)
        wants = bool(inputs.get("use_cache", getattr(config, "use_cache", False)))
        keeps = wants and (self._outputs[0] is None or self._outputs[0].keeps_keys)
        return keeps or PAST in inputs or recorded(self._stack, inputs) is not None

    @contextlib.contextmanager
    def _noting_what_is_below(self) -> Iterator[None]:
        """Find out, at the first time, what runs before the layers do: what is trained, and dropouts."""
        if self._outputs[-1] is not None:
            yield
            return
        inside = {module for layer in self.layers for module in layer.modules()}
        with contextlib.ExitStack() as hooks:
            for name, module in self._stack.named_modules():
                if isinstance(module, nn.Dropout) and module not in inside:
                    hooks.callback(module.register_forward_pre_hook(self._note_dropout).remove)
                if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
                    note = functools.partial(self._note_trained, name)
                    hooks.callback(module.register_forward_pre_hook(note).remove)
            yield

    def _note_trained(self, name: str, module: nn.Module, args: Any) -> None:
        self._below = name

    def _note_dropout(self, module: nn.Module, args: Any) -> None:
        self._unread.add(module)

    def _let_drop(self, training: bool) -> None:
        """Drawing a mask that nobody reads takes as long as any other; some models drop by it again above."""
        for module in self._unread:
            module.training = training

    def _unpadded(self, hidden: Tensor, batch: Batch, rows: Sequence[int]) -> Iterator[Tensor]:
        """What is stored of each row: (tokens, width), or all of it where tokens are not known."""
        if not self._by_token:
            return iter(hidden.cpu())
        assert batch.mask is not None
        masks = batch.mask[list(rows)].cpu()
        return (values[mask] for values, mask in zip(hidden.cpu(), masks, strict=True))

    def _padded(self, rows: Sequence[Tensor | None], batch: Batch) -> Tensor:
        """Rows as a batch on the stack's device; zeros where it is padded."""
        values = [row for row in rows if row is not None]
        device = next(self._stack.parameters()).device
        if not self._by_token:
            return torch.stack(values).to(device)
        assert batch.mask is not None
        mask = batch.mask.cpu()
        hidden = values[0].new_zeros(*mask.shape, values[0].shape[-1])
        hidden[mask] = torch.cat(values)
        return hidden.to(device)

    def _count(self, seen: int, known: int) -> None:
        """Give the cache up where training examples do not come again."""
        if self._stack.training and not self._repeats.pay(seen, known):
            logger.info("frozen prefix: no cache from here on, because %s", self._repeats.describe())
            self.stop_caching()

    def _give_up(self, why: str) -> None:
        logger.info("frozen prefix: off, because %s", why)
        self.remove()

    def _run(self, number: int, layer: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """One of the layers was called."""
        last = number == len(self.layers) - 1
        if self._computes:
            output = layer(*args, **kwargs)
            self._outputs[number] = Outputs(args, kwargs, output)
            if last:
                raise Reached(hidden_of(output))
            return output
        if number == 0:
            self._let_drop(self._stack.training)
        outputs, hidden = self._outputs[number], self._hidden
        if hidden is None or outputs is None:
            return layer(*args, **kwargs)
        before = hidden_in(args, kwargs)
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
