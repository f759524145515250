"""`bench run` on tiny models: every method, exactness in turns, failure, and what is kept of seeds."""

import json
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import GradientState
from tests.cli.conftest import read
from tests.support.language import save_language_model
from tests.support.runs import weights
from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from lightpeft.bench import METHODS, MethodError, RunBenchmark, chosen_methods
from lightpeft.bench.methods import Method, paper
from lightpeft.bench.relay import Baton, Turns, take_turns
from lightpeft.bench.rows import select_rows
from lightpeft.bench.run_summary import run_table, summarise
from lightpeft.bench.whole_runs import run_seed
from lightpeft.cli.main import main
from lightpeft.config import LightConfig
from lightpeft.errors import ConfigError
from lightpeft.run_config import PeftOptions, TrainingConfig
from lightpeft.runs import Outcome, Run, Setting, fit, make_setting
from lightpeft.tasks import custom_task, load_task

SHORT = TrainingConfig(max_steps=6, batch_size=4, max_length=24, eval_steps=4, learning_rate=1e-2)


def sentiment(model: Path, training: TrainingConfig = SHORT) -> Setting:
    task = load_task("demo/sentiment", sizes={"train": 40, "validation": 12})
    return make_setting(str(model), task, training, PeftOptions())


def language(folder: Path) -> Setting:
    data = folder / "data"
    data.mkdir()
    for split, rows in (("train", 12), ("validation", 4)):
        lines = [json.dumps({"text": "the cat sees a red tree " * (1 + row % 3)}) for row in range(rows)]
        (data / f"{split}.jsonl").write_text("\n".join(lines))
    task = load_task(custom_task(("text",), "label", None, name="own", objective="causal-lm"), data)
    model = save_language_model("llama", folder / "llama")
    return make_setting(
        str(model), task, TrainingConfig(max_steps=2, batch_size=2, max_length=24), PeftOptions()
    )


@pytest.fixture(scope="module")
def two_steps(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Setting, dict[str, Any]]]:
    """Every method, two steps, on a BERT and on a LLaMA."""
    folder = tmp_path_factory.mktemp("two-steps")
    short = TrainingConfig(max_steps=2, batch_size=4, max_length=24)
    settings = {"bert": sentiment(tiny_model, short), "llama": language(folder)}
    return {
        name: (setting, run_seed(RunBenchmark(setting, tuple(METHODS.values()), chunk=1), 0, folder / name))
        for name, setting in settings.items()
    }


@pytest.mark.parametrize("key", METHODS)
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_every_method_runs(name: str, key: str, two_steps: dict[str, tuple[Setting, dict[str, Any]]]) -> None:
    _, result = two_steps[name]
    numbers, plain = result["methods"][key], result["methods"]["plain"]
    assert math.isfinite(numbers["metric"])
    assert 0 < numbers["evaluation_seconds"] < numbers["seconds"]
    assert numbers["curve"][-1] == {
        "step": 2,
        "seconds": pytest.approx(numbers["seconds"], rel=0.5),
        "metric": numbers["metric"],
    }
    is_light = METHODS[key].light is not None
    assert (numbers["estimation_steps"] is not None) == is_light
    is_smaller = is_light or key == "fewer-layers"
    assert (numbers["encoder_parameters"] < plain["encoder_parameters"]) == is_smaller
    assert (numbers["peft_parameters"] < plain["peft_parameters"]) == (key not in ("plain", "first-token"))
    reads_every_token = name == "llama"
    is_same = key == "plain" or (key == "first-token" and reads_every_token)
    assert (numbers["peak_memory_bytes"] < plain["peak_memory_bytes"]) == (not is_same)


def test_methods_differ_as_they_say(tiny_model: Path) -> None:
    setting = sentiment(tiny_model)
    loaded = {key: method.load(method.setting(setting, 3)) for key, method in METHODS.items()}
    names = {
        key: [n for n, _ in model.named_modules() if n.endswith("lora_A")] for key, model in loaded.items()
    }
    assert all("layer.1." in name for name in names["upper-half"])
    assert len(names["upper-half"]) == 6
    assert {name.split(".")[-2] for name in names["query-value"]} == {"query", "value"}
    assert loaded["fewer-layers"].config.num_hidden_layers == 1
    assert all("layer.0." in name for name in names["fewer-layers"])
    light = {key: method.light_config(setting) for key, method in METHODS.items()}
    assert light["default"] == LightConfig()
    assert light["long-estimation"] is not None
    assert light["long-estimation"].estimation.steps == 2
    assert [paper(steps).estimation.steps for steps in (6, 651, 21_050, 100_000)] == [1, 25, 800, 800]


def test_a_base_of_one_layer_is_refused_by_name(tmp_path: Path, tiny_model: Path) -> None:
    setting = sentiment(tiny_model)
    model = METHODS["fewer-layers"].load(setting)
    with pytest.raises(ConfigError, match="this bert are not one list of two or more"):
        METHODS["fewer-layers"].change(model)


def test_in_turns_each_run_is_what_it_is_alone(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit: data order, dropout, estimation and evaluations."""
    setting, methods = sentiment(tiny_model), chosen_methods(["plain", "query-value", "default", "paper"])
    order: list[str] = []
    train = Run.train
    outcomes: dict[str, Outcome] = {}

    def kept(run: Run, *, resume: bool = False) -> Outcome:
        outcome = train(run, resume=resume)
        outcomes[threading.current_thread().name] = outcome
        return outcome

    hand_on = Baton.hand_on

    def noted(baton: Baton) -> None:
        order.append(threading.current_thread().name)
        hand_on(baton)

    monkeypatch.setattr(Run, "train", kept)
    monkeypatch.setattr(Baton, "hand_on", noted)
    run_seed(RunBenchmark(setting, methods, chunk=2), 5, tmp_path / "turns")
    keys = [method.key for method in methods]
    assert order[:8] == keys * 2
    monkeypatch.setattr(Run, "train", train)
    for method in methods:
        own = method.setting(setting, 5)
        alone = fit(own, method.light_config(own), tmp_path / method.key, progress=False)
        together = outcomes[method.key]
        assert _same(weights(alone.model), weights(together.model)), method.key
        assert _losses(alone) == _losses(together)


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _losses(outcome: Outcome) -> list[tuple[str, float]]:
    wanted = ("loss", "eval_loss", "eval_main", "grad_norm", "train_loss")
    return [(key, entry[key]) for entry in outcome.history for key in wanted if key in entry]


def test_what_runs_share_is_each_ones_own_in_its_turn() -> None:
    """Random numbers, and accelerate's one object for all data loaders."""
    baton = Baton(["one", "other"])

    def use(name: str) -> Callable[[], list[tuple[int, bool]]]:
        turns = Turns(name, baton, chunk=2)
        torch.manual_seed(7)
        turns.keep_place()

        def run() -> list[tuple[int, bool]]:
            turns.begin()
            GradientState().sync_gradients = name == "one"
            seen = []
            for step in range(1, 5):
                seen.append((int(torch.randint(1000, ())), GradientState().sync_gradients))
                turns.on_step_end(arguments, TrainerState(global_step=step), TrainerControl())
            turns.end()
            return seen

        return run

    arguments = TrainingArguments("unused", use_cpu=True)
    found = take_turns(baton, {name: use(name) for name in ("one", "other")})
    torch.manual_seed(7)
    draws = [int(torch.randint(1000, ())) for _ in range(4)]
    assert found == {"one": [(d, True) for d in draws], "other": [(d, False) for d in draws]}
    GradientState._reset_state()


def test_one_failure_ends_all_with_the_methods_name(tiny_model: Path, tmp_path: Path) -> None:
    def breaks(model: nn.Module) -> None:
        def forward(*args: Any) -> None:
            if model.training and next(calls) > 1:
                raise RuntimeError("the disk caught fire")

        calls = iter(range(100))
        model.register_forward_pre_hook(forward)

    methods = (METHODS["plain"], Method("broken", "one that fails", change=breaks), METHODS["default"])
    threads = threading.active_count()
    with pytest.raises(MethodError, match="broken: RuntimeError: the disk caught fire"):
        run_seed(RunBenchmark(sentiment(tiny_model), methods, chunk=1), 0, tmp_path)
    assert threading.active_count() == threads
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_ends_those_that_wait() -> None:
    baton = Baton(["first", "second"])

    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    def waits(name: str) -> Callable[[], None]:
        def run() -> None:
            baton.wait_for("nobody")

        return run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lightpeft.bench.relay.wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            take_turns(baton, {name: waits(name) for name in ("first", "second")})


COMMAND = [
    *("--task", "demo/sentiment", "--train-rows", "32", "--training.max_steps", "4"),
    *("--training.batch_size", "4", "--training.max_length", "24", "--training.eval_steps", "2"),
    *("--methods", "plain,default", "--chunk", "1"),
]


def test_the_command_keeps_finished_seeds(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["bench", "run", "--model", str(tiny_model), "--out", str(out), *COMMAND]
    assert main([*command, "--seeds", "0"]) == 0
    first = (out / "seed-0.json").read_bytes()
    capsys.readouterr()
    assert main([*command, "--seeds", "0,1"]) == 0
    printed = capsys.readouterr().out
    assert (out / "seed-0.json").read_bytes() == first
    assert sorted(path.name for path in out.iterdir() if not path.name.startswith(".")) == [
        *("run.json", "run.svg", "seed-0.json", "seed-1.json")
    ]
    summary = read(out / "run.json")
    assert summary["seeds"] == [0, 1]
    assert list(summary["methods"]) == ["plain", "default"]
    first_words = [line.split()[0] for line in printed.splitlines() if line.strip()]
    assert [word for word in first_words if word in METHODS] == ["plain", "default"]
    picture = (out / "run.svg").read_text()
    assert picture.startswith("<svg")
    assert all(name in picture for name in ("plain LoRA, all linears", "light, default"))
    assert main([*command, "--seeds", "2", "--training.learning_rate", "0.5"]) == 1
    assert "another setting (training.learning_rate 0.001 instead of 0.5)" in capsys.readouterr().err
    (out / "seed-1.json").write_text("{}")
    assert main([*command, "--seeds", "1"]) == 1
    assert "seed-1.json exists and is no result of bench run" in capsys.readouterr().err


def test_the_summary_is_of_pairs_of_seeds() -> None:
    def numbers(seconds: float, reached: float | None) -> dict[str, Any]:
        shared = {"metric": 0.8, "evaluation_seconds": 1.0, "peak_memory_bytes": 10, "encoder_parameters": 5}
        return {**shared, "seconds": seconds, "reached_seconds": reached, "estimation_steps": None}

    rows = {"plain": {"name": "p"}, "default": {"name": "d"}}
    setting = {"model": "m", "task": "t", "metric": "accuracy", "methods": rows}
    seeds = [
        {"setting": setting, "seed": 0, "environment": {}, "methods": {}},
        {"setting": setting, "seed": 1, "environment": {}, "methods": {}},
    ]
    seeds[0]["methods"] = {"plain": numbers(10.0, 8.0), "default": numbers(5.0, None)}
    seeds[1]["methods"] = {"plain": numbers(20.0, 16.0), "default": numbers(8.0, 6.0)}
    summary = summarise(seeds)
    default = summary["methods"]["default"]
    assert default["ratios"]["plain"]["seconds"]["mean"] == pytest.approx((0.5 + 0.4) / 2)
    assert default["ratios"]["query-value"] == {}
    assert (default["reached_seconds"]["mean"], default["reached_by"]) == (6.0, 1)
    cells = [list(column.cells)[1].plain for column in run_table(summary).columns]
    assert cells == ["default", "0.800 ± 0.000", "6.5 ± 2.1", "1.0", "0.45", "–", "6.0 (1/2)", "10 B", "–"]


def test_rows_are_long_enough_and_the_same_each_time() -> None:
    task = load_task("demo/sentiment", sizes={"train": 60, "validation": 10})
    chosen = select_rows(task, min_words=9, train_rows=7)
    assert len(chosen.train) == 7
    assert all(len(text.split()) >= 9 for text in chosen.train["text"])
    assert chosen.train["text"] == select_rows(task, min_words=9, train_rows=7).train["text"]
    with pytest.raises(ConfigError, match="has 1000 words"):
        select_rows(task, min_words=1000)
