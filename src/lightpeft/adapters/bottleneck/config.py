"""What a user can ask of bottleneck adapters: the text under each field is its documentation."""

import difflib
import math
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal, get_args

from peft import PeftConfig
from peft.utils import PeftType
from peft.utils.other import get_pattern_key
from torch import nn
from transformers.activations import ACT2FN

from lightpeft.errors import ConfigError

Form = Literal["sequential", "parallel"]
Site = Literal["attention", "ffn"]
DEFAULT_SIZE = 64


@dataclass
class BottleneckConfig(PeftConfig):
    """Bottleneck adapters: `y + scaling · up(dropout(act(down(norm(h)))))` at output projections.

    Known placements: Houlsby et al. (2019), the defaults; Pfeiffer et al. (2021), `sites=("ffn",)`; the
    scaled parallel adapter of He et al. (2022), `form="parallel", sites=("ffn",), scaling=4.0`.

    On injection the configuration is completed in place, as peft's own are: `target_modules` (where it was
    not given), `input_modules` and `size_pattern` then hold full module names, so that saving and loading
    follow names alone. Make a new one for another model.

    Raises:
        ConfigError: options that contradict each other or are out of range.
    """

    form: Form = "sequential"
    """What the adapter reads: `sequential` the output y of the projection it sits on, `parallel` the input of
    the whole attention or feed-forward block."""

    sites: tuple[Site, ...] = ("attention", "ffn")
    """Blocks that get an adapter where `target_modules` is not given: `attention` (each cross-attention too),
    `ffn`."""

    size: int | None = None
    """Neurons of an adapter (64 unless `reduction_factor` is given)."""

    reduction_factor: float | None = None
    """In place of `size`: neurons are the width of the adapter's input divided by this, at least one."""

    size_pattern: dict[str, int] = field(default_factory=dict)
    """Neurons of some adapters: regular expressions of module names, matched as peft's `rank_pattern`; the
    first match wins."""

    activation: str = "relu"
    """Name of the activation function between down and up projection, as transformers names them."""

    dropout: float = 0.0
    """Dropout on the neurons."""

    scaling: float = 1.0
    """Factor on the adapter's output."""

    layer_norm: bool = False
    """Whether a LayerNorm of its own normalises the adapter's input."""

    init_weights: bool = True
    """Start at the identity: down projection normal (0, 0.01), up projection zero, so that the model computes
    what its base does. False: both random, for tests."""

    target_modules: Collection[str] | str | None = None
    """Output projections with an adapter: a regular expression, or names or ends of names. By default found
    by lightpeft's anatomy, see `sites`."""

    exclude_modules: Collection[str] | str | None = None
    """Modules without an adapter: a regular expression, or names or ends of names."""

    layers_to_transform: list[int] | int | None = None
    """Numbers of the layers that get adapters; by default all."""

    layers_pattern: list[str] | str | None = None
    """Name of the list that `layers_to_transform` numbers, such as `layers` or `h`."""

    modules_to_save: list[str] | None = None
    """Modules that are trained and saved whole, such as a classification head."""

    input_modules: dict[str, str] | None = None
    """Parallel form: end of a target's name -> end of the name of the module whose input the adapter reads,
    such as `{"output.dense": "intermediate.dense"}`; the longest end wins. By default found by lightpeft's
    anatomy."""

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = PeftType("BOTTLENECK")
        self.sites = _sites(self.sites)
        self.target_modules = _names("target_modules", self.target_modules)
        self.exclude_modules = _names("exclude_modules", self.exclude_modules)
        self._check_form()
        self._check_sizes()
        self._check_numbers()
        self._check_layers()
        _check_activation(self.activation)

    def size_at(self, name: str, width: int) -> int:
        """Neurons of the adapter at the module `name`, whose input is `width` wide."""
        key = get_pattern_key(list(self.size_pattern), name)
        if key in self.size_pattern:
            return self.size_pattern[key]
        if self.reduction_factor is not None:
            return max(1, round(width / self.reduction_factor))
        return DEFAULT_SIZE if self.size is None else self.size

    def _check_form(self) -> None:
        if self.form not in get_args(Form):
            raise ConfigError(f"form is {self.form!r}; choose one of {', '.join(get_args(Form))}.")
        if self.input_modules is not None and self.form != "parallel":
            raise ConfigError(
                f"input_modules has no effect on form={self.form!r}; leave it out, or give form='parallel'."
            )
        for target, source in (self.input_modules or {}).items():
            if not (isinstance(target, str) and isinstance(source, str) and target and source):
                raise ConfigError(
                    f"input_modules has {target!r}: {source!r}; give the ends of two module names."
                )

    def _check_sizes(self) -> None:
        if self.size is not None and self.reduction_factor is not None:
            raise ConfigError(
                f"size={self.size!r} and reduction_factor={self.reduction_factor!r} are both given; give one."
            )
        if self.size is None and self.reduction_factor is None:
            self.size = DEFAULT_SIZE  # written into the saved file
        if self.size is not None:
            _check_size("size", self.size)
        if self.reduction_factor is not None and not 0 < self.reduction_factor < math.inf:
            raise ConfigError(f"reduction_factor is {self.reduction_factor!r}; give a number above 0.")
        for pattern, size in self.size_pattern.items():
            _check_size(f"size_pattern[{pattern!r}]", size)
            try:
                re.compile(pattern)
            except re.error as error:
                raise ConfigError(f"size_pattern has {pattern!r}, no regular expression: {error}.") from error

    def _check_numbers(self) -> None:
        if not isinstance(self.dropout, int | float) or not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout!r}; give a share in [0, 1).")
        if not isinstance(self.scaling, int | float) or not math.isfinite(self.scaling) or self.scaling == 0:
            raise ConfigError(f"scaling is {self.scaling!r}; give a finite number other than 0.")

    def _check_layers(self) -> None:
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise ConfigError(
                "layers_to_transform has no effect on target_modules given as a regular expression; say the "
                "layers in the expression, or give a list of names."
            )
        if self.layers_pattern and self.layers_to_transform is None:
            raise ConfigError("layers_pattern is given without layers_to_transform; give both or neither.")


def _sites(given: Collection[Site]) -> tuple[Site, ...]:
    """The sites as a tuple: JSON makes a list of it."""
    allowed = get_args(Site)
    if isinstance(given, str) or not given or any(site not in allowed for site in given):
        raise ConfigError(f"sites is {given!r}; give a list of one or both of {', '.join(allowed)}.")
    return tuple(dict.fromkeys(given))


def _names(field_name: str, given: Collection[str] | str | None) -> Collection[str] | str | None:
    """A collection as a set, which peft's saving expects; a regular expression as it is."""
    if given is None or isinstance(given, str):
        return given
    if not all(isinstance(name, str) and name for name in given):
        raise ConfigError(f"{field_name} is {given!r}; give module names or one regular expression.")
    return set(given)


def _check_size(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name} is {value!r}; give a whole number of at least 1.")


def _check_activation(name: str) -> None:
    if name not in ACT2FN:
        close = difflib.get_close_matches(str(name), ACT2FN, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"activation is {name!r}.{hint} Choose one of {', '.join(sorted(ACT2FN))}.")
    function = ACT2FN[name]
    if isinstance(function, nn.Module) and any(True for _ in function.parameters()):
        raise ConfigError(
            f"activation {name!r} has parameters of its own, which adapters cannot hold; choose one without."
        )
