"""The base as a reference: "adapters switched off" is no longer the base once the model was cut.

Heads and neurons are gone, and what removed modules had learned is folded in. DPO, KTO, GRPO and others
compute their reference so when they are given no model for it, and would go on with another one, silently.
"""

from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from lightpeft.anatomy import base_of
from lightpeft.errors import ConfigError

_INSTEAD = (
    "Keep the reference that training began with: precompute_ref_log_probs=True (DPO, KTO), an explicit "
    "ref_model, or no reference at all (GRPO: beta=0)."
)


class AdaptersOn:
    """A forward-pre-hook on a cut base that refuses to compute without its adapters."""

    def __init__(self) -> None:
        self._layers: list[Any] | None = None

    def __call__(self, base: nn.Module, inputs: Any) -> None:
        if self._layers is None:  # at the first forward: on load, adapters come after the cut
            self._layers = _tuner_layers(base)
        if any(layer.disable_adapters for layer in self._layers):
            raise ConfigError(
                "the model was cut and is called with its adapters switched off, but that is no longer the "
                f"base: heads and neurons are gone, and what was removed is folded in. {_INSTEAD}"
            )


def keep_adapters_on(base: nn.Module) -> None:
    """Make a cut base refuse to compute while its adapters are switched off."""
    base.register_forward_pre_hook(AdaptersOn())


class StepGuard:
    """A forward-pre-hook that refuses, while `inside` a training step, a pass that is a reference.

    Raises:
        ConfigError: from the forward pass, where the adapters are switched off or another one is active.
    """

    def __init__(self, model: PeftModel, adapter: str) -> None:
        self.inside = False
        self._model, self._adapter = model, adapter
        self._layers = _tuner_layers(model)
        self.handle = base_of(model).register_forward_pre_hook(self._check)

    def _check(self, base: nn.Module, inputs: Any) -> None:
        if not self.inside or self.handle.id not in base._forward_pre_hooks:  # taken out in this very pass
            return
        if self._model._adapters_disabled or any(layer.disable_adapters for layer in self._layers):
            found = "with the adapter switched off"
        elif self._model.active_adapters != [self._adapter]:
            found = f"with {self._model.active_adapters} active instead of {self._adapter!r}"
        else:
            return
        self.inside = False
        raise ConfigError(
            f"the training step calls the model {found}, as a reference. After the cut that would be another "
            f"model, so that the loss would change without a word. {_INSTEAD}"
        )


def _tuner_layers(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
