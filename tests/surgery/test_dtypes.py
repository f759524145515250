"""gated = cut = loaded in every recipe of dtypes, within what the dtype holds; no ΔW is rounded away."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tests.support.models import gated, hook_count, load_base, make_batch, save_base, with_lora
from tests.support.plans import plan_gates, random_plan
from torch import Tensor, nn

import lightpeft
from lightpeft import SurgeryConfig
from lightpeft.anatomy import linear_at
from lightpeft.surgery import fold_beside, record_of
from lightpeft.surgery.pairs import LARGEST_LOSS, lost_by_folding
from lightpeft.surgery.verify import TOLERANCES

FOLD, DROP = SurgeryConfig(compensate=False), SurgeryConfig(fold_removed=False, compensate=False)
BATCH = make_batch("bert")


def as_it_is(model: PeftModel) -> None:
    del model


def norms_in_float32(model: PeftModel) -> None:
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.float()


def trained_in_float32(model: PeftModel) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def adapters_in_bfloat16(model: PeftModel) -> None:
    model.to(torch.bfloat16)


@dataclass(frozen=True)
class Recipe:
    """A dtype of the base, what is cast afterwards, and the autocast that a run of it needs."""

    name: str
    base: torch.dtype
    cast: Callable[[PeftModel], None] = as_it_is
    autocast: torch.dtype | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def tolerance(self) -> float:
        return max(TOLERANCES[self.base], TOLERANCES[self.autocast or self.base])

    def model(self, folder: Path) -> PeftModel:
        base = load_base(save_base("bert", folder), dtype=self.base)
        model = with_lora(base, **self.options)
        self.cast(model)
        return model

    @contextmanager
    def running(self) -> Iterator[None]:
        with (
            torch.no_grad(),
            torch.autocast("cpu", dtype=self.autocast or torch.bfloat16, enabled=self.autocast is not None),
        ):
            yield


BF16, FP16 = torch.bfloat16, torch.float16
RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("float32", torch.float32),
        Recipe("float32 under autocast", torch.float32, autocast=BF16),
        Recipe("float32 under float16 autocast", torch.float32, autocast=FP16),
        Recipe("bfloat16 base, float32 LoRA", BF16),
        Recipe("bfloat16 base, float32 LoRA under autocast", BF16, autocast=BF16),
        Recipe("bfloat16 base, float32 norms", BF16, norms_in_float32, BF16),
        Recipe("bfloat16 base, all that trains in float32", BF16, trained_in_float32, BF16),
        Recipe("bfloat16 in all", BF16, adapters_in_bfloat16),
        Recipe("bfloat16 base, DoRA", BF16, options={"use_dora": True}),
        Recipe("float16 base, float32 LoRA", FP16),
        Recipe("float64", torch.float64),
    )
}


def logits_of(recipe: Recipe, model: nn.Module) -> Tensor:
    model.eval()
    with recipe.running():
        logits: Tensor = model(**BATCH).logits
    return logits.double()


@pytest.mark.filterwarnings("ignore:up to .* of the removed ΔW is lost")  # DoRA's
@pytest.mark.parametrize("config", [FOLD, DROP], ids=["fold", "drop"])
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda recipe: recipe.name)
def test_gated_cut_and_loaded_agree(recipe: Recipe, config: SurgeryConfig, tmp_path: Path) -> None:
    model = recipe.model(tmp_path / "base")
    plan = random_plan(model)
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    with gated(model.get_base_model(), typed(plan_gates(plan, ranks=not config.fold_removed), model)):
        expected = logits_of(recipe, model)
    whole = logits_of(recipe, model)
    with recipe.running():  # as the callback finds it inside a run
        report = lightpeft.cut(model, plan, batch=BATCH, config=config)
    found = logits_of(recipe, model)
    scale = max(1.0, float(expected.abs().max()))
    assert float((found - expected).abs().max()) / scale <= recipe.tolerance
    assert float((whole - expected).abs().max()) > 2 * float((found - expected).abs().max())
    assert report.difference <= recipe.tolerance
    assert all(parameter.dtype == dtypes[name.replace("base_layer.", "")] or name.endswith("bias")
               for name, parameter in model.named_parameters()
               if name.replace("base_layer.", "") in dtypes)  # fmt: skip


def typed(gates: dict[str, Tensor], model: PeftModel) -> dict[str, Tensor]:
    """In the dtype of what they multiply: pairs and base can have different ones."""
    base = model.get_base_model()
    return {
        name: values.to(next(base.get_submodule(name).parameters()).dtype) for name, values in gates.items()
    }


def small_delta(
    dtype: torch.dtype, share: float, folder: Path, *, saved: bool = False, **options: Any
) -> PeftModel:
    """Every ΔW has `share` of the size of its W."""
    model = with_lora(load_base(folder if saved else save_base("bert", folder), dtype=dtype), **options)
    with torch.no_grad():
        for module in model.modules():
            if hasattr(module, "lora_B"):
                a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
                weight = module.get_base_layer().weight.float()
                b.mul_(share * weight.norm() / (module.scaling["default"] * (b @ a).norm()))
    return model


@pytest.mark.parametrize(("share", "lost"), [(0.002, 0.5), (0.02, 0.05)])
def test_bfloat16_keeps_what_folding_would_lose(share: float, lost: float, tmp_path: Path) -> None:
    model = small_delta(BF16, share, tmp_path / "base")
    plan = random_plan(model)
    base = model.get_base_model()
    before = {m.name: linear_at(base, m.name).weight.detach().clone() for m in plan.modules}
    report = lightpeft.cut(model, plan, batch=BATCH, config=FOLD)
    record = record_of(model)
    assert record is not None
    assert record.beside == record.pairs.keys()
    assert f"ΔW of {report.beside} linears stays beside them in float32" in report.describe()
    for name, pair in record.pairs.items():
        linear = linear_at(base, name)
        assert set(linear.weight.flatten().tolist()) <= set(before[name].flatten().tolist())
        assert lost_by_folding(linear, pair) > lost
        x = torch.randn(5, linear.in_features, dtype=BF16)
        with torch.no_grad():
            plain = nn.functional.linear(x, linear.weight, linear.bias)
            delta = x.float() @ pair[1].float().T @ pair[0].float().T
            assert torch.equal(linear(x), plain + delta.to(BF16))


def test_float32_folds_and_loses_nothing_that_shows(tmp_path: Path) -> None:
    model = small_delta(torch.float32, 0.002, tmp_path / "base")
    plan = random_plan(model)
    report = lightpeft.cut(model, plan, batch=BATCH, config=FOLD)
    record = record_of(model)
    assert record is not None
    assert (report.beside, record.beside) == (0, frozenset())
    assert not any(linear_at(model.get_base_model(), name)._forward_hooks for name in record.pairs)


def test_a_large_delta_is_folded_into_16_bit(tmp_path: Path) -> None:
    model = small_delta(BF16, 1.0, tmp_path / "base")
    report = lightpeft.cut(model, random_plan(model), batch=BATCH, config=FOLD)
    assert report.beside == 0
    assert LARGEST_LOSS == 0.01


def test_pairs_beside_are_saved_loaded_and_merged(tmp_path: Path) -> None:
    base = load_base(save_base("bert", tmp_path / "base"), dtype=BF16)
    base.save_pretrained(tmp_path / "bf16")
    model = small_delta(BF16, 0.02, tmp_path / "bf16", saved=True)
    lightpeft.cut(model, random_plan(model), batch=BATCH, config=FOLD)
    recipe = RECIPES["bfloat16 base, float32 LoRA"]
    expected = logits_of(recipe, model)
    folder = lightpeft.save(model, tmp_path / "light")
    loaded = lightpeft.load(folder)
    assert record_of(loaded).beside == record_of(model).beside != frozenset()  # type: ignore[union-attr]
    assert torch.equal(logits_of(recipe, loaded), expected)
    fold_beside(loaded.get_base_model())
    assert hook_count(loaded) == 0
    assert float((logits_of(recipe, loaded) - expected).abs().max()) < TOLERANCES[BF16]


def test_dora_says_what_it_loses(tmp_path: Path) -> None:
    model = small_delta(BF16, 0.02, tmp_path, use_dora=True)
    with pytest.warns(
        UserWarning, match=r"up to \d+% of the removed ΔW is lost: DoRA.*Load the base in float32"
    ):
        lightpeft.cut(model, random_plan(model), batch=BATCH, config=FOLD)


@pytest.mark.parametrize("where", ["weight", "activation"])
def test_a_diverged_run_is_told_so(where: str, tmp_path: Path) -> None:
    model = with_lora(load_base(save_base("bert", tmp_path)))
    plan = random_plan(model)
    with torch.no_grad():
        parameter = next(p for n, p in model.named_parameters() if "layer.1" in n and ".lora_B." in n)
        parameter.fill_(float("nan") if where == "weight" else 3e38)
    with pytest.raises(lightpeft.VerificationError, match=r"layer 1.*the run has diverged\. Lower the learn"):
        lightpeft.cut(model, plan, batch=BATCH)
