"""Bottleneck adapters on one linear: what they compute, and how a parallel one gets to its input."""

import warnings
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.activations import ACT2FN

from lightpeft.adapters.bottleneck.config import BottleneckConfig
from lightpeft.errors import ConfigError
from lightpeft.linears import INPUTS, OUTPUTS, Projection, is_plain_linear, width
from lightpeft.wrapping import unwrapped

NOT_MERGEABLE = (
    "a bottleneck adapter cannot be merged: there is a non-linearity between its two projections, so no "
    "weight of the base computes the same. Keep the adapter (it can be saved and loaded on its own), or call "
    "unload() for the base without it."
)


class BottleneckLayer(nn.Module, BaseTunerLayer):
    """A linear W with bottleneck adapters: `y + Σ scaling · up(dropout(act(down(norm(h)))))`, y = W x (+ b).

    h is y in the sequential form (Houlsby et al. 2019), and the input of the block in the parallel one (He et
    al. 2022); every adapter has its own form, and all sequential ones read the same y. Shapes: x (..., d_in),
    y (..., d_out), h (..., d_h), neurons (..., size).

    `bottleneck_norm`, `bottleneck_down` and `bottleneck_up` are each called once per adapter and forward, so
    that hooks on them see h, the neurons, and what the adapter adds (before `scaling`).
    """

    adapter_layer_names = ("bottleneck_norm", "bottleneck_down", "bottleneck_up")
    other_param_names = ("bottleneck_size", "scaling", "form", "bottleneck_activation", "bottleneck_dropout")

    def __init__(self, base_layer: nn.Module, name: str) -> None:
        """
        Args:
            base_layer: The linear, or another tuner's layer around one.
            name: Its full name, for messages and `size_pattern`.

        Raises:
            ConfigError: it is neither a plain nn.Linear nor a Conv1D.
        """
        super().__init__()
        self.base_layer = base_layer
        self.name = name
        linear = self.get_base_layer()
        if not is_plain_linear(linear):
            raise ConfigError(
                f"{name} is a {type(linear).__name__}; bottleneck adapters sit on nn.Linear and Conv1D only. "
                "Leave it out of target_modules."
            )
        self.in_features, self.out_features = width(linear, INPUTS), width(linear, OUTPUTS)
        self.bottleneck_norm = nn.ModuleDict()
        self.bottleneck_down = nn.ModuleDict()
        self.bottleneck_up = nn.ModuleDict()
        self.bottleneck_activation = nn.ModuleDict()
        self.bottleneck_dropout = nn.ModuleDict()
        self.bottleneck_size: dict[str, int] = {}
        self.scaling: dict[str, float] = {}
        self.form: dict[str, str] = {}
        self.merged_adapters: list[str] = []
        self.cast_input_dtype_enabled = True
        self.input_name: str | None = None
        """The module whose input parallel adapters read."""
        self.input_features: int | None = None
        self._input_handle: RemovableHandle | None = None
        self._seen: Tensor | None = None

    def update_layer(self, adapter_name: str, config: BottleneckConfig) -> None:
        """Add an adapter, or put a new one in its place. A parallel one needs `connect` first."""
        parallel = config.form == "parallel"
        inputs = self.input_features if parallel else self.out_features
        if inputs is None:
            raise RuntimeError(f"{self.name}: connect the layer before adding a parallel adapter.")
        size = config.size_at(self.name, inputs)
        self.bottleneck_norm[adapter_name] = nn.LayerNorm(inputs) if config.layer_norm else nn.Identity()
        self.bottleneck_down[adapter_name] = nn.Linear(inputs, size)
        self.bottleneck_up[adapter_name] = nn.Linear(size, self.out_features)
        self.bottleneck_activation[adapter_name] = ACT2FN[config.activation]
        self.bottleneck_dropout[adapter_name] = nn.Dropout(config.dropout)
        self.bottleneck_size[adapter_name] = size
        self.scaling[adapter_name] = float(config.scaling)
        self.form[adapter_name] = config.form
        if config.init_weights:
            self._start_near_identity(adapter_name)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def connect(self, module: nn.Module, name: str) -> None:
        """Let parallel adapters read the input (..., d_h) of the linear `module`, called `name` in the model.

        Raises:
            ConfigError: parallel adapters of this layer read another one already, or it is no plain linear.
        """
        self.check_free_for(name)
        inner = linear_to_read(module, name)
        self.disconnect()
        # A bound method, because copying and pickling the model takes its layer along.
        self._input_handle = inner.register_forward_pre_hook(self._see_input)
        self.input_name, self.input_features = name, width(inner, INPUTS)

    def check_free_for(self, name: str) -> None:
        """Check that parallel adapters can read the input of the module `name`.

        Raises:
            ConfigError: there are some that read another one.
        """
        if self.input_name not in (None, name) and "parallel" in self.form.values():
            raise ConfigError(
                f"the adapters at {self.name} read the input of {self.input_name}, and cannot also read that "
                f"of {name}; give the same input_modules, or delete the other parallel adapters first."
            )

    def disconnect(self) -> None:
        """Take the hook off the module that parallel adapters read."""
        if self._input_handle is not None:
            self._input_handle.remove()
        self._input_handle = self.input_name = self.input_features = self._seen = None

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter; without any parallel one left, the layer is disconnected."""
        super().delete_adapter(adapter_name)
        if "parallel" not in self.form.values():
            self.disconnect()

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuse.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(NOT_MERGEABLE)

    def unmerge(self) -> None:
        """Do nothing: nothing is ever merged."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """x (..., d_in) to (..., d_out), in the dtype in which the base layer answers."""
        y: Tensor = self.base_layer(x, *args, **kwargs)
        seen, self._seen = self._seen, None
        if self.disable_adapters:
            return y
        result = y
        for adapter in self.active_adapters:
            if adapter in self.bottleneck_down:
                h = self._block_input(adapter, seen, y) if self.form[adapter] == "parallel" else y
                result = result + self._contribution(adapter, h)
        return result.to(y.dtype)

    def __getstate__(self) -> dict[str, Any]:
        """Without the tensor of an interrupted forward, which cannot be copied."""
        return {**self.__dict__, "_seen": None}

    def _contribution(self, adapter: str, h: Tensor) -> Tensor:
        down = _linear(self.bottleneck_down, adapter)
        h = self._cast_input_dtype(h, down.weight.dtype)
        neurons = self.bottleneck_activation[adapter](down(self.bottleneck_norm[adapter](h)))
        added: Tensor = self.bottleneck_up[adapter](self.bottleneck_dropout[adapter](neurons))
        return added * self.scaling[adapter]

    def _see_input(self, _module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if not self.disable_adapters and any(
            self.form.get(name) == "parallel" for name in self.active_adapters
        ):
            if self._seen is not None:
                warnings.warn(
                    f"{self.input_name} was called again before {self.name} used its input (or a forward was "
                    "interrupted); the parallel adapter there reads the last one. If it is called on "
                    "something else too, name another module in input_modules.",
                    RuntimeWarning,
                    stacklevel=2,
                )
            self._seen = inputs[0]

    def _block_input(self, adapter: str, seen: Tensor | None, y: Tensor) -> Tensor:
        what = f"the parallel adapter {adapter!r} at {self.name} reads the input of {self.input_name}, which"
        if seen is None:
            raise RuntimeError(
                f"{what} was not called before {self.name}. Run the whole block, or name another module in "
                "input_modules."
            )
        if seen.shape[:-1] != y.shape[:-1]:
            raise RuntimeError(
                f"{what} is {tuple(seen.shape)}, for an output of {tuple(y.shape)}; name a module in "
                "input_modules that is called on the same tokens."
            )
        return seen

    def _start_near_identity(self, adapter: str) -> None:
        down, up = _linear(self.bottleneck_down, adapter), _linear(self.bottleneck_up, adapter)
        nn.init.normal_(down.weight, std=0.01)
        for parameter in (down.bias, up.weight, up.bias):
            nn.init.zeros_(parameter)


def linear_to_read(module: nn.Module, name: str) -> Projection:
    """The linear of which a parallel adapter can read the input: `module`, or that in a tuner's layer.

    Raises:
        ConfigError: it is neither a plain nn.Linear nor a Conv1D.
    """
    inner = unwrapped(module)
    if not is_plain_linear(inner):
        raise ConfigError(
            f"a parallel adapter cannot read the input of {name}, a {type(inner).__name__}; name an "
            "nn.Linear or Conv1D in input_modules."
        )
    return inner


def _linear(projections: nn.ModuleDict, adapter: str) -> nn.Linear:
    projection = projections[adapter]
    assert isinstance(projection, nn.Linear)
    return projection
