"""Probe cuts: whether what the anatomy says of an architecture is right, on a small random copy of it."""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from lightpeft.anatomy import (
    FAMILIES,
    FUSED_LAYOUTS,
    UNPROBED,
    Anatomy,
    Layer,
    Units,
    Verdict,
    attach_verdict,
    base_of,
    find_anatomy,
    part_key,
    stacks_of,
    verdict_of,
)
from lightpeft.config import Budget
from lightpeft.errors import AnatomyError, LightPeftError
from lightpeft.plan import LayerPlan, Plan
from lightpeft.surgery.cut import cut
from lightpeft.surgery.verify import observe, padded_batch

SMALL = 50_000_000
"""Parameters up to which a copy keeps all its layers and neurons."""

FEW_LAYERS, FEW_NEURONS = 2, 256
VOCABULARY = 256
VISIBLE = 1e-3
"""Least change of some output, relative to its largest value, for a cut to have shown anything."""

_DEPTHS = (
    "num_hidden_layers",
    "num_layers",
    "n_layer",
    "n_layers",
    "encoder_layers",
    "decoder_layers",
    "num_encoder_layers",
    "num_decoder_layers",
)
_INNER_WIDTHS = (
    "intermediate_size",
    "ffn_dim",
    "encoder_ffn_dim",
    "decoder_ffn_dim",
    "ffn_hidden_size",
    "n_inner",
    "d_ff",
)
_Part = tuple[str, str, str]
"""Where the layers of a stack are, its title, and what of it is probed: heads, cross heads or neurons."""


@dataclass(frozen=True)
class ProbeReport:
    """What probe cuts showed."""

    copy: str
    """What was cut, in words."""

    attentions: tuple[str, ...]
    """Attention implementations under which it was cut."""

    verified: tuple[str, ...]
    """What can be cut, as `encoder heads`, `layer neurons`."""

    refused: dict[str, str]
    """What cannot, and why."""

    verdict: Verdict

    def describe(self) -> list[str]:
        """Lines for a terminal."""
        under = " and ".join(self.attentions)
        lines = [f"probe cuts of {', '.join(self.verified)} verified ({self.copy}; {under})"]
        if not self.verified:
            lines = [f"no probe cut could be verified ({self.copy}; {under})"]
        return [*lines, *(f"{name} could not be verified: {why}" for name, why in self.refused.items())]


def verify_discovered(model: nn.Module) -> Anatomy:
    """Make sure of an architecture that is not in lightpeft's table, by probe cuts on a small random copy.

    The verdict stays on the model: from then on `find_anatomy` leaves out what could not be verified. Known
    architectures, and models with a verdict, cost nothing. Call it before estimating, and on a fresh base
    before a saved cut is applied to it.

    Raises:
        AnatomyError: nothing could be verified; says what was tried and how it failed.
    """
    base = base_of(model)
    if base.config.model_type not in FAMILIES and verdict_of(base) is None:
        report = probe_cuts(model)
        if not report.verified:
            raise AnatomyError(
                f"lightpeft has no row for the architecture {base.config.model_type!r}, and of what it found "
                f"by looking nothing could be verified: {' '.join(report.describe())}"
            )
        attach_verdict(base, report.verdict)
    return find_anatomy(model)


def probe_cuts(model: nn.Module) -> ProbeReport:
    """Cut one head (with its KV group) and one neuron out of every layer of a random copy of `model`.

    The copy is built from the model's configuration, on the CPU in float32, with two layers per stack and
    few neurons where the model is large; `model` itself, which may be on the meta device, is not touched.
    Each cut is verified against gates on a padded batch, for eager attention and for the model's own.

    Raises:
        AnatomyError: the architecture has no layers with attention, or no copy of it can be made.
    """
    base = base_of(model)
    parts = _parts(base)
    # Building a model draws random numbers; those of the user's run stay where they are.
    with torch.random.fork_rng(devices=[]):
        copies = _copies_for(model, dict.fromkeys(("eager", _own_attention(base))))
        verdict, verified, refused = _examine(parts, tuple(copies.values()))
    words = next(iter(copies.values())).words
    return ProbeReport(words, tuple(copies), verified, refused, verdict)


def _parts(base: PreTrainedModel) -> list[_Part]:
    """What there is to probe, from the same descriptions as the anatomy."""
    parts: list[_Part] = []
    for stack in stacks_of(base):
        parts.append((stack.layers, stack.title, "heads"))
        if stack.ffn is not None:
            parts.append((stack.layers, stack.title, "neurons"))
        if stack.cross is not None:
            parts.append((stack.layers, stack.title, "cross heads"))
    return parts


def _own_attention(base: PreTrainedModel) -> str:
    """The model's attention, or what stands for it on a CPU."""
    own = str(base.config._attn_implementation or "eager")
    return own if own in ("eager", "sdpa") else "sdpa"


# Examining.


@dataclass(frozen=True)
class _Copies:
    """A small random copy of a model, as often as wanted."""

    words: str
    build: Callable[[], PreTrainedModel]
    outline: PreTrainedModel
    """One to look at, perhaps on the meta device."""


def _examine(
    parts: Sequence[_Part], copies: Sequence[_Copies]
) -> tuple[Verdict, tuple[str, ...], dict[str, str]]:
    """Try each part by itself, a fused projection in every layout, until a cut verifies."""
    verdict, verified, refused = Verdict(), [], {}
    for part in parts:
        path, title, what = part
        key, name = part_key(path, what), f"{title} {what}"
        reasons: list[str] = []
        attempts = _attempts(part, _read_as(Verdict(), copies[0].outline))
        for attempt in attempts:
            reason = _try(part, attempt, copies)
            if reason is None:
                verdict = _merged(verdict, attempt)
                verified.append(name)
                break
            reasons.append(reason)
        else:
            if attempts:
                refused[name] = "; ".join(dict.fromkeys(reasons))
                told = f"could not be verified: {refused[name]}"
                verdict = replace(verdict, refused={**verdict.refused, key: told})
    return verdict, tuple(verified), refused


def _attempts(part: _Part, outline: PreTrainedModel) -> list[Verdict]:
    """The readings of one part, the one that allows most first; none where there is nothing to cut."""
    path, _, what = part
    key = part_key(path, what)
    if what == "neurons":
        return [Verdict()]
    units = _heads_of(part, outline)
    if all(one.count < 2 or one.fixed not in (None, UNPROBED) for one in units):
        return []
    if any(one.fixed == UNPROBED for one in units):
        return [Verdict(layouts={key: layout}) for layout in FUSED_LAYOUTS]
    if any(one.group > 1 and one.splits_groups for one in units):
        return [Verdict(), Verdict(whole_groups=frozenset({key}))]
    return [Verdict()]


def _merged(one: Verdict, other: Verdict) -> Verdict:
    return Verdict(
        layouts={**one.layouts, **other.layouts},
        whole_groups=one.whole_groups | other.whole_groups,
        refused=one.refused,
    )


def _try(part: _Part, verdict: Verdict, copies: Sequence[_Copies]) -> str | None:
    """Why a part cannot be cut as read; None if it can."""
    try:
        for one in copies:
            for choose in _choices(part, _read_as(verdict, one.outline)):
                _cut_and_look(part, _read_as(verdict, one.build()), choose)
    except LightPeftError as error:
        return _in_short(error)
    except Exception as error:  # an unknown model's forward pass may raise anything
        return f"{type(error).__name__}: {_in_short(error)}"
    return None


_Choose = Callable[[Units], tuple[int, ...]]


def _read_as(verdict: Verdict, model: PreTrainedModel) -> PreTrainedModel:
    attach_verdict(model, verdict)
    return model


def _choices(part: _Part, model: PreTrainedModel) -> list[_Choose]:
    """Ways to cut: a whole KV group, and one query head of each group."""
    if part[2] == "neurons":
        return [_without_one_group]
    units = _heads_of(part, model)
    splits = any(one.group > 1 and one.splits_groups for one in units)
    goes = any(one.groups > 1 for one in units)
    return [
        *([_without_one_group] if goes or not splits else []),
        *([_without_one_of_each_group] if splits else []),
    ]


def _without_one_group(units: Units) -> tuple[int, ...]:
    """All units but a KV group (a head, a neuron) in the middle, not to fit a wrong layout by chance."""
    gone = units.groups // 2
    return tuple(unit for unit in range(units.count) if unit // units.group != gone)


def _without_one_of_each_group(units: Units) -> tuple[int, ...]:
    gone = units.group // 2
    return tuple(unit for unit in range(units.count) if unit % units.group != gone)


def _cut_and_look(part: _Part, model: PreTrainedModel, choose: _Choose) -> None:
    """Cut the part out of a copy.

    Raises:
        LightPeftError: there is nothing to cut, the cut does not verify, or it shows nowhere.
    """
    plan = _plan(part, find_anatomy(model), choose)
    inputs = padded_batch(model)
    try:
        before = observe(model, inputs)
    except LightPeftError as error:
        raise AnatomyError(f"even uncut the copy does not run on random inputs: {error}") from error
    cut(model, plan, batch=inputs)
    after = observe(model, inputs)
    changes = [
        float((value - after[name]).abs().max() / value.abs().max().clamp_min(1e-6))
        for name, value in before.items()
    ]
    if max(changes) < VISIBLE:
        raise AnatomyError("a cut changes no output of the model, so it proves nothing.")


def _plan(part: _Part, anatomy: Anatomy, choose: _Choose) -> Plan:
    """A plan by hand: in each layer of the part some units go, everything else stays."""
    mine = {layer.index for layer in _layers_of(part, anatomy)}
    layers, cuts = [], 0
    for layer in anatomy.layers:
        kept = {"heads": tuple(range(layer.heads)), "neurons": tuple(range(layer.neurons))}
        units = layer.ffn if part[2] == "neurons" else layer.attention
        if layer.index in mine and units is not None and units.fixed is None and units.count:
            chosen = choose(units)
            if chosen or units.removable:
                kept[units.kind] = chosen
                cuts += 1
        layers.append(
            LayerPlan(layer.index, layer.name, kept["heads"], layer.heads, kept["neurons"], layer.neurons)
        )
    if not cuts:
        raise AnatomyError("no layer has units that can go.")
    return Plan(anatomy.model_type, tuple(layers), (), Budget(), 0, ())


def _heads_of(part: _Part, model: PreTrainedModel) -> list[Units]:
    layers = _layers_of(part, find_anatomy(model))
    return [layer.attention for layer in layers if layer.attention is not None]


def _layers_of(part: _Part, anatomy: Anatomy) -> list[Layer]:
    _, title, what = part
    ending = " cross-attention" if what == "cross heads" else ""
    names = {f"{title} {index}{ending}" for index in range(len(anatomy.layers))}
    return [layer for layer in anatomy.layers if layer.name in names]


# Copies.


def _copies_for(model: nn.Module, attentions: Iterable[str]) -> dict[str, _Copies]:
    """Copies for each attention that the architecture has.

    Raises:
        AnatomyError: it can be built with none of them.
    """
    copies, failures = {}, []
    for attention in attentions:
        try:
            copies[attention] = _copies(model, attention)
        except Exception as error:  # anything may go wrong in building an architecture that nobody tried
            failures.append(f"with {attention} attention: {_in_short(error)}")
    if not copies:
        name = type(base_of(model)).__name__
        raise AnatomyError(f"no copy of {name} can be built to probe it: {'; '.join(failures)}.")
    return copies


def _copies(model: nn.Module, attention: str) -> _Copies:
    """Small random copies from the configuration; full ones where that does not work."""
    base = base_of(model)
    config = _smaller(base)
    inside: Any = base.base_model

    def blank() -> PreTrainedModel:
        # The base alone: a task's head may ask for more, such as a padding token.
        make: Any = type(inside)._from_config
        made: PreTrainedModel = make(
            copy.deepcopy(config), attn_implementation=attention, dtype=torch.float32
        )
        return made

    def full() -> PreTrainedModel:
        whole = copy.deepcopy(model)
        made: Any = base_of(whole.unload() if isinstance(whole, PeftModel) else whole).base_model
        made.set_attn_implementation(attention)
        return _alive(made.cpu().float())

    try:
        with torch.device("meta"):
            outline = blank()
        depth = len(find_anatomy(outline).layers)
    except Exception:  # a class that needs more than its configuration
        return _Copies("a full copy with random weights", full, full())
    all_layers = len(find_anatomy(base).layers)
    layers = f"all {depth} layers" if depth == all_layers else f"{depth} of {all_layers} layers"
    if _is_large(base):
        layers += f", at most {FEW_NEURONS} neurons"
    words = f"built from its configuration with random weights, {layers}"
    return _Copies(words, lambda: _alive(blank()), outline)


def _smaller(base: PreTrainedModel) -> Any:
    """The configuration with a small vocabulary, and with few layers and neurons for a large model."""
    small: Any = type(base.config).from_dict(_shrunk(base.config.to_dict(), _is_large(base)))
    small.model_type = base.config.model_type
    return small


def _is_large(base: PreTrainedModel) -> bool:
    return sum(parameter.numel() for parameter in base.base_model.parameters()) > SMALL


def _shrunk(values: dict[str, Any], few: bool) -> dict[str, Any]:
    depths = {values[name] for name in _DEPTHS if isinstance(values.get(name), int)} if few else set()
    small: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict) and name.endswith("_config"):
            small[name] = _shrunk(value, few)
        elif name in _DEPTHS and value in depths:
            small[name] = min(value, FEW_LAYERS)
        elif few and name in _INNER_WIDTHS and isinstance(value, int):
            small[name] = min(value, FEW_NEURONS)
        elif isinstance(value, list) and len(value) in depths:
            small[name] = value[:FEW_LAYERS]
        elif name == "vocab_size" and isinstance(value, int):
            small[name] = min(value, VOCABULARY)
        elif name.endswith("_token_id") and isinstance(value, int) and value >= VOCABULARY:
            small[name] = 1
        else:
            small[name] = value
    return small


@torch.no_grad()
def _alive(model: PreTrainedModel) -> PreTrainedModel:
    """Weights under which every head and neuron shows in the output, the same ones every time."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() > 1:
            parameter.copy_(noise / parameter.shape[-1] ** 0.5)
        else:
            parameter.add_(0.1 * noise)
    model.eval()
    return model


def _in_short(error: BaseException) -> str:
    """The first line of a message, at most 300 characters."""
    text = str(error).strip().split("\n")[0].split(" This is a fault of")[0]
    text = text.removesuffix(" The model was put back as it was.")
    return text if len(text) <= 300 else f"{text[:297]}..."
