"""A model with its tokenizer, as something that takes texts."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from lightpeft.anatomy import base_of
from lightpeft.audit.rows import Texts
from lightpeft.run_config import TrainingConfig


@dataclass(frozen=True)
class Classifier:
    """Texts in, classes out; the model's mode is left as it is found."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    batch_size: int = 64
    precision: torch.dtype = torch.float32
    """`bfloat16` runs the forward pass under autocast."""

    @classmethod
    def under(
        cls, model: nn.Module, tokenizer: PreTrainedTokenizerBase, training: TrainingConfig
    ) -> "Classifier":
        """With the length and precision that the model is trained with."""
        precision = torch.bfloat16 if training.precision == "bfloat16" else torch.float32
        return cls(model, tokenizer, training.tokens, precision=precision)

    def logits(self, texts: Texts) -> Tensor:
        """(n, classes), float32, on the CPU."""
        return self._of_batches(texts, lambda batch: self.model(**batch).logits)

    def probabilities(self, texts: Texts) -> Tensor:
        """(n, classes), softmax."""
        return self.logits(texts).softmax(-1)

    def predict(self, texts: Texts) -> list[int]:
        """n class ids."""
        return [int(row) for row in self.logits(texts).argmax(-1)]

    def first_states(self, texts: Texts) -> Tensor:
        """(n, width): the encoder's last hidden state of the first token, [CLS] of BERT."""
        encoder = base_of(self.model).base_model
        return self._of_batches(texts, lambda batch: encoder(**batch).last_hidden_state[:, 0])

    def _of_batches(self, texts: Texts, read: Callable[[dict[str, Tensor]], Tensor]) -> Tensor:
        """`read` of padded batches of similar length, in the order of the texts."""
        order = sorted(range(len(texts["text"])), key=lambda row: len(texts["text"][row]))
        with self._evaluating(), torch.inference_mode():
            found = torch.cat(
                [
                    read(self.encoded(texts, order[start : start + self.batch_size])).float().cpu()
                    for start in range(0, len(order), self.batch_size)
                ]
            )
        return found[torch.tensor(order).argsort()]

    def encoded(self, texts: Texts, rows: list[int]) -> dict[str, Tensor]:
        """Some rows as one padded batch on the model's device."""
        columns = [[texts[name][row] for row in rows] for name in ("text", "text_pair") if name in texts]
        batch = self.tokenizer(
            *columns, truncation=True, max_length=self.max_length, padding=True, return_tensors="pt"
        )
        device = next(self.model.parameters()).device
        return {name: value.to(device) for name, value in batch.items()}

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        was_training, device = self.model.training, next(self.model.parameters()).device
        self.model.eval()
        try:
            with torch.autocast(device.type, self.precision, enabled=self.precision != torch.float32):
                yield
        finally:
            self.model.train(was_training)
