"""The table of PEFT types: which can be cut and how, and why others cannot."""

import copy
from collections.abc import Sequence

from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from lightpeft.adapters.bottleneck.view import BOTTLENECK
from lightpeft.adapters.ia3 import IA3
from lightpeft.adapters.lora import LORA, whole_modules
from lightpeft.adapters.view import Follower, Form, PeftModule
from lightpeft.anatomy import base_of
from lightpeft.edits import Journal
from lightpeft.errors import AnatomyError
from lightpeft.wrapping import added_parameters

FORMS: dict[str, Form] = {
    "LORA": LORA,
    "BOTTLENECK": BOTTLENECK,
    "IA3": IA3,
    "PROMPT_TUNING": Form("prompt tuning", has_modules=False, merges=False),
    "P_TUNING": Form(
        "P-tuning",
        has_modules=False,
        merges=False,
        no_resume="PEFT saves the prompt that P-tuning's encoder puts out, not the encoder that is trained",
    ),
    "PREFIX_TUNING": Form(
        "prefix tuning",
        has_modules=False,
        merges=False,
        fixed_heads="prefix tuning gives every layer keys and values for all heads of the whole base",
    ),
}
"""By `peft_type`. A new form is a file beside this one and a row here."""

_SHARED = (
    "its weights are shared between layers and have the shape of the widest one, which a cut makes unequal"
)
_OWN_RANKS = "it chooses ranks itself while it trains, against the ranks that lightpeft chooses"
REFUSED: dict[str, str] = {
    "VERA": _SHARED,
    "PVERA": _SHARED,
    "VBLORA": _SHARED,
    "RANDLORA": _SHARED,
    "UNILORA": _SHARED,
    "TINYLORA": _SHARED,
    "ADALORA": _OWN_RANKS,
    "MULTITASK_PROMPT_TUNING": "it trains one prompt for several tasks, and a cut is for one",
    "ADAPTION_PROMPT": "it replaces attention modules by its own, whose heads lightpeft does not know",
}
"""Why a PEFT type cannot be cut, where there is more to say than that nobody has described it."""


def form_of(config: PeftConfig) -> Form:
    """The form of an adapter.

    Raises:
        AnatomyError: it cannot be cut; says why, and what can be used instead.
    """
    name = type_name(config)
    if name not in FORMS:
        why = REFUSED.get(name, "lightpeft does not know how its weights follow a cut")
        raise AnatomyError(
            f"found PEFT type {name}: {why}. Use LoRA, or one of {', '.join(sorted(set(FORMS) - {'LORA'}))}."
        )
    return FORMS[name]


def active_form(model: nn.Module) -> Form | None:
    """The form of the adapter that is estimated and cut; None for a model without PEFT.

    Raises:
        AnatomyError: see `active_adapter` and `form_of`.
    """
    if not isinstance(model, PeftModel):
        return None
    return form_of(model.peft_config[active_adapter(model)])


def active_adapter(model: PeftModel) -> str:
    """The one adapter that is estimated and cut: the active one.

    Raises:
        AnatomyError: none is active, or several.
    """
    active = list(model.active_adapters)
    if len(active) != 1 or active[0] not in model.peft_config:
        raise AnatomyError(
            f"found the adapters {list(model.peft_config)}, active {active}; lightpeft works on exactly one "
            "active adapter. Choose it with model.set_adapter(NAME)."
        )
    return active[0]


def find_modules(model: nn.Module) -> tuple[PeftModule, ...]:
    """The PEFT modules of the active adapter that are scored and cut, in module order.

    None for a model without PEFT, and for forms without ranks (IA3, prompts).

    Raises:
        AnatomyError: see `active_form`; or the adapter's configuration or layers cannot be cut.
    """
    form = active_form(model)
    if form is None:
        return ()
    assert isinstance(model, PeftModel)
    adapter = active_adapter(model)
    problem = form.problem(model.peft_config[adapter])
    if problem is not None:
        raise AnatomyError(problem)
    _require_unmerged(model)
    find_followers(model)
    modules = form.find(model, adapter)
    if form.has_modules and not modules:
        raise AnatomyError(
            f"the model has the adapter {adapter!r}, but no {form.title} module was found that can be cut."
        )
    return modules


def _require_unmerged(model: PeftModel) -> None:
    for name, layer in model.get_base_model().named_modules():
        if isinstance(layer, BaseTunerLayer) and layer.merged:
            raise AnatomyError(f"{name} has an adapter merged; call model.unmerge_adapter() first.")


def find_followers(model: nn.Module) -> dict[str, Follower]:
    """Every tuner layer that has to follow a cut, of all adapters, by the name of its linear.

    Raises:
        AnatomyError: a layer on something that is not a plain linear.
    """
    found: dict[str, Follower] = {}
    if isinstance(model, PeftModel):
        for name in dict.fromkeys(type_name(config) for config in model.peft_config.values()):
            if name in FORMS:
                found |= FORMS[name].followers(base_of(model))
    return found


def describe_in_config(model: PeftModel, modules: Sequence[PeftModule], journal: Journal) -> None:
    """Make the active adapter's configuration say exactly what is left, so that PEFT rebuilds it.

    It is a copy that changes: PEFT keeps the very object that the user made, who may use it again.
    """
    adapter = active_adapter(model)
    journal.set_item(model.peft_config, adapter, copy.deepcopy(model.peft_config[adapter]))
    form_of(model.peft_config[adapter]).describe(model, adapter, modules, journal)


def adapter_parameters(model: nn.Module) -> list[Tensor]:
    """The weights of the active adapter; copies of whole modules (`modules_to_save`) do not count."""
    if not isinstance(model, PeftModel):
        return []
    adapter = active_adapter(model)
    if model.peft_config[adapter].is_prompt_learning:
        return list(model.prompt_encoder[adapter].parameters())
    return list(added_parameters(model.get_base_model(), adapter))


def limits_of_form(model: nn.Module) -> list[str]:
    """What the active adapter keeps from being cut as asked, in words, to say before a run."""
    form = active_form(model)
    if form is None:
        return []
    assert isinstance(model, PeftModel)
    adapter, said = active_adapter(model), []
    if len(model.peft_config) > 1:
        others = ", ".join(name for name in model.peft_config if name != adapter)
        said.append(
            f"the active adapter {adapter!r} is estimated and cut; {others} only follow the base's cut"
        )
    if not form.has_modules:
        said.append(f"{form.title} has no modules and ranks to cut: only heads and neurons are")
    if form.fixed_heads is not None:
        said.append(f"heads stay, because {form.fixed_heads}")
    whole = whole_modules(model.get_base_model(), adapter)
    return [*said, *(f"{name}: its LoRA on an embedding stays whole" for name in whole)]


def type_name(config: PeftConfig) -> str:
    """The PEFT type of a configuration, as files say it."""
    return str(getattr(config.peft_type, "value", config.peft_type))
