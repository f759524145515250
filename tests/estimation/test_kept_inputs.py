"""Gates measure on tensors that training keeps for its backward pass anyway."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tests.support.models import (
    LAYERS,
    ROWS,
    checkpoint_activations,
    load_base,
    make_batch,
    save_base,
    with_lora,
)
from torch import Tensor

from lightpeft import EstimationConfig, Scores
from lightpeft.estimation import Estimator

BATCH = make_batch("bert", labels=True)


@pytest.fixture
def model(tmp_path: Path) -> PeftModel:
    return with_lora(load_base(save_base("bert", tmp_path)), lora_dropout=0.3).train()


def kept_bytes(model: PeftModel) -> int:
    """Bytes of all storages that the forward pass keeps."""
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    torch.manual_seed(0)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(**BATCH).loss
    del loss
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_gates_keep_nothing_that_training_does_not(model: PeftModel) -> None:
    plain = kept_bytes(model)
    estimator = Estimator(model, EstimationConfig(steps=1))
    estimator.attach()
    assert kept_bytes(model) == plain
    estimator.detach()
    assert kept_bytes(model) == plain


def inputs_and_gradients(model: PeftModel, place: str, reader: str) -> tuple[Tensor, Tensor]:
    """What `reader` gets, and the gradient of what the linear at `place` gets."""
    base, seen = model.get_base_model(), {}

    def note(name: str, x: Tensor) -> None:
        seen[name] = x
        if x.requires_grad:
            x.retain_grad()

    hooks = [
        base.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: note(name, args[0]))
        for name in (place, reader)
    ]
    torch.manual_seed(0)
    model(**BATCH).loss.backward()
    for hook in hooks:
        hook.remove()
    model.zero_grad()
    assert seen[place].grad is not None
    return seen[reader].detach(), seen[place].grad


def estimated(model: PeftModel) -> Scores:
    estimator = Estimator(model, EstimationConfig(steps=1, base_score="taylor"))
    estimator.attach()
    torch.manual_seed(0)
    model(**BATCH).loss.backward()
    estimator.end_step(0.0)
    estimator.detach()
    model.zero_grad()
    return estimator.scores()


@pytest.mark.parametrize("checkpointing", [None, False, True], ids=["whole", "checkpoints", "reentrant"])
def test_a_copy_behind_dropout_stands_in_for_the_input(checkpointing: bool | None, model: PeftModel) -> None:
    place = ROWS["bert"].at(LAYERS - 1, "ffn_out")
    copy, gradient = inputs_and_gradients(model, place, f"{place}.lora_A.default")
    assert (copy == 0).any()
    if checkpointing is not None:
        checkpoint_activations(model.get_base_model(), reentrant=checkpointing)
    expected = (copy * gradient).sum((0, 1)).abs()
    torch.testing.assert_close(estimated(model).neurons[-1], expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("off", [False, True], ids=["on", "off"])
def test_an_adapter_that_is_off_gives_no_copy(off: bool, model: PeftModel) -> None:
    """Then the linear's own input is kept."""
    place = ROWS["bert"].at(LAYERS - 1, "ffn_out")
    estimator = Estimator(model, EstimationConfig(steps=1, base_score="taylor"))
    estimator.attach()
    with model.disable_adapter() if off else nullcontext():
        own, gradient = inputs_and_gradients(model, place, place if off else f"{place}.lora_A.default")
    estimator.end_step(0.0)
    estimator.detach()
    expected = (own * gradient).sum((0, 1)).abs()
    torch.testing.assert_close(estimator.scores().neurons[-1], expected, rtol=1e-4, atol=1e-7)
