"""What `bench run` puts side by side: one row per method."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

from peft import PeftModel
from torch import nn

from lightpeft.anatomy import base_of, find_anatomy, layer_modules, lowest_stack
from lightpeft.config import (
    Budget,
    EstimationConfig,
    LightConfig,
    PrefixConfig,
    SurgeryConfig,
    check_choice,
    exact_count,
)
from lightpeft.errors import ConfigError
from lightpeft.runs import Setting, outline
from lightpeft.surgery import FirstToken, can_narrow, padded_batch

PAPER_STEPS, PAPER_RUN = 800, 21_050
"""Estimation steps of the paper, and steps of a run that they belong to: 10 epochs of SST-2 at batch 32."""
DEFAULT = LightConfig.preset("default")
UNFROZEN = replace(DEFAULT, prefix=PrefixConfig(frozen=False))
UNCACHED = replace(DEFAULT, prefix=PrefixConfig(cache=False))
UNNARROWED = replace(DEFAULT, surgery=SurgeryConfig(first_token=False))


def _unchanged(model: PeftModel) -> None:
    pass


@dataclass(frozen=True)
class Method:
    """One way to train; all of them put the same LoRA on the same base, where they put it."""

    key: str
    """For flags and tables."""

    name: str
    """In words."""

    targets: Callable[[Setting], str | list[str]] = lambda setting: "all"
    """Where LoRA goes."""

    change: Callable[[PeftModel], None] = _unchanged
    """What happens to the loaded model before training."""

    light: Callable[[int], LightConfig] | None = None
    """The light configuration for a run of so many optimizer steps; None trains plainly."""

    def setting(self, setting: Setting, seed: int) -> Setting:
        """The setting with this method's LoRA and a seed."""
        lora = replace(setting.peft.lora, targets=self.targets(setting))
        return replace(
            setting,
            peft=replace(setting.peft, lora=lora),
            training=replace(setting.training, seed=seed),
        )

    def light_config(self, setting: Setting) -> LightConfig | None:
        """The light configuration for the run of this setting."""
        steps = setting.training.steps(len(setting.train))
        return None if self.light is None else self.light(steps)

    def load(self, setting: Setting) -> PeftModel:
        """The model that is trained.

        Raises:
            ConfigError: the base is not built as the method needs it.
        """
        model = setting.load_model()
        self.change(model)
        return model


def upper_half(setting: Setting) -> list[str]:
    """All linears of the upper half of the layers, the middle one of an odd number included."""
    base = outline(setting.model, setting.kind.auto_class)
    layers = find_anatomy(base).layers
    upper = layers[len(layers) // 2 :]
    return [name for layer in upper for units in layer.units for name in units.linears]


def remove_top_third(model: PeftModel) -> None:
    """Take the top third of the layers out of a loaded model, in place.

    Raises:
        ConfigError: its layers are not one list of two or more.
    """
    base, names = base_of(model), lowest_stack(model)
    layers = base.get_submodule(names[0].rpartition(".")[0])
    is_list = isinstance(layers, nn.ModuleList) and len(layers) == len(list(layer_modules(model)))
    if not is_list or len(names) < 2:
        raise ConfigError(
            f"the layers of this {base.config.model_type} are not one list of two or more, so its top third "
            "cannot go; leave this method out (--methods)."
        )
    kept = len(names) - max(1, exact_count(1 / 3, len(names)))
    del cast(nn.ModuleList, layers)[kept:]
    base.config.num_hidden_layers = kept


def narrow_last_layer(model: PeftModel) -> None:
    """Let the last layer run for the first token alone, as after a cut, where the head reads no other."""
    if can_narrow(model, padded_batch(model)):
        FirstToken.of(model)


def paper(steps: int) -> LightConfig:
    """The preset `paper`; its 800 estimation steps become the same share of the run, 3.8 %."""
    preset = LightConfig.preset("paper")
    own = min(PAPER_STEPS, max(1, round(steps * PAPER_STEPS / PAPER_RUN)))
    return replace(preset, estimation=replace(preset.estimation, steps=own))


def long_estimation(steps: int) -> LightConfig:
    """The preset `default`, which estimates for a third of the run."""
    return replace(DEFAULT, estimation=replace(DEFAULT.estimation, steps=max(1, steps // 3)))


PLAIN = Method("plain", "plain LoRA, all linears")
NARROW = Method("query-value", "plain LoRA, query and value", targets=lambda setting: "query-value")
METHODS = {
    method.key: method
    for method in (
        PLAIN,
        NARROW,
        Method("upper-half", "plain LoRA, upper half of the layers", targets=upper_half),
        Method("fewer-layers", "top third of the layers removed, plain LoRA", change=remove_top_third),
        Method("paper", "light, paper", light=paper),
        Method("default", "light, default", light=lambda steps: DEFAULT),
        Method("long-estimation", "default without short estimation", light=long_estimation),
        Method(
            "no-prefix",
            "default without the frozen prefix",
            light=lambda steps: UNFROZEN,
        ),
        Method(
            "no-cache",
            "default without its cache",
            light=lambda steps: UNCACHED,
        ),
        Method(
            "no-first-token",
            "default with the last layer for all tokens",
            light=lambda steps: UNNARROWED,
        ),
        Method(
            "first-token",
            "plain LoRA, last layer for the first token alone",
            change=narrow_last_layer,
        ),
    )
}
"""All methods by key, in the order of tables."""


def scored_by(score: str) -> Callable[[int], LightConfig]:
    """The preset `default` with another score of heads and neurons."""
    return lambda steps: replace(DEFAULT, estimation=replace(DEFAULT.estimation, base_score=score))


def layers_by_gradient(steps: int) -> LightConfig:
    """A third of the layers goes as a whole, those with the smallest squared gradients in the first 1 % of
    the run (GradPruner, 2026, whose weights of a layer these gates stand for); nothing else."""
    return LightConfig(
        EstimationConfig(steps=max(1, round(steps / 100)), base_score="fisher", layer_score="sum"),
        Budget(heads=0, neurons=0, modules=0, ranks=0, layers=1 / 3),
        prefix=PrefixConfig(frozen=False),
        learning_rate_factor=1.0,
    )


RIVALS = {
    method.key: method
    for method in (
        Method("magnitude", "default, heads and neurons by magnitude", light=scored_by("magnitude")),
        Method("random", "default, heads and neurons drawn", light=scored_by("random")),
        Method("gradient-layers", "a third of the layers by squared gradients", light=layers_by_gradient),
    )
}
"""More methods, of `bench quality`: what `default` is judged beside where it is accuracy that counts."""

KNOWN = METHODS | RIVALS
"""The methods that a grid of `bench quality` can have, or make others of."""


def chosen_methods(keys: Sequence[str]) -> tuple[Method, ...]:
    """The methods of these keys, in the order of the table; all if there are none.

    Raises:
        ConfigError: an unknown key.
    """
    for key in keys:
        check_choice("methods", key, tuple(METHODS))
    return tuple(method for key, method in METHODS.items() if not keys or key in keys)
