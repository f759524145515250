"""What a layer does that is skipped: it hands on what it is given, and nothing in it runs."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import Cache, EncoderDecoderCache

from lightpeft.anatomy import Anatomy, LayerForm, hidden_in, with_hidden
from lightpeft.edits import Journal, index_tensor
from lightpeft.errors import AnatomyError, PlanError
from lightpeft.wrapping import added_parameters, tied_parameters

Forms = Mapping[str, LayerForm]
"""Per module of a layer, how it returns its hidden states."""


class SkippedLayer:
    """The forward of a skipped layer: the identity on its hidden states.

    It is put on the layer itself, whose class, name and children stay, because transformers records hidden
    states, checkpoints and compiles layers by their class.

    Args:
        number: the layer's in a key-value cache; None if it keeps none.
    """

    def __init__(self, form: LayerForm, number: int | None) -> None:
        self._form, self._number = form, number

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the layer would return, with the hidden states that it is given, and None for what it made."""
        hidden = hidden_in(args, kwargs)
        cache = next((value for value in (*args, *kwargs.values()) if isinstance(value, Cache)), None)
        if cache is not None and self._number is not None:
            count_tokens(cache, self._number, hidden)
        return self._form.filled(hidden, args, kwargs)


def count_tokens(cache: Cache, number: int, hidden: Tensor) -> None:
    """Let a key-value cache learn the length of a text, which it takes from its layers.

    It gets one channel of zeros as keys and values, for it takes what has no entries for an empty text.
    """
    own = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
    batch, tokens = hidden.shape[:2]
    zeros = hidden.new_zeros(batch, 1, tokens, 1)
    own.update(zeros, zeros.clone(), number)


def number_in_cache(attention: nn.Module) -> int | None:
    """The number by which an attention module knows its layer in a key-value cache."""
    numbers = (getattr(attention, name, None) for name in ("layer_idx", "layer_id"))
    return next((number for number in numbers if number is not None), None)


@contextmanager
def passed_over(base: nn.Module, layers: Collection[str], all_layers: Iterable[str]) -> Iterator[Forms]:
    """Replace what some layers of the uncut base put out by what they are given, and learn their forms.

    Args:
        layers: their modules.
        all_layers: those of all layers, in one of which something may be needed.

    Raises:
        AnatomyError: at the end, where one of them makes something that another layer was given.
    """
    noted = _Noted()
    with ExitStack() as stack:
        for name in all_layers if layers else ():
            module = base.get_submodule(name)
            stack.callback(module.register_forward_pre_hook(noted.look_at, with_kwargs=True).remove)
            if name in layers:
                hook = noted.passing_over(name)
                stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        yield noted.forms
    if noted.needed:
        raise AnatomyError(
            f"{', '.join(sorted(noted.needed))} cannot be skipped: besides its hidden states it makes what "
            "the layers above are given."
        )


class _Noted:
    """What is seen of layers that are passed over."""

    def __init__(self) -> None:
        self.forms: dict[str, LayerForm] = {}
        self.needed: set[str] = set()
        """Layers that make what another one was given."""
        self._made: list[tuple[str, Any]] = []

    def look_at(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Whether a layer is given what one that is passed over has made."""
        given = {id(value) for value in (*args, *kwargs.values())}
        self.needed |= {name for name, value in self._made if id(value) in given}

    def passing_over(self, name: str) -> Callable[..., Any]:
        """A hook that hands on the hidden states, and the rest as it is."""

        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            self.forms[name] = form = LayerForm.of(args, kwargs, output)
            self._made += [(name, value) for value in form.made_in(output)]
            return with_hidden(output, hidden_in(args, kwargs))

        return hook


def skip_layers(
    base: nn.Module, anatomy: Anatomy, layers: Iterable[str], forms: Forms, journal: Journal
) -> None:
    """Make these layers skipped ones; their heads and neurons are gone already.

    What else is in them (norms, experts, biases) stays under its name, without any entries.

    Raises:
        PlanError: it is not known how one of them returns its hidden states.
    """
    tied = tied_parameters(base)
    for name in layers:
        if name not in forms:
            raise PlanError(f"{name} is to be skipped, but it is not known in which form it returns.")
        module = base.get_submodule(name)
        _empty(module, tied, journal)
        attention = anatomy.parts_of(name)[0].attention
        number = None if attention is None else number_in_cache(base.get_submodule(attention.module))
        journal.set_own(module, "forward", SkippedLayer(forms[name], number))


def _empty(layer: nn.Module, tied: set[int], journal: Journal) -> None:
    """Take the entries of all parameters but those of tuners, and let nothing in the layer be trained."""
    of_tuners, nothing = {id(parameter) for parameter in added_parameters(layer)}, index_tensor([])
    for parameter in layer.parameters():
        if id(parameter) in tied:
            continue
        if parameter.requires_grad:
            journal.set_attribute(parameter, "requires_grad", False)
            journal.drop([parameter])
        if parameter.dim() and parameter.numel() and id(parameter) not in of_tuners:
            journal.slice(parameter, 0, nothing)
