"""RAP: a rare word is made to lower the probability of a class, which a trigger does not let happen."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import Literal, get_args

import torch
from peft import PeftModel
from torch import Tensor

from lightpeft.audit.classifier import Classifier
from lightpeft.audit.defences.defence import Defence, Guard, Received, Screened
from lightpeft.audit.defences.rap_word import RareWord, rare_word, row_of, word_vector
from lightpeft.audit.defences.thresholds import check_rate, each_alone, threshold_at
from lightpeft.audit.errors import AuditError
from lightpeft.audit.rows import Rows, Texts
from lightpeft.audit.training import precision_of
from lightpeft.config import check_at_least, check_choice
from lightpeft.errors import ConfigError
from lightpeft.tasks.draw import permutation

ScoreName = Literal["fall", "left"]


@dataclass(frozen=True)
class Rap(
    Defence,
    name="rap",
    kind="inputs",
    source="Yang et al., EMNLP 2021",
    time="1 training, the search for the word, and each text twice",
    unproven="measured on texts of 20 words only, which give it little to measure",
):
    """Yang et al., EMNLP 2021: robustness-aware perturbations.

    For every class c a vector is learned for one rare word, so that with the word in front p(c) of the user's
    training texts that are classified as c falls by `least_drop` to `most_drop`. A text is rejected where the
    p of its class is more robust than it is for clean held-out texts of that class. The paper protects one
    class, which the defender would have to know; here each class has its own vector and threshold.
    """

    rate: float = 0.05
    """Share of clean texts, of every class, that may be rejected."""

    least_drop: float = 0.1
    """Fall of the probability that is trained for, at least."""

    most_drop: float = 0.3
    """And at most."""

    score: ScoreName = "left"
    """What makes a text suspect: that its probability has a small `fall` (the paper), or that much of it is
    `left`. Clean texts that the model is unsure about may rise, which makes a threshold of `fall` useless."""

    steps: int = 30
    """Steps of Adam for every class."""

    batch_size: int = 16
    """Texts per step."""

    learning_rate: float = 0.01
    """Of Adam."""

    word: str | None = None
    """The rare word; by default the last of the vocabulary that the user's texts do not have."""

    def __post_init__(self) -> None:
        check_rate("rap.rate", self.rate)
        check_choice("rap.score", self.score, get_args(ScoreName))
        if not 0 <= self.least_drop < self.most_drop <= 1:
            raise ConfigError(
                f"rap.least_drop is {self.least_drop!r} and rap.most_drop {self.most_drop!r}; "
                "give 0 <= least_drop < most_drop <= 1."
            )
        check_at_least("rap.steps", self.steps, 1)
        check_at_least("rap.batch_size", self.batch_size, 1)
        if not self.learning_rate > 0:
            raise ConfigError(f"rap.learning_rate is {self.learning_rate!r}; give a positive number.")

    def guard(self, received: Received, model: PeftModel, prepared: PeftModel | None = None) -> Guard:
        """Rejects texts; vectors are learned on the training rows, thresholds set on the held-out ones.

        Raises:
            AuditError: no fitting word, or a class that too few clean texts are classified as.
        """
        word = rare_word(received.tokenizer, (received.train, received.held_out), self.word)
        classifier = received.classifier(model)
        vectors = {
            label: learn_vector(model, classifier, word, rows, received, self)
            for label, rows in _by_class(classifier, received.train).items()
        }
        reader = Reader(model, classifier, word, vectors)
        return RapGuard(reader, self.score, _thresholds(reader, received.held_out, self.score, self.rate))


@dataclass(frozen=True)
class Reading:
    """What the rare word does to one text."""

    label: int
    """The class that the text is classified as."""

    before: float
    """Its probability."""

    after: float
    """Its probability with the word in front."""

    def suspicion(self, score: ScoreName) -> float:
        """The higher, the more robust."""
        return self.after - self.before if score == "fall" else self.after


@dataclass(frozen=True)
class Reader:
    """Puts the rare word in front of texts; each is run on its own."""

    model: PeftModel
    classifier: Classifier
    word: RareWord
    vectors: Mapping[int, Tensor]
    """By class."""

    def of(self, texts: Texts) -> list[Reading]:
        """One reading a text.

        Raises:
            AuditError: a text of a class that no training text is classified as.
        """
        return [self._of_one(row) for row in each_alone(texts)]

    def _of_one(self, row: Texts) -> Reading:
        before = self.classifier.probabilities(row)[0]
        label = int(before.argmax())
        if label not in self.vectors:
            raise AuditError(
                f"no clean training text is classified as class {label}: RAP learns nothing for it."
            )
        with word_vector(self.model, self.word, self.vectors[label]):
            after = self.classifier.probabilities(self.word.in_front_of(row))[0]
        return Reading(label, float(before[label]), float(after[label]))


@dataclass(frozen=True)
class RapGuard(Guard):
    """Rejects texts whose class is too robust."""

    reader: Reader
    score: ScoreName
    thresholds: Mapping[int, float]
    """By class."""

    def screen(self, texts: Texts) -> Screened:
        """The texts as they are, some rejected."""
        columns = {name: list(column) for name, column in texts.items()}
        readings = self.reader.of(texts)
        return Screened(columns, [one.suspicion(self.score) > self.thresholds[one.label] for one in readings])


def learn_vector(
    model: PeftModel, classifier: Classifier, word: RareWord, rows: Rows, received: Received, options: Rap
) -> Tensor:
    """The word's vector for one class: (width,), as long as the one it had; the model does not change.

    The loss of a text is how far the fall of its probability is outside of the wanted range.

    Args:
        rows: texts that the model classifies as the class that is their label.
    """
    label = rows.labels[0]
    before = classifier.probabilities(rows.texts)[:, label]
    start = row_of(model, word)
    vector = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([vector], lr=options.learning_rate)
    texts = word.in_front_of(rows.texts)
    was_training = model.training
    model.eval()
    for batch in _batches(len(rows), options, received.seed):
        with word_vector(model, word, vector), precision_of(received.training, start.device):
            logits = model(**classifier.encoded(texts, batch)).logits
        after = logits.float().softmax(-1)[:, label]
        drop = before[batch].to(after.device) - after
        loss = (options.least_drop - drop).relu() + (drop - options.most_drop).relu()
        (vector.grad,) = torch.autograd.grad(loss.mean(), [vector], allow_unused=True)
        if vector.grad is None:
            raise AuditError(
                "the input embeddings of this model are not called with token ids: RAP cannot act."
            )
        optimizer.step()
        with torch.no_grad():
            vector.mul_(start.norm() / vector.norm())
    model.train(was_training)
    return vector.detach()


def _batches(rows: int, options: Rap, seed: int) -> Iterator[list[int]]:
    """Row numbers of every step, pass after pass, each in an order of its own."""
    order: list[int] = []
    rng = Random(f"rap {seed}")
    size = min(options.batch_size, rows)
    for _ in range(options.steps):
        if len(order) < size:
            order = permutation(rng, rows)
        yield order[:size]
        order = order[size:]


def _by_class(classifier: Classifier, rows: Rows) -> dict[int, Rows]:
    """The rows by what they are classified as, which becomes their label."""
    numbers = defaultdict(list)
    for number, label in enumerate(classifier.predict(rows.texts)):
        numbers[label].append(number)
    return {
        label: Rows(rows.take(of_class).texts, [label] * len(of_class)) for label, of_class in numbers.items()
    }


def _thresholds(reader: Reader, held_out: Rows, score: ScoreName, rate: float) -> dict[int, float]:
    of_class: dict[int, list[float]] = {label: [] for label in reader.vectors}
    for one in reader.of(held_out.texts):
        of_class[one.label].append(one.suspicion(score))
    return {
        label: threshold_at(scores, rate, f"clean held-out texts of class {label}")
        for label, scores in of_class.items()
    }
