"""A stock adapter for the uncut base, made from a light checkpoint: what was cut is filled with zeros.

The light model's adapter, and the ranks and modules that were folded into its base at the cut, become one
adapter for the whole base. Heads and neurons that were cut act again there, untouched by the adapter, so the
result computes something else than the light model.
"""

import copy
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.ia3 import IA3Layer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor
from transformers import PreTrainedModel

from lightpeft.adapters import active_adapter, find_modules, type_name
from lightpeft.adapters.bottleneck import BottleneckConfig, BottleneckLayer
from lightpeft.adapters.lora import LoraModule, whole_modules
from lightpeft.anatomy import base_of, find_anatomy, linear_at
from lightpeft.checkpoint.format import read_record
from lightpeft.checkpoint.load import find_folder, load
from lightpeft.checkpoint.origin import rebuild_base
from lightpeft.errors import CheckpointError
from lightpeft.linears import INPUTS, OUTPUTS, matrix, width
from lightpeft.plan import Plan
from lightpeft.surgery import CutRecord, kept_channels, kept_rows
from lightpeft.wrapping import base_parameters


@dataclass(frozen=True)
class Places:
    """Where the channels of a cut base's linears are in the whole base. Whole ones are left out."""

    base: PreTrainedModel
    outputs: dict[str, Tensor]
    inputs: dict[str, Tensor]

    @classmethod
    def of(cls, base: PreTrainedModel, plan: Plan) -> "Places":
        """From the plan, for the whole base."""
        outputs: dict[str, Tensor] = {}
        inputs: dict[str, Tensor] = {}
        for layer, wanted in zip(find_anatomy(base).layers, plan.layers, strict=True):
            inputs |= kept_channels(layer, wanted)
            for units, kept in layer.with_kept(wanted.heads, wanted.neurons):
                outputs |= kept_rows(base, units, kept)
        return cls(base, outputs, inputs)

    def widen(self, value: Tensor, name: str, dim: int, side: int, fill: float = 0.0) -> Tensor:
        """`value` with its dimension `dim` over all OUTPUTS or INPUTS of the whole linear `name`."""
        kept = (self.outputs if side == OUTPUTS else self.inputs).get(name)
        if kept is None:
            return value
        shape = list(value.shape)
        shape[dim] = width(linear_at(self.base, name), side)
        return value.new_full(shape, fill).index_copy_(dim, kept.to(value.device), value)


def full_size(folder: str | Path, base: str | Path | PreTrainedModel | None = None) -> PeftModel:
    """A PEFT model of the whole base with the adapter of a light checkpoint, zero where something was cut.

    Args:
        folder: a light checkpoint, a folder or a hub name.
        base: the base's folder or hub name, or the loaded base, which is copied; by default the one that the
            checkpoint names.

    Raises:
        CheckpointError: see `load`.
    """
    directory = find_folder(folder)
    record, described, own = read_record(directory)
    _require_all_layers(record.plan, directory)
    if isinstance(base, PreTrainedModel):
        whole = copy.deepcopy(base)
    else:
        named = described.get("base") or {}
        whole, _ = rebuild_base(named, record.base, None if base is None else str(base), None)
    parameters = base_parameters(whole)
    trained = {name: value for name, value in own.items() if name in parameters}
    _require_stock(trained, parameters, directory)
    light, places = load(directory, whole), Places.of(whole, record.plan)
    kind = type_name(light.peft_config[active_adapter(light)])
    made, fill = _FORMS.get(kind, _as_it_is)(light, record, places)
    config: Any = made
    whole_modules = {
        name.rpartition(".")[0] for name in trained if not name.endswith(".bias") or _is_head(name, trained)
    }
    # A head that carries LoRA is trained by that.
    whole_modules -= set(getattr(config, "target_modules", None) or ())
    config.modules_to_save = sorted({*(config.modules_to_save or ()), *whole_modules})
    config.base_model_name_or_path = whole.config._name_or_path or None
    model: Any = get_peft_model(whole, config)
    with torch.no_grad():
        fill(model)
        _fill_copies(model, light)
        _fill_biases(model, light, record, places)
    model.eval()
    found: PeftModel = model
    return found


def _require_all_layers(plan: Plan, directory: Path) -> None:
    if plan.skipped_layers:
        raise CheckpointError(
            f"{directory} skips {', '.join(layer.name for layer in plan.skipped_layers)}, which no stock "
            "adapter can make the whole base do. Export the small model: --to merged; or cut with "
            "budget.layers=0."
        )


def _require_stock(
    own: Mapping[str, Tensor], parameters: Mapping[str, torch.nn.Parameter], directory: Path
) -> None:
    """Refuse a base whose cut weights are not its folder's: they are known in their cut shape alone."""
    cut = [
        name
        for name, value in own.items()
        if not name.endswith(".bias") and value.shape != parameters[name].shape
    ]
    if cut:
        raise CheckpointError(
            f"{directory} was made from a base whose {cut[0]} was changed before (an adapter merged into "
            "it?), so no adapter of the stock base can stand for it. Export the small model: --to merged."
        )


def _is_head(bias: str, rest: Iterable[str]) -> bool:
    """Whether a stored bias comes with its weight, not alone as that of a linear whose LoRA is gone."""
    return f"{bias.removesuffix('bias')}weight" in rest


Fill = Callable[[PeftModel], None]


@dataclass(frozen=True)
class _Pair:
    """A LoRA pair of the whole base."""

    a: Tensor
    b: Tensor
    bias: Tensor | None
    scaling: float
    gain: Tensor | None
    """DoRA's row factors."""


def _lora(light: PeftModel, record: CutRecord, places: Places) -> tuple[PeftConfig, Fill]:
    adapter = active_adapter(light)
    config = copy.deepcopy(light.peft_config[adapter])
    assert isinstance(config, LoraConfig)
    kept = {module.name: module for module in find_modules(light) if isinstance(module, LoraModule)}
    names = [module.name for module in record.plan.modules]
    pairs = {name: _pair(name, kept.get(name), light, record, places) for name in names}
    wanted = {name: pair for name, pair in pairs.items() if pair is not None}
    whole = whole_modules(base_of(light), adapter)
    ranks = {name: len(pair.a) for name, pair in wanted.items()}
    config.target_modules = [*wanted, *whole]
    config.rank_pattern = _exact(ranks | {name: layer.r[adapter] for name, layer in whole.items()})
    alphas = {
        name: pair.scaling * (math.sqrt(ranks[name]) if config.use_rslora else ranks[name])
        for name, pair in wanted.items()
    }
    config.alpha_pattern = _exact(alphas | {name: one.lora_alpha[adapter] for name, one in whole.items()})

    def fill(model: PeftModel) -> None:
        base: Any = model.get_base_model()
        for name, pair in wanted.items():
            _put_pair(base.get_submodule(name), pair)
        for name, layer in whole.items():
            target = base.get_submodule(name)
            for part in ("lora_embedding_A", "lora_embedding_B"):
                getattr(target, part)["default"].data = getattr(layer, part)[adapter].detach().clone()

    return config, fill


def _pair(
    name: str, module: LoraModule | None, light: PeftModel, record: CutRecord, places: Places
) -> _Pair | None:
    """The ranks that stayed and those that were folded, as one pair; None if there is nothing of either."""
    linear = linear_at(base_of(light), name)
    scaling = 1.0 if module is None else module.scaling
    a, b = (
        linear.weight.new_zeros(0, width(linear, INPUTS)),
        linear.weight.new_zeros(width(linear, OUTPUTS), 0),
    )
    constant, gain = record.constants.get(name), record.row_factors.get(name)
    if module is not None:
        a, b = module.lora_a.weight.detach(), module.lora_b.weight.detach()
        constant, gain = module.constant(), module.row_factors()
    if name in record.pairs:
        left, right = record.pairs[name]
        a, b = torch.cat([a, right.to(a)]), torch.cat([b, left.to(b) / scaling], 1)
    if not len(a) and constant is None and gain is None:
        return None
    if not len(a):
        a, b = a.new_zeros(1, a.shape[1]), b.new_zeros(b.shape[0], 1)
    return _Pair(
        a=places.widen(a, name, 1, INPUTS),
        b=places.widen(b, name, 0, OUTPUTS),
        bias=None if constant is None else places.widen(constant / scaling, name, 0, OUTPUTS),
        scaling=scaling,
        gain=None if gain is None else places.widen(gain, name, 0, OUTPUTS, fill=1.0),
    )


def _put_pair(layer: Any, pair: _Pair) -> None:
    layer.lora_A["default"].weight.data = pair.a.clone()
    layer.lora_B["default"].weight.data = pair.b.clone()
    if layer.lora_B["default"].bias is not None:
        zeros = torch.zeros_like(layer.lora_B["default"].bias)
        layer.lora_B["default"].bias.data = zeros if pair.bias is None else pair.bias.to(zeros)
    if "default" in layer.lora_magnitude_vector:
        weight = matrix(layer.get_base_layer()).float() + pair.scaling * (pair.b @ pair.a).float()
        norms = torch.linalg.vector_norm(weight, dim=1)
        magnitude = layer.lora_magnitude_vector["default"].weight
        magnitude.data = (norms if pair.gain is None else norms * pair.gain.to(norms)).to(magnitude)


def _bottleneck(light: PeftModel, record: CutRecord, places: Places) -> tuple[PeftConfig, Fill]:
    """Its width was never cut; the constant output of a module that is gone becomes one of one neuron."""
    del places
    adapter = active_adapter(light)
    config = copy.deepcopy(light.peft_config[adapter])
    assert isinstance(config, BottleneckConfig)
    kept = {module.name: module for module in find_modules(light)}
    lone = {name: value for name, value in record.constants.items() if name not in kept}
    config.target_modules = {*kept, *lone}
    config.size_pattern = _exact(
        {name: module.rank for name, module in kept.items()} | dict.fromkeys(lone, 1)
    )

    def fill(model: PeftModel) -> None:
        base: Any = model.get_base_model()
        for name, module in kept.items():
            for part in BottleneckLayer.adapter_layer_names:
                source = getattr(module.layer, part)[adapter]
                getattr(base.get_submodule(name), part)["default"].load_state_dict(source.state_dict())
        for name, constant in lone.items():
            layer = base.get_submodule(name)
            for part in (layer.bottleneck_down["default"], layer.bottleneck_up["default"]):
                for parameter in part.parameters():
                    parameter.zero_()
            layer.bottleneck_up["default"].bias.copy_(constant / layer.scaling["default"])

    return config, fill


def _ia3(light: PeftModel, record: CutRecord, places: Places) -> tuple[PeftConfig, Fill]:
    del record
    adapter = active_adapter(light)

    def fill(model: PeftModel) -> None:
        base: Any = model.get_base_model()
        for name, layer in base_of(light).named_modules():
            if isinstance(layer, IA3Layer):
                dim, side = (1, INPUTS) if layer.is_feedforward else (0, OUTPUTS)
                vector = places.widen(layer.ia3_l[adapter].detach(), name, dim, side, fill=1.0)
                base.get_submodule(name).ia3_l["default"].data = vector.clone()

    return copy.deepcopy(light.peft_config[adapter]), fill


def _as_it_is(light: PeftModel, record: CutRecord, places: Places) -> tuple[PeftConfig, Fill]:
    """Prompts do not depend on the base's inner sizes."""
    del record, places
    adapter = active_adapter(light)

    def fill(model: PeftModel) -> None:
        model.prompt_encoder["default"].load_state_dict(light.prompt_encoder[adapter].state_dict())

    return copy.deepcopy(light.peft_config[adapter]), fill


_FORMS: dict[str, Callable[[PeftModel, CutRecord, Places], tuple[PeftConfig, Fill]]] = {
    "LORA": _lora,
    "BOTTLENECK": _bottleneck,
    "IA3": _ia3,
}


def _exact(values: Mapping[str, Any]) -> dict[str, Any]:
    return {re.escape(name): value for name, value in values.items()}


def _fill_copies(model: PeftModel, light: PeftModel) -> None:
    """Modules that PEFT trains whole, and heads that only the light checkpoint has."""
    source, adapter = base_of(light), active_adapter(light)
    for name, wrapper in base_of(model).named_modules():
        if isinstance(wrapper, ModulesToSaveWrapper):
            found: Any = source.get_submodule(name)
            trained = found.modules_to_save[adapter] if isinstance(found, ModulesToSaveWrapper) else found
            wrapper.modules_to_save["default"].load_state_dict(trained.state_dict())


def _fill_biases(model: PeftModel, light: PeftModel, record: CutRecord, places: Places) -> None:
    """Trained biases of the base (PEFT's `bias` option), without what stood in for cut units there."""
    if getattr(model.peft_config["default"], "bias", "none") == "none":
        return
    trained = base_parameters(base_of(light))
    for name, bias in base_parameters(base_of(model)).items():
        if not (name.endswith(".bias") and bias.requires_grad and name in trained):
            continue
        linear = name.removesuffix(".bias")
        value = trained[name].detach().clone()
        for added in (record.shifts, record.constants):
            value -= added[linear].to(value) if linear in added else 0
        kept = places.outputs.get(linear)
        bias.data = value if kept is None else bias.data.index_copy(0, kept, value)
