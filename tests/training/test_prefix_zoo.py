"""The frozen prefix in every architecture: the same losses and gradients, and known examples pass it over."""

import logging
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tests.support.frozen import examples_run, freeze_lowest
from tests.support.probing import step
from tests.support.zoo import ANIMALS, Animal
from torch import Tensor

from lightpeft.anatomy import lowest_stack
from lightpeft.training.prefix import FrozenPrefix, RowCache, frozen_layer_names

GIB = 2**30
OFF = {"wav2vec2": "output_hidden_states is set"}
"""Of these the lower layers are read one by one, so they have to run."""

RUNS_ON = {"t5", "t5 (gated)", "bloom", "gpt_neo", "albert"}
"""Their first layer hands on more than hidden states (T5's makes the position bias of all others), or is the
only one, called again and again: it runs each time."""


def with_frozen_bottom(animal: Animal) -> PeftModel:
    """A PEFT model whose lowest layer trains nothing."""
    model = animal.with_lora(animal.attentions[-1])
    freeze_lowest(model)
    return model.train()


def reordered(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The examples in another order; of padded ones without the longest, so that they are padded less."""
    mask = batch.get("attention_mask")
    if mask is None:
        return {name: value if value.dim() == 0 else value.flip(0) for name, value in batch.items()}
    tokens = int(mask[1:].sum(1).max())
    chosen = {name: value if value.dim() == 0 else value[1:].flip(0) for name, value in batch.items()}
    return {
        name: value[:, :tokens] if value.dim() == 2 and value.shape[1] == mask.shape[1] else value
        for name, value in chosen.items()
    }


@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
@pytest.mark.parametrize("animal", [pytest.param(animal, id=animal.name) for animal in ANIMALS])
def test_losses_and_gradients_are_the_same(
    animal: Animal, padded: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    model = with_frozen_bottom(animal)
    names = frozen_layer_names(model)
    assert names == tuple(lowest_stack(model)[:1])
    batch = animal.batch(padded=padded, labels=True)
    batches = [batch, reordered(batch), batch]
    expected = [step(model, one) for one in batches]
    for cache in (None, RowCache(GIB, 0, tmp_path), RowCache(0, GIB, tmp_path)):
        prefix = FrozenPrefix(model, cache=cache)
        seen = 0
        with examples_run(model) as runs:
            for one, (loss, gradients) in zip(batches, expected, strict=True):
                found, theirs = step(model, one)
                torch.testing.assert_close(found, loss, rtol=1e-5, atol=1e-6)
                assert theirs.keys() == gradients.keys()
                for name, value in gradients.items():
                    torch.testing.assert_close(theirs[name], value, rtol=1e-3, atol=1e-5)
                if len(runs) and not seen:
                    seen = len(runs)
        assert prefix.is_attached is (animal.name not in OFF)
        if cache is not None and prefix.is_attached and animal.name not in RUNS_ON:
            assert len(runs) == seen, "known examples went through the frozen layer"
        prefix.remove()
    assert caplog.text.count(OFF.get(animal.name, "frozen prefix: off")) == (3 if animal.name in OFF else 0)
    torch.testing.assert_close(step(model, batch)[0], expected[0][0], rtol=0, atol=0)
