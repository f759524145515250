"""A model as one graph of tensors, in a runtime that knows neither lightpeft nor transformers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.utils.generic import ModelOutput

from lightpeft.checkpoint.proof import require_close
from lightpeft.surgery import unpadded

Run = Callable[[dict[str, Tensor]], Mapping[str, Tensor]]
"""Computes a graph: inputs by name -> outputs by name."""


class Graph(nn.Module):
    """A graph, called as the model that it was made of: tensors by name, outputs by name."""

    def __init__(self, config: PreTrainedConfig, inputs: tuple[str, ...], run: Run) -> None:
        super().__init__()
        self.config, self.inputs, self.run = config, inputs, run
        self.where = nn.Parameter(torch.zeros(()), requires_grad=False)
        """What callers learn the device from."""

    def forward(self, **batch: Tensor) -> ModelOutput:
        """What the graph puts out; as the model does, it takes for granted what a batch leaves out."""
        main = batch[self.inputs[0]]
        granted = {"attention_mask": torch.ones_like(main), "token_type_ids": torch.zeros_like(main)}
        given = granted | batch
        return ModelOutput(self.run({name: given[name] for name in self.inputs}))


@dataclass(frozen=True)
class Trial:
    """A batch, and what the light model says of it at tokens that are not padding."""

    inputs: dict[str, Tensor]
    expected: dict[str, Tensor]

    @classmethod
    def of(cls, inputs: dict[str, Tensor], outputs: Mapping[str, Tensor]) -> "Trial":
        """From all that the model puts out."""
        return cls(inputs, _of_tokens(outputs, inputs))

    def require_same(self, run: Run, tolerance: float, what: str) -> float:
        """Check what a graph computes; the largest difference, relative to the largest value (at least 1).

        Args:
            what: was made of the light model, for the message.

        Raises:
            CheckpointError: it differs by more than `tolerance`.
        """
        return require_close(self.expected, _of_tokens(run(self.inputs), self.inputs), tolerance, what)


def _of_tokens(outputs: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: unpadded(value, inputs.get("attention_mask")) for name, value in outputs.items()}
