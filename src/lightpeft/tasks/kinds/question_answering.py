"""The words of a context that answer a question (SQuAD 1.1 and 2.0), in contexts of any length."""

import re
import string
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, List, Value
from peft import TaskType
from torch import Tensor
from transformers import AutoModelForQuestionAnswering, DataCollatorWithPadding, PreTrainedTokenizerBase

from lightpeft.run_config import TrainingConfig
from lightpeft.tasks.columns import Columns, checked_texts, column
from lightpeft.tasks.errors import TaskError
from lightpeft.tasks.features import TYPES, check_room, check_text, require_offsets
from lightpeft.tasks.files import Table
from lightpeft.tasks.kinds.kind import Collator, Evaluated, TaskKind, Usual
from lightpeft.tasks.spec import TaskSpec

CANDIDATES = 20
"""Beginnings and ends of a window that are tried with each other."""

LONGEST_ANSWER = 30
"""Tokens."""

OVERLAP = 3
"""One window shares a third of its tokens with the next."""

_NOTES = ("example", "offsets", "silence")
"""Columns of the features that the model does not take: the row of the split, where in the context each token
is (-1 for tokens of no part of it), and the token that stands for no answer."""

Measure = Callable[[str, str], float]
"""(a right answer, what was found) -> 0 to 1."""

Gold = list[list[str]]
"""Of every question its right answers; none where the context has none."""


@dataclass(frozen=True)
class Answer:
    """The best answer to a question, and by how much having none is better (negative: worse)."""

    text: str
    margin: float


def normalized(text: str) -> str:
    """An answer as SQuAD compares it: lower case, without punctuation, articles and doubled space."""
    text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact_match(gold: str, found: str) -> float:
    """1 if both are the same answer, else 0."""
    return float(normalized(gold) == normalized(found))


def token_f1(gold: str, found: str) -> float:
    """F1 over the words of both; where one has none, 1 if the other has none either."""
    gold_words, found_words = normalized(gold).split(), normalized(found).split()
    if not gold_words or not found_words:
        return float(gold_words == found_words)
    common = sum((Counter(gold_words) & Counter(found_words)).values())
    return 2 * common / (len(gold_words) + len(found_words))


def _best(measure: Measure, gold: Sequence[str], found: str) -> float:
    """The best over all right answers; no answer is the only right one where there are none."""
    known = [answer for answer in gold if normalized(answer)] or [""]
    return max(measure(answer, found) for answer in known)


def _mean(measure: Measure, gold: Gold, answers: Sequence[Answer]) -> float:
    """With no answer wherever that is better; only where some questions have none."""
    found = [_told(answer, gold) for answer in answers]
    return float(np.mean([_best(measure, right, text) for right, text in zip(gold, found, strict=True)]))


def _told(answer: Answer, gold: Gold) -> str:
    return "" if answer.margin > 0 and not all(gold) else answer.text


def _exact(gold: Gold, answers: Sequence[Answer]) -> float:
    return _mean(exact_match, gold, answers)


def _f1(gold: Gold, answers: Sequence[Answer]) -> float:
    return _mean(token_f1, gold, answers)


def _best_exact(gold: Gold, answers: Sequence[Answer]) -> float:
    return _over_thresholds(exact_match, gold, answers)


def _best_f1(gold: Gold, answers: Sequence[Answer]) -> float:
    return _over_thresholds(token_f1, gold, answers)


def _over_thresholds(measure: Measure, gold: Gold, answers: Sequence[Answer]) -> float:
    """The mean at the margin, above which no answer is given, where it is largest."""
    told = np.array([_best(measure, right, one.text) for right, one in zip(gold, answers, strict=True)])
    silent = np.array([_best(measure, right, "") for right in gold])
    order = np.argsort([answer.margin for answer in answers], kind="stable")
    sums = silent.sum() + np.concatenate([[0.0], np.cumsum((told - silent)[order])])
    return float(sums.max() / len(answers))


class QuestionAnswering(TaskKind):
    """The text columns are question and context; labels are `{"text": [...], "answer_start": [...]}`.

    Metrics are fractions, as the official scripts compute them: exact match and F1 over words.
    """

    name = "question-answering"
    auto_class = AutoModelForQuestionAnswering
    peft_task = TaskType.QUESTION_ANS
    metrics = MappingProxyType(
        {"exact_match": _exact, "f1": _f1, "best_exact_match": _best_exact, "best_f1": _best_f1}
    )
    texts = (2,)
    own_text = ("question", "context")
    takes_classes = False
    label_names = ("start_positions", "end_positions")
    in_order = True
    batch_size = 32

    def columns(self, spec: TaskSpec, table: Table) -> Columns:
        texts = checked_texts(spec.text, table)
        answers = [
            _checked_answers(value, context, f"{table.where}, row {row}, column {spec.label!r}")
            for row, (value, context) in enumerate(
                zip(column(table, spec.label), texts["text_pair"], strict=True), start=1
            )
        ]
        return texts | {"label": answers}

    def check_training(self, spec: TaskSpec, columns: Columns) -> None:
        if not any(answers["text"] for answers in columns["label"]):
            raise TaskError(
                f"task {spec.name!r}: no training question has an answer; there is nothing to learn. Check "
                f"the column {spec.label!r} and train_limit"
            )

    def types(self, spec: TaskSpec) -> dict[str, Any]:
        return {"label": {"text": List(Value("string")), "answer_start": List(Value("int64"))}}

    def encode(self, split: Dataset, tokenizer: PreTrainedTokenizerBase, training: TrainingConfig) -> Dataset:
        """Windows of the contexts behind their questions; the first answer's place in those that have it."""
        check_text(split)
        require_offsets(tokenizer)
        check_room(tokenizer, training.tokens, pair=True)
        names = [name for name in TYPES if name in tokenizer.model_input_names]
        found: dict[str, list[Any]] = {name: [] for name in (*names, *_NOTES, *self.label_names)}
        for row, example in enumerate(split):
            label = example.get("label")
            for window in _windows(example["text"], example["text_pair"], tokenizer, training.tokens):
                for name in names:
                    found[name].append(window[name])
                found["example"].append(row)
                found["silence"].append(window["silence"])
                found["offsets"].append([place for pair in window["offsets"] for place in pair])
                start, end = (0, 0) if label is None else _place(label, window["offsets"], window["silence"])
                found["start_positions"].append(start)
                found["end_positions"].append(end)
        types = {**{name: TYPES[name] for name in names}, "offsets": pa.list_(pa.int32())}
        return Dataset.from_dict(
            {name: pa.array(values, types.get(name, pa.int64())) for name, values in found.items()}
        )

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Collator:
        padded = DataCollatorWithPadding(tokenizer)

        def collate(rows: list[dict[str, Any]]) -> Mapping[str, Any]:
            kept = [{name: row[name] for name in row if name not in _NOTES} for row in rows]
            batch: Mapping[str, Any] = padded(kept)
            return batch

        return collate

    def logits(self, outputs: Any) -> tuple[Tensor, Tensor]:
        return outputs.start_logits, outputs.end_logits

    def kept(self, logits: Tensor | tuple[Tensor, ...], labels: Any) -> Tensor:
        """Of every token how likely an answer begins and ends there: (windows, tokens, 2)."""
        return torch.stack(tuple(logits[:2]), dim=-1)

    def usual(self, spec: TaskSpec) -> Usual:
        return Usual(("exact_match", "f1", "best_exact_match", "best_f1"), ("f1",))

    def scored(self, spec: TaskSpec, evaluated: Evaluated) -> tuple[Gold, list[Answer]]:
        if evaluated.split is None:
            raise TaskError(
                f"answers are scored by what is in the split: give compute_metrics_for the split and the "
                f"features of {spec.name!r}"
            )
        return [answers["text"] for answers in evaluated.split["label"]], _answers(evaluated)

    def answers(self, spec: TaskSpec, evaluated: Evaluated) -> list[dict[str, Any]]:
        """The best answer, and by how much the model prefers to give none, in logits."""
        return [{"answer": one.text, "no_answer_margin": one.margin} for one in _answers(evaluated)]


def _checked_answers(value: Any, context: str, where: str) -> dict[str, Any]:
    texts = value.get("text") if isinstance(value, dict) else None
    starts = value.get("answer_start") if isinstance(value, dict) else None
    if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
        raise TaskError(
            f"{where}: expected answers like {{'text': ['...'], 'answer_start': [12]}}, found {value!r:.60}"
        )
    for text, start in zip(texts, starts, strict=True):
        if not isinstance(text, str) or not isinstance(start, int) or not text:
            raise TaskError(f"{where}: {text!r:.60} at {start!r:.20} is no answer; give a text and a number")
        if start < 0 or context[start : start + len(text)] != text:
            raise TaskError(
                f"{where}: the context has {context[max(start, 0) :][: len(text)]!r:.60} at {start}, and not "
                f"{text!r:.60}; answer_start counts characters from 0"
            )
    return {"text": texts, "answer_start": starts}


def _windows(
    question: str, context: str, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Iterator[dict[str, Any]]:
    """Pieces of a context behind the question; a question takes at most half of a window."""
    room = max_length - tokenizer.num_special_tokens_to_add(pair=True)
    asked = tokenizer(question, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    if len(asked["input_ids"]) > room // 2:
        question = question[: asked["offset_mapping"][max(room // 2, 1) - 1][1]]
    left = max(room - min(len(asked["input_ids"]), room // 2), 1)
    encoded = tokenizer(
        question,
        context,
        truncation="only_second",
        max_length=max_length,
        stride=left // OVERLAP,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        padding=False,
    )
    for number, ids in enumerate(encoded["input_ids"]):
        parts = encoded.sequence_ids(number)
        offsets = [
            pair if part == 1 and pair[1] > pair[0] else (-1, -1)
            for part, pair in zip(parts, encoded["offset_mapping"][number], strict=True)
        ]
        first = tokenizer.cls_token_id
        window = {name: encoded[name][number] for name in TYPES if name in encoded}
        yield window | {"offsets": offsets, "silence": ids.index(first) if first in ids else 0}


def _place(label: Mapping[str, Any], offsets: Sequence[Sequence[int]], silence: int) -> tuple[int, int]:
    """The tokens that the first answer begins and ends in; the one for no answer if it is not all here."""
    if not label["text"]:
        return silence, silence
    begin = label["answer_start"][0]
    end = begin + len(label["text"][0])
    inside = [
        place for place, (first, last) in enumerate(offsets) if first < end and last > begin and last > 0
    ]
    here = [place for place, (_, last) in enumerate(offsets) if last > 0]
    if not inside or offsets[here[0]][0] > begin or offsets[here[-1]][1] < end:
        return silence, silence
    return inside[0], inside[-1]


def _answers(evaluated: Evaluated) -> list[Answer]:
    """The best answer of every question, over all windows of its context."""
    split, features = evaluated.split, evaluated.features
    assert split is not None
    assert features is not None
    contexts = split["text_pair"][:]
    best = [("", -np.inf)] * len(contexts)
    silence = [np.inf] * len(contexts)
    windows = zip(*(features[name] for name in (*_NOTES, "input_ids")), evaluated.outputs, strict=True)
    for row, flat, none, ids, logits in windows:
        offsets = np.array(flat).reshape(-1, 2)
        start, end = logits[: len(ids), 0], logits[: len(ids), 1]
        silence[row] = min(silence[row], float(start[none] + end[none]))
        inside = offsets[:, 1] > 0
        begins, ends = (
            np.argsort(np.where(inside, side, -np.inf), kind="stable")[::-1][:CANDIDATES]
            for side in (start, end)
        )
        scores = start[begins][:, None] + end[ends][None]
        lengths = ends[None] - begins[:, None] + 1
        fits = (lengths >= 1) & (lengths <= LONGEST_ANSWER) & inside[begins][:, None] & inside[ends][None]
        if not fits.any():
            continue
        place = np.unravel_index(np.where(fits, scores, -np.inf).argmax(), scores.shape)
        if scores[place] > best[row][1]:
            text = contexts[row][offsets[begins[place[0]], 0] : offsets[ends[place[1]], 1]]
            best[row] = (text.strip(), float(scores[place]))
    return [
        Answer(text, none - score if np.isfinite(score) else np.inf)
        for (text, score), none in zip(best, silence, strict=True)
    ]


KIND = QuestionAnswering()
