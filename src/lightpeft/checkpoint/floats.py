"""A model on a quantised base, and the same one on the floats that its base was quantised from."""

import copy
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from lightpeft.anatomy import base_of
from lightpeft.checkpoint.load import load
from lightpeft.checkpoint.origin import inherit_origin, origin_of, rebuild_base
from lightpeft.checkpoint.quantise import quantisation_of
from lightpeft.checkpoint.save import save
from lightpeft.checkpoint.ways_out import guard
from lightpeft.errors import ConfigError
from lightpeft.linears import is_packed
from lightpeft.surgery import base_digests
from lightpeft.wrapping import base_parameters


def require_floats(model: PeftModel) -> None:
    """Refuse a quantised base whose floats, which are cut, are not known.

    Raises:
        ConfigError: see `quantisation_of`; or the base was not loaded from a folder or hub name that gives
            all that is quantised, or it carries another form than LoRA, or more than one adapter.
    """
    if quantisation_of(model) is None:
        return
    if not isinstance(model.active_peft_config, LoraConfig):
        found = str(getattr(model.active_peft_config.peft_type, "value", "another form"))
        raise ConfigError(
            f"on a quantised base lightpeft cuts LoRA alone, found {found}; load the base in floats."
        )
    origin, base = origin_of(model), base_of(model)
    packed = [name for name, one in base_parameters(base).items() if is_packed(one)]
    unknown = [name for name in packed if name not in origin.digests]
    if unknown:
        raise ConfigError(
            f"{unknown[0]} is quantised ({len(unknown)} weights), but {base.config._name_or_path!r} gives "
            "no floats for it to be cut in. Load the base from a folder or hub name, and leave a new head "
            "out of the quantisation (by llm_int8_skip_modules, or modules_to_not_convert)."
        )
    if list(model.peft_config) != ["default"]:
        raise ConfigError(
            "on a quantised base lightpeft cuts a single adapter, named 'default'; found "
            f"{', '.join(model.peft_config)}."
        )


def on_floats(model: PeftModel) -> PeftModel:
    """The same model on a base of floats, on the CPU.

    Parameters that are trained are those of both models, as an optimizer may know them, and move there.

    Raises:
        CheckpointError: the base cannot be loaded anew.
    """
    attention = getattr(base_of(model).config, "_attn_implementation", None)
    base, _ = rebuild_base(origin_of(model).described, base_digests(model), None, attention)
    with torch.random.fork_rng(devices=[]):
        floats = get_peft_model(base, copy.deepcopy(model.peft_config["default"]))
    own, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    for name, parameter in list(floats.named_parameters()):
        parameter.requires_grad_(False)
        if own[name].requires_grad:
            own[name].data = own[name].data.cpu()
            _put(floats, parameter, own[name])
        elif not is_packed(own[name]):
            parameter.data = own[name].data.cpu()
    for name, buffer in floats.named_buffers():
        buffer.data = buffers[name].data.cpu()
    inherit_origin(floats, model)
    return floats.train(model.training)


def requantise(model: PeftModel, floats: PeftModel) -> None:
    """Let `model`, the same object, be what `floats` is after its cut, quantised as the base of `model` was.

    Parameters that are trained stay the same objects, too.

    Raises:
        CheckpointError: it cannot be quantised.
    """
    device, name = next(base_of(model).parameters()).device, origin_of(model).described["name_or_path"]
    with TemporaryDirectory() as folder:
        path, config = save(floats, Path(folder) / "light"), quantisation_of(model)
        light = load(path, name, quantization_config=config, is_trainable=True).to(device)
    places = dict(light.named_parameters())
    for name, parameter in floats.named_parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(device)
            _put(light, places[name], parameter)
    inherit_origin(light, model)
    _prepare_alike(base_of(light), base_of(model))
    for name, value in vars(light).items():
        if not name.startswith("_") and name in vars(model) and name not in ("training", "forward"):
            setattr(model, name, value)
    model.base_model = light.base_model
    guard(model)
    model.train(model.training)


def _prepare_alike(new: PreTrainedModel, old: PreTrainedModel) -> None:
    """As `prepare_model_for_kbit_training`, and Trainers, prepared the base: checkpointing, and no cache."""
    own = dict(old.named_modules())
    for name, module in new.named_modules():
        for attribute in ("gradient_checkpointing", "_gradient_checkpointing_func"):
            if name in own and attribute in vars(own[name]):
                setattr(module, attribute, vars(own[name])[attribute])
    if getattr(old, "_require_grads_hooks", None) or getattr(old, "_require_grads_hook", None):
        new.enable_input_require_grads()
    new.config.use_cache = old.config.use_cache


def _put(model: nn.Module, old: nn.Parameter, new: nn.Parameter) -> None:
    """In all places, where it is tied."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is old:
                module._parameters[name] = new
