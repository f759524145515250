"""`torch.compile` with a light run: nothing before the cut, and afterwards what eager code computes."""

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.models import assert_identical, load_base, make_batch, save_base, with_lora
from tests.support.runs import ESTIMATION, trainer, weights
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

import lightpeft
from lightpeft import Budget, EstimationConfig
from lightpeft.training.compiling import NothingCompiled

# torch's own: dynamo asks every input of a graph for its gradient.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not:UserWarning")

COMPILED: dict[str, Any] = {
    "torch_compile": True,
    "torch_compile_backend": "eager",
    "save_strategy": "steps",
    "save_steps": 7,
}


def stance() -> str:
    return str(torch._dynamo.eval_frame._stance.stance)


def graphs() -> int:
    """How many graphs were compiled so far."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> Iterator[None]:
    gc.collect()  # runs that other tests broke off
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    gc.collect()
    torch._dynamo.reset()
    assert stance() == "default"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base("bert", tmp_path_factory.mktemp("base"), dropout=0.1)


@pytest.fixture(scope="module")
def eager(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    run = trainer(base, tmp_path_factory.mktemp("eager"))
    run.train()
    return run


def test_a_compiled_run_is_the_eager_one(base: Path, tmp_path: Path) -> None:
    """Trained, evaluated, saved, and resumed after the cut."""
    eager = trainer(base, tmp_path / "eager")
    eager.train()
    counts: list[int] = []
    run = trainer(base, tmp_path / "compiled", **COMPILED)
    step = run.training_step

    def counted(*args: Any, **kwargs: Any) -> Tensor:
        counts.append(graphs())
        return step(*args, **kwargs)

    run.training_step = counted
    run.train()
    assert counts[: ESTIMATION + 1] == [0] * (ESTIMATION + 1)
    assert 0 < counts[ESTIMATION + 1] == counts[-1], "compiled in the first step after the cut, and once"
    assert_identical(weights(run.model), weights(eager.model))
    assert run.evaluate()["eval_loss"] == pytest.approx(eager.evaluate()["eval_loss"], abs=1e-6)
    resumed = trainer(base, tmp_path / "resumed", **COMPILED)
    resumed.train(resume_from_checkpoint=str(tmp_path / "compiled" / "checkpoint-7"))
    assert_identical(weights(resumed.model), weights(eager.model))


@pytest.mark.parametrize("budget", [Budget(), Budget(layers=1 / 3)], ids=["units", "layers"])
def test_a_cut_model_can_be_compiled(budget: Budget, tmp_path: Path) -> None:
    model = with_lora(load_base(save_base("bert", tmp_path)))
    batch = make_batch("bert", labels=True)
    compiled = torch.compile(model, backend="eager")
    compiled(**batch)  # with the shapes of before
    scores = lightpeft.estimate(model, [batch] * 2, EstimationConfig(steps=2))
    plan = lightpeft.make_plan(scores, lightpeft.find_anatomy(model), budget)
    lightpeft.cut(model, plan, scores=scores, batch=batch)
    expected, found = gradients(model, batch), gradients(compiled, batch)
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name])
    compiled.save_pretrained(tmp_path / "light")
    assert lightpeft.load(tmp_path / "light", tmp_path) is not None


def gradients(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    model.eval()
    model.zero_grad()
    model(**batch).loss.backward()
    found = {name.removeprefix("_orig_mod."): p.grad for name, p in model.named_parameters()}
    return {name: grad.clone() for name, grad in found.items() if grad is not None}


def test_runs_that_take_turns_agree_on_when_to_compile() -> None:
    first, second = NothingCompiled(), NothingCompiled()
    for one in (first, first, second):
        assert stance() == "force_eager"
        one.remove()
    assert stance() == "default"


def test_a_run_that_was_broken_off_and_let_go_stops_nobody_from_compiling(base: Path, tmp_path: Path) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            raise RuntimeError("stop")

    run = trainer(base, tmp_path, callbacks=[Stop()], kind=Trainer)
    run.add_callback(lightpeft.LightCallback())
    with pytest.raises(RuntimeError, match="stop"):
        run.train()
    assert stance() == "force_eager"
    del run
    gc.collect()
    assert stance() == "default"
