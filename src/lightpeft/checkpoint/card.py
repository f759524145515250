"""The model card written with every light checkpoint."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from lightpeft.outputs import Output, is_own, note_own, written_beside
from lightpeft.plan import Plan


@contextmanager
def keeping_card(path: Path) -> Iterator[None]:
    """Around what writes a checkpoint into a folder in use: a card that somebody wrote or edited stays."""
    somebodys = path.read_bytes() if path.is_file() and not is_own(path, Output.CARD) else None
    yield
    if somebodys is not None:
        with written_beside(path) as beside:
            beside.write_bytes(somebodys)
    elif path.is_file():
        note_own(path, Output.CARD)


PIPELINES = {
    "AutoModel": "feature-extraction",
    "AutoModelForAudioClassification": "audio-classification",
    "AutoModelForCausalLM": "text-generation",
    "AutoModelForImageClassification": "image-classification",
    "AutoModelForMaskedLM": "fill-mask",
    "AutoModelForMultipleChoice": "multiple-choice",
    "AutoModelForQuestionAnswering": "question-answering",
    "AutoModelForSeq2SeqLM": "text2text-generation",
    "AutoModelForSequenceClassification": "text-classification",
    "AutoModelForSpeechSeq2Seq": "automatic-speech-recognition",
    "AutoModelForTokenClassification": "token-classification",
}
"""By the auto class of a base, what the hub calls its tasks."""


@dataclass(frozen=True)
class Card:
    """What a card says of a light or merged checkpoint."""

    described: Mapping[str, Any]
    """What `pruning.json` says of base, metrics, task and version."""

    plan: Plan
    form: str | None
    """Of PEFT; None for a merged checkpoint."""

    base: str | None
    """Its name on the hub; None if it has none."""

    place: str = "THIS_FOLDER"
    """Where the checkpoint is loaded from."""

    has_tokenizer: bool = False
    licence: Mapping[str, str] = field(default_factory=dict)
    """Of the base, as its own card has it: `license`, `license_name`, `license_link`."""

    def __str__(self) -> str:
        return str(ModelCard(f"---\n{self._data().to_yaml()}\n---\n{self._text()}"))

    @property
    def _shown(self) -> str:
        """The base in words, without a path of this machine."""
        return self.base or Path(self._described_base.get("name_or_path") or "").name or "base model"

    @property
    def _described_base(self) -> Mapping[str, Any]:
        return self.described.get("base") or {}

    @property
    def _pipeline(self) -> str | None:
        return PIPELINES.get(self._described_base.get("auto_class") or "")

    def _data(self) -> ModelCardData:
        """The front matter, which the hub reads."""
        is_merged = self.form is None
        more: dict[str, Any] = dict(self.licence)
        if self.base is not None:
            more["base_model_relation"] = "finetune" if is_merged else "adapter"
        return ModelCardData(
            base_model=self.base,
            library_name="lightpeft",
            pipeline_tag=self._pipeline,
            tags=["lightpeft", "pruning", *([] if is_merged else ["peft"])],
            eval_results=self._results(),
            model_name=self.place.rpartition("/")[2],
            **more,
        )

    def _results(self) -> list[EvalResult] | None:
        """What was measured on the checkpoint's own task; the metric called `main` is one of the others."""
        task, metrics = self.described.get("task") or {}, self.described.get("metrics") or {}
        named = {name: value for name, value in metrics.items() if name != "main"} or metrics
        if "name" not in task or self._pipeline is None or not named:
            return None
        return [
            EvalResult(
                task_type=self._pipeline,
                dataset_type=str(task["name"]),
                dataset_name=str(task["name"]),
                dataset_split="validation",
                metric_type=name,
                metric_value=value,
            )
            for name, value in named.items()
        ]

    def _text(self) -> str:
        what = f"An adapter ({self.form}) for a smaller `{self._shown}`"
        if self.form is None:
            what = f"A smaller `{self._shown}`, fine-tuned"
        lines = [
            "",
            "# Light PEFT checkpoint",
            "",
            f"{what}: what the task does not need was cut out of the base while",
            "training (Light-PEFT, Gu et al., Findings of ACL 2024).",
            "",
            *self._plan_in_words(),
            *self._metrics(),
            "",
            "## Use",
            "",
            "```python",
            *self._use(),
            "```",
            "",
            _FILES_OF_MERGED if self.form is None else _FILES_OF_LIGHT,
            f"Written by lightpeft {self.described.get('lightpeft_version')}.",
        ]
        return "\n".join(lines) + "\n"

    def _plan_in_words(self) -> list[str]:
        counts = self.plan.counts
        rows = {
            "attention heads": counts.heads,
            "FFN neurons": counts.neurons,
            "PEFT modules": counts.modules,
        }
        lines = ["| kept | of | |", "|---|---|---|"]
        lines += [f"| {count.kept} | {count.total} | {what} |" for what, count in rows.items()]
        skipped = ", ".join(layer.name for layer in self.plan.skipped_layers)
        return [*lines, "", f"Whole layers are skipped: {skipped}."] if skipped else lines

    def _metrics(self) -> list[str]:
        metrics = self.described.get("metrics") or {}
        rows = [f"| {name} | {value:.4g} |" for name, value in metrics.items()]
        return ["", "## Metrics", "", "| metric | value |", "|---|---|", *rows] if rows else []

    def _use(self) -> list[str]:
        call = "load_merged" if self.form is None else "load"
        needs_base = self.form is not None and self.base is None and self.place != Card.place
        base = ', base="FOLDER_OF_THE_BASE"' if needs_base else ""
        model = f'model = lightpeft.{call}("{self.place}"{base})'
        if not self.has_tokenizer:
            return ["import lightpeft", "", model]
        tokenizer = f'tokenizer = AutoTokenizer.from_pretrained("{self.place}")'
        return ["import lightpeft", "from transformers import AutoTokenizer", "", model, tokenizer]


_FILES_OF_LIGHT = (
    "`pruning.json` says what was cut and why, `light.safetensors` holds what was folded into the base. The\n"
    "adapter fits the cut base only."
)
_FILES_OF_MERGED = "`pruning.json` says what was cut and why, `model.safetensors` holds the small model."
