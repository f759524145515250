"""Bottleneck adapters as a peft tuner."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from peft import PeftConfig, TaskType
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from lightpeft.adapters.bottleneck.config import BottleneckConfig
from lightpeft.adapters.bottleneck.layer import NOT_MERGEABLE, BottleneckLayer
from lightpeft.adapters.bottleneck.targets import complete, named_input
from lightpeft.errors import ConfigError

_HEAD_LATER = (TaskType.TOKEN_CLS, TaskType.QUESTION_ANS)
"""Tasks whose head peft adds to the given configuration's `modules_to_save` once the adapters are in."""


class BottleneckModel(BaseTuner):
    """Bottleneck adapters (Houlsby et al. 2019; Pfeiffer et al. 2021; He et al. 2022) in a model.

    Made by `peft.get_peft_model(model, BottleneckConfig(...))`. Everything of peft works but merging, which a
    non-linear adapter does not allow.
    """

    prefix: str = "bottleneck_"
    tuner_layer_cls = BottleneckLayer
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012 - peft's own way to declare it

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Put the adapters in; see `peft.tuners.tuners_utils.BaseTuner.inject_adapter`.

        Raises:
            ConfigError: see `targets.complete`; nothing was changed then.
        """
        given = self.peft_config[adapter_name]
        assert isinstance(given, BottleneckConfig)
        if given.modules_to_save is None and given.task_type in _HEAD_LATER:
            given.modules_to_save = []
        completed = copy.deepcopy(given)  # the user's object may serve other models
        completed.modules_to_save = given.modules_to_save  # peft adds to this list when it has the other
        complete(completed, model)
        config = given if completed == given else completed
        self.peft_config[adapter_name] = config
        names = config.target_modules
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        # peft shortens long lists to ends of names that are unique in this very model.
        config.target_modules = names

    def unload(self) -> nn.Module:
        """The base without adapters and without hooks."""
        for module in self.model.modules():
            if isinstance(module, BottleneckLayer):
                module.disconnect()
        base: nn.Module = super().unload()
        return base

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: dict[str, Any]) -> PeftConfig:
        return peft_config  # `complete` has done it

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        assert isinstance(peft_config, BottleneckConfig)
        layer = target if isinstance(target, BottleneckLayer) else BottleneckLayer(target, current_key)
        if peft_config.form == "parallel":
            name = named_input(peft_config.input_modules or {}, current_key)
            if name is None:
                raise ConfigError(f"input_modules names no input for the parallel adapter at {current_key}.")
            layer.connect(self.model.get_submodule(name), name)
        if layer is not target:
            layer._active_adapter = adapter_name
        layer.update_layer(adapter_name, peft_config)
        if layer is not target:
            if adapter_name not in self.active_adapters:
                layer.requires_grad_(False)
            self._replace_module(parent, target_name, layer, target)

    @contextmanager
    def _enable_peft_forward_hooks(self, *_: Any, **kwargs: Any) -> Iterator[None]:
        """Called by peft around a forward. It would drop `adapter_names` where a tuner does not know it."""
        if kwargs.get("adapter_names") is not None:
            raise ConfigError(
                "adapter_names is given, but bottleneck adapters cannot differ within a batch; choose one by "
                "set_adapter, and run a batch for each."
            )
        yield

    def _check_merge_allowed(self) -> NoReturn:
        raise ConfigError(NOT_MERGEABLE)
