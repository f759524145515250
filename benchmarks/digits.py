"""Light PEFT on real images: scikit-learn's handwritten digits through a small ViT, next to plain LoRA.

No small pretrained ViT ships with a package, so the base is made here: on the training images of 0 to 4,
turned and flipped, a ViT learns to tell which digit it sees and which way up. Then LoRA teaches all ten.
It shows both methods on real images, no record: logistic regression on the bare pixels reads 97.8 %.

python benchmarks/digits.py --out benchmarks/results/digits.json
python benchmarks/digits.py --seeds 0 --steps 60 --pretraining-steps 100
"""

import argparse
import dataclasses
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

from lightpeft import LightCallback, LightConfig, load, save
from lightpeft.bench import result_file, save_result
from lightpeft.report import environment
from lightpeft.runs import measure_speed
from lightpeft.surgery import parameter_counts

PLAIN, LIGHT = "plain LoRA", "light PEFT"
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"]
CLASSES, KNOWN, ORIENTATIONS = 10, 5, 8
TEST_IMAGES = 500

Images = list[dict[str, Tensor]]
"""Rows as a model's arguments: pixel_values (1, 8, 8) in [-1, 1], and labels."""


@dataclasses.dataclass(frozen=True)
class Config:
    """What is run; both methods share all of it."""

    layers: int = 6
    pretraining_steps: int = 600
    steps: int = 400
    seeds: tuple[int, ...] = (0, 1, 2)
    batch_size: int = 32
    pretraining_rate: float = 1e-3
    learning_rate: float = 2e-3
    speed_repeats: int = 20

    def training(self, steps: int, rate: float) -> dict[str, Any]:
        """The Trainer's arguments of one run."""
        return {"max_steps": steps, "learning_rate": rate, "per_device_train_batch_size": self.batch_size}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pretraining-steps", type=int, default=Config.pretraining_steps)
    parser.add_argument("--steps", type=int, default=Config.steps)
    parser.add_argument("--seeds", type=int, nargs="+", default=Config.seeds)
    parser.add_argument("--out", type=result_file, help="file for the result")
    options = vars(parser.parse_args())
    out = options.pop("out")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    result = run(Config(**options))
    if out is not None:
        save_result(out, result)
    print(table(result))


def run(config: Config) -> dict[str, Any]:
    """Make the base, fine-tune it both ways with every seed, and compare; JSON values."""
    start = time.perf_counter()
    train, test = load_images()
    models: dict[str, PeftModel] = {}
    runs: dict[str, list[dict[str, Any]]] = {PLAIN: [], LIGHT: []}
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder, "base")
        pretext = pretrain(base, train, test, config)
        probe = linear_probe(base, train, test)
        for seed in config.seeds:
            for method in runs:
                light = LightCallback("default") if method == LIGHT else None
                model = fine_tune(base, train, config, seed, light)
                if light is not None:
                    check_checkpoint(model, base, test)
                runs[method].append({"seed": seed} | numbers(model, test, light))
                models.setdefault(method, model)
    preset, batch = LightConfig.preset("default"), collate(train[: config.batch_size])
    speeds = measure_speed(models, batch, config.speed_repeats, estimate=(PLAIN, preset.estimation))
    return {
        "images": {"training": len(train), "test": len(test)},
        "pretext_accuracy": pretext,
        "linear_probe_accuracy": probe,
        "runs": runs,
        "speed": {name: dataclasses.asdict(speed) for name, speed in speeds.items()},
        "config": dataclasses.asdict(config),
        "light": preset.to_dict(),
        "seconds": time.perf_counter() - start,
        "environment": environment(),
    }


def load_images() -> tuple[Images, Images]:
    """The 1,797 digits as training and test images, stratified by class, always the same split."""
    pixels, classes = load_digits(return_X_y=True)
    scaled, labels = torch.as_tensor(pixels).float().view(-1, 1, 8, 8) / 8 - 1, torch.as_tensor(classes)
    images = [{"pixel_values": scaled[i], "labels": labels[i]} for i in range(len(labels))]
    train, test = train_test_split(images, test_size=TEST_IMAGES, stratify=classes, random_state=0)
    return train, test


def turned(images: Images) -> Images:
    """The digits that the base gets to know in eight orientations; labels say which digit, which way."""
    ways = [(flips, turns) for flips in ([], [2]) for turns in range(4)]
    return [
        {"pixel_values": pixels.flip(flips).rot90(turns, (1, 2)), "labels": digit * ORIENTATIONS + way}
        for pixels, digit in (image.values() for image in images)
        if digit < KNOWN
        for way, (flips, turns) in enumerate(ways)
    ]


def pretrain(base: Path, train: Images, test: Images, config: Config) -> float:
    """Train a small ViT on turned digits and save it without its head; its test accuracy on them."""
    transformers.set_seed(0)
    sizes = {"image_size": 8, "patch_size": 2, "num_channels": 1, "hidden_size": 96, "intermediate_size": 288}
    shape = ViTConfig(
        **sizes, num_hidden_layers=config.layers, num_attention_heads=6, num_labels=KNOWN * ORIENTATIONS
    )
    model = ViTForImageClassification(shape)
    optimise(model, turned(train), **config.training(config.pretraining_steps, config.pretraining_rate))
    model.base_model.save_pretrained(base)
    return accuracy(model, turned(test))


def linear_probe(base: Path, train: Images, test: Images) -> float:
    """Test accuracy of a converged logistic regression on the frozen base's features."""
    model = load_base(base)
    model.classifier = nn.Identity()
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    probe.fit(logits(model, train).numpy(), collate(train)["labels"].numpy())
    return float(probe.score(logits(model, test).numpy(), collate(test)["labels"].numpy()))


def fine_tune(base: Path, train: Images, config: Config, seed: int, light: LightCallback | None) -> PeftModel:
    """LoRA and a new head on the base, on all six linears of every layer, plain or light."""
    transformers.set_seed(seed)
    lora = LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS, modules_to_save=["classifier"])
    model = get_peft_model(load_base(base), lora)
    optimise(model, train, light, **config.training(config.steps, config.learning_rate), seed=seed)
    return model


def load_base(base: Path) -> ViTForImageClassification:
    return ViTForImageClassification.from_pretrained(base, num_labels=CLASSES)


def optimise(model: nn.Module, images: Images, light: LightCallback | None = None, **options: Any) -> None:
    options |= {"use_cpu": True, "save_strategy": "no"}
    options |= {"logging_strategy": "no", "report_to": [], "disable_tqdm": True}
    callbacks = None if light is None else [light]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(folder, **options)
        trainer = Trainer(model=model, args=arguments, train_dataset=images, callbacks=callbacks)
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()


def collate(images: Images) -> dict[str, Tensor]:
    return {name: torch.stack([image[name] for image in images]) for name in images[0]}


@torch.no_grad()
def logits(model: nn.Module, images: Images) -> Tensor:
    return model.eval()(pixel_values=collate(images)["pixel_values"]).logits


def accuracy(model: nn.Module, images: Images) -> float:
    return (logits(model, images).argmax(1) == collate(images)["labels"]).double().mean().item()


def check_checkpoint(model: PeftModel, base: Path, test: Images) -> None:
    """Save the cut model, load it, and insist on the very same test logits."""
    with tempfile.TemporaryDirectory() as folder:
        loaded = load(save(model, folder), base=base)
    if not torch.equal(logits(loaded, test), logits(model, test)):
        raise RuntimeError("the loaded model gives other logits than the saved one.")


def numbers(model: PeftModel, test: Images, light: LightCallback | None) -> dict[str, Any]:
    encoder, peft = parameter_counts(model)
    found = {"accuracy": accuracy(model, test), "encoder_parameters": encoder, "peft_parameters": peft}
    if light is not None:
        found |= {"estimation_steps": light.plan.estimation_steps, "difference": light.report.difference}
    return found


def table(result: dict[str, Any]) -> str:
    """Mean and standard deviation over seeds; parameters and times relative to plain LoRA."""
    return "\n".join(
        [
            "| method | test accuracy | per seed | encoder | PEFT | training step | inference |",
            "|---|---|---|---|---|---|---|",
            f"| linear probe, frozen base | {100 * result['linear_probe_accuracy']:.1f} | | 1.00 | | | |",
            *(table_row(result, method) for method in result["runs"]),
        ]
    )


def table_row(result: dict[str, Any], method: str) -> str:
    values = [100 * one["accuracy"] for one in result["runs"][method]]
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    each = ", ".join(f"{value:.1f}" for value in values)

    def mean(kind: str, of: str) -> float:
        return statistics.fmean(one[kind] for one in result["runs"][of])

    ratios = [mean(kind, method) / mean(kind, PLAIN) for kind in ("encoder_parameters", "peft_parameters")]
    speed, plain = result["speed"][method], result["speed"][PLAIN]
    ratios += [speed[kind]["median"] / plain[kind]["median"] for kind in ("train_step", "inference")]
    cells = " | ".join(f"{ratio:.2f}" for ratio in ratios)
    return f"| {method} | {statistics.fmean(values):.1f}{spread} | {each} | {cells} |"


if __name__ == "__main__":
    main()
