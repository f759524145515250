"""The images benchmark, with few steps: real images through a small ViT, from the base to the result file."""

from pathlib import Path

import pytest
import torch
from benchmarks import digits
from peft import PeftModel

from lightpeft import LightCallback, Plan, load, save
from lightpeft.files import read_json, write_json

CONFIG = digits.Config(layers=2, pretraining_steps=150, steps=120, seeds=(0,))
TINY = digits.Config(layers=1, pretraining_steps=2, steps=6, seeds=(0,), speed_repeats=2)
LAYERS, HEADS, NEURONS, MODULES, RANK = 2, 6, 288, 12, 8

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def images() -> tuple[digits.Images, digits.Images]:
    return digits.load_images()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, images: tuple[digits.Images, digits.Images]) -> Path:
    folder = tmp_path_factory.mktemp("digits") / "base"
    digits.pretrain(folder, *images, CONFIG)
    return folder


@pytest.fixture(scope="module")
def light_run(base: Path, images: tuple[digits.Images, digits.Images]) -> tuple[PeftModel, Plan]:
    light = LightCallback("default")
    model = digits.fine_tune(base, images[0], CONFIG, 0, light)
    assert light.plan is not None
    return model, light.plan


def test_splits_are_disjoint_stratified_and_always_the_same(
    images: tuple[digits.Images, digits.Images],
) -> None:
    train, test = images
    assert (len(train), len(test)) == (1297, 500)
    counts = digits.collate(test)["labels"].bincount()
    assert counts.min() >= 48
    again = digits.load_images()[1]
    assert torch.equal(digits.collate(test)["pixel_values"], digits.collate(again)["pixel_values"])


def test_an_image_has_eight_different_orientations(images: tuple[digits.Images, digits.Images]) -> None:
    known = next(image for image in images[0] if image["labels"] == 3)
    views = digits.collate(digits.turned([known]))
    assert views["labels"].tolist() == list(range(24, 32))
    assert len(views["pixel_values"].flatten(1).unique(dim=0)) == 8


def test_the_base_never_sees_the_upper_five_digits(images: tuple[digits.Images, digits.Images]) -> None:
    assert digits.turned([image for image in images[0] if image["labels"] >= 5]) == []


def test_the_cut_is_what_the_default_budget_says(light_run: tuple[PeftModel, Plan]) -> None:
    _, plan = light_run
    assert plan.estimation_steps == CONFIG.steps // 8
    assert [len(layer.heads) for layer in plan.layers] == [HEADS * 2 // 3] * LAYERS
    neurons = [len(layer.neurons) for layer in plan.layers]
    assert sum(neurons) == LAYERS * NEURONS * 2 // 3
    assert all(kept % 32 == 0 for kept in neurons)
    assert sum(len(module.ranks) for module in plan.modules) == MODULES // 2 * RANK * 3 // 4
    assert 0 < len(plan.kept_modules) <= MODULES // 2


def test_the_model_has_the_planned_shapes(light_run: tuple[PeftModel, Plan]) -> None:
    model, plan = light_run
    for layer, planned in zip(model.get_base_model().vit.layers, plan.layers, strict=True):
        assert layer.attention.q_proj.out_features == 16 * len(planned.heads)
        assert layer.mlp.fc2.in_features == len(planned.neurons)


def test_the_light_model_reads_digits(
    light_run: tuple[PeftModel, Plan], images: tuple[digits.Images, digits.Images]
) -> None:
    assert digits.accuracy(light_run[0], images[1]) > 0.5


def test_the_checkpoint_gives_the_same_test_logits(
    light_run: tuple[PeftModel, Plan],
    base: Path,
    images: tuple[digits.Images, digits.Images],
    tmp_path: Path,
) -> None:
    model, test = light_run[0], images[1]
    loaded = load(save(model, tmp_path / "light"), base=base)
    assert torch.equal(digits.logits(loaded, test), digits.logits(model, test))


def test_the_result_has_its_fields_and_its_table(tmp_path: Path) -> None:
    result = digits.run(TINY)
    write_json(tmp_path / "digits.json", result)
    read = read_json(tmp_path / "digits.json")
    assert read["images"] == {"training": 1297, "test": 500}
    assert read["environment"]["torch"]
    assert read["seconds"] > 0
    assert set(read["speed"]) == {digits.PLAIN, digits.LIGHT, "estimation"}
    (plain,), (light,) = read["runs"][digits.PLAIN], read["runs"][digits.LIGHT]
    assert light["estimation_steps"] == TINY.steps // 3
    assert 0.6 < light["encoder_parameters"] / plain["encoder_parameters"] < 0.7
    assert light["peft_parameters"] < 0.4 * plain["peft_parameters"]
    assert 0 <= read["linear_probe_accuracy"] <= 1
    assert len(digits.table(read).splitlines()) == 5
