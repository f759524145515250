"""Whole runs: model + task + method -> trained model, files and numbers."""

from lightpeft.run_config import MINILM
from lightpeft.runs.continued import base_of_adapter
from lightpeft.runs.engines import set_engine_aside
from lightpeft.runs.experiment import LIGHT, PLAIN, SCORES, Experiment, run_experiment
from lightpeft.runs.fit import Outcome, Run, Setting, check_reporting, fit, make_setting, prepare
from lightpeft.runs.generation import generate_texts
from lightpeft.runs.harness import (
    HarnessScore,
    HarnessTasks,
    ask_harness,
    check_harness_options,
    harness_version,
    load_harness_tasks,
)
from lightpeft.runs.joining import join_processes
from lightpeft.runs.limits import within_positions
from lightpeft.runs.minilm import minilm_path
from lightpeft.runs.models import (
    load_config,
    load_peft_model,
    load_tokenizer,
    outline,
    pad_as,
    require_folder,
    resolve_model,
)
from lightpeft.runs.quantization import quantization_config
from lightpeft.runs.speed import ESTIMATION, Speed, measure_speed, training_peak_bytes, with_gates
from lightpeft.runs.use import evaluate_model, predict

__all__ = [
    "ESTIMATION",
    "LIGHT",
    "MINILM",
    "PLAIN",
    "SCORES",
    "Experiment",
    "HarnessScore",
    "HarnessTasks",
    "Outcome",
    "Run",
    "Setting",
    "Speed",
    "ask_harness",
    "base_of_adapter",
    "check_harness_options",
    "check_reporting",
    "evaluate_model",
    "fit",
    "generate_texts",
    "harness_version",
    "join_processes",
    "load_config",
    "load_harness_tasks",
    "load_peft_model",
    "load_tokenizer",
    "make_setting",
    "measure_speed",
    "minilm_path",
    "outline",
    "pad_as",
    "predict",
    "prepare",
    "quantization_config",
    "require_folder",
    "resolve_model",
    "run_experiment",
    "set_engine_aside",
    "training_peak_bytes",
    "with_gates",
    "within_positions",
]
