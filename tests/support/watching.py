"""What a failed cut must leave alone, and the means to make one fail."""

import sys
from typing import Any

import pytest
import torch
from peft import PeftModel

from tests.support.models import hook_count


def watched(model: PeftModel, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Everything about a model and its optimizer beside the values of its tensors."""
    base = model.get_base_model()
    return {
        "tree": [(name, id(module)) for name, module in model.named_modules()],
        "parameters": [(n, id(p), p.requires_grad) for n, p in model.named_parameters()],
        "training": [module.training for module in model.modules()],
        "sizes": [
            {k: v for k, v in vars(module).items() if isinstance(v, int | float | str)}
            for module in model.modules()
        ],
        "tables": [
            {k: list(v.items()) for k, v in vars(module).items() if isinstance(v, dict) and k[0] != "_"}
            for module in model.modules()
        ],
        "config": {name: config.to_dict() for name, config in model.peft_config.items()},
        "targets": list(getattr(model.base_model, "targeted_module_names", [])),
        "groups": [[id(p) for p in group["params"]] for group in optimizer.param_groups],
        "state": {id(p): {k: id(v) for k, v in s.items()} for p, s in optimizer.state.items()},
        "record": getattr(base, "lightpeft_record", None),
        "hooks": hook_count(model),
        "model config": base.config.to_dict(),
    }


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """The parts of two observations that are not the same."""
    return [key for key in expected if found[key] != expected[key]]


class InjectedError(Exception):
    """Raised by the tests themselves."""


def explode(*args: Any, **kwargs: Any) -> Any:
    raise InjectedError


def patch(monkeypatch: pytest.MonkeyPatch, target: str, value: Any) -> None:
    """Patch a name of a *module*; `lightpeft.surgery.cut` as an attribute is the function."""
    module, _, attribute = target.rpartition(".")
    monkeypatch.setattr(sys.modules[module], attribute, value)
