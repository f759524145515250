"""Scores: one importance number per unit, and what else estimation learned."""

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightpeft.errors import CheckpointError, EstimationError
from lightpeft.files import read_tensors, under, write_tensors
from lightpeft.outputs import Output, written_file

FORMAT_VERSION = 3
"""1 had neither `scored_steps` nor halves, 2 no layers; both are still read."""


@dataclass(frozen=True, eq=False)
class Scores:
    """Importance of every unit; higher is more important. All tensors are float32 on the CPU."""

    heads: tuple[Tensor, ...]
    """Per layer, (heads,)."""

    neurons: tuple[Tensor, ...]
    """Per layer, (neurons,)."""

    ranks: dict[str, Tensor]
    """Per PEFT module (named by the linear it sits on), (rank,); of a bottleneck, its neurons."""

    modules: dict[str, float]
    """Per PEFT module."""

    steps: int
    """Optimizer steps that were estimated over."""

    methods: dict[str, str]
    """Which score each kind of unit has: keys `base`, `module`, `rank`, `layer`."""

    gates: dict[str, Tensor] = field(default_factory=dict)
    """Trained gates per output projection, one per input channel (score `mask` only)."""

    means: dict[str, Tensor] = field(default_factory=dict)
    """Mean input of each output projection, and of each bottleneck's, per channel, padding left out."""

    scored_steps: int | None = None
    """Optimizer steps that the statistics are of: those of `estimation.window` that did not overflow; None
    where it was not noted."""

    layers: tuple[float, ...] = ()
    """Per layer its own score; 0 for the cross-attention of a layer, which goes with it. None where they were
    not noted: then the base scores say it, see `layer_losses`."""

    halves: "tuple[Scores, ...]" = ()
    """Scores of the even and of the odd of those steps on their own; none where one of them had no step with
    finite gradients. What does not come from the steps (`Score.statistics`) is the same in both."""

    def __post_init__(self) -> None:
        for kind, tensors in self._by_kind():
            for place, tensor in tensors:
                if not torch.isfinite(tensor).all():
                    bad = int((~torch.isfinite(tensor)).sum())
                    raise EstimationError(
                        f"{bad} of {tensor.numel()} {kind} values of {place} are not finite. The loss "
                        "diverged during estimation: lower the learning rate or check the data."
                    )

    def layer_losses(self) -> tuple[float, ...]:
        """What skipping each layer loses, on the scale of the base scores, to be compared with their sums.

        The layers' scores, times the factor that makes their total that of all heads' and neurons' scores;
        where there are none, the sum of the base scores in each layer. A layer and its cross-attention have
        an entry each, and what skipping both loses is the sum.
        """
        sums = [
            float(heads.sum() + neurons.sum())
            for heads, neurons in zip(self.heads, self.neurons, strict=True)
        ]
        total = math.fsum(self.layers)
        if not total:
            return tuple(sums)
        return tuple(score * math.fsum(sums) / total for score in self.layers)

    def save(self, path: str | Path) -> None:
        """Write as one safetensors file."""
        tensors, header = self._to_parts()
        halves = [half._to_parts() for half in self.halves]
        for number, (parts, _) in enumerate(halves):
            # Both halves may hold one tensor, which safetensors does not write twice.
            tensors |= {f"half.{number}.{name}": tensor.clone() for name, tensor in parts.items()}
        header |= {"format_version": FORMAT_VERSION, "halves": [part for _, part in halves]}
        with written_file(Path(path), Output.SCORES) as beside:
            write_tensors(beside, tensors, header)

    @classmethod
    def load(cls, path: str | Path) -> "Scores":
        """Read what `save` wrote.

        Raises:
            CheckpointError: missing, damaged, or of an unknown version.
        """
        tensors, header = read_tensors(Path(path))
        if header.get("format_version") not in range(1, FORMAT_VERSION + 1):
            raise CheckpointError(
                f"{path} has scores of version {header.get('format_version')!r}, this lightpeft reads "
                f"versions 1 to {FORMAT_VERSION}. Estimate again."
            )
        try:
            halves = tuple(
                cls._from_parts(under(tensors, f"half.{number}"), part)
                for number, part in enumerate(header.get("halves", []))
            )
            return dataclasses.replace(cls._from_parts(tensors, header), halves=halves)
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{path} lacks {error}; it is damaged.") from error

    def _to_parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors: dict[str, Tensor] = {}
        for index, (heads, neurons) in enumerate(zip(self.heads, self.neurons, strict=True)):
            tensors[f"heads.{index}"] = heads
            tensors[f"neurons.{index}"] = neurons
        for kind, group in (("ranks", self.ranks), ("gates", self.gates), ("means", self.means)):
            tensors |= {f"{kind}.{name}": tensor for name, tensor in group.items()}
        return tensors, {
            "layers": len(self.heads),
            "layer_scores": self.layers,
            "modules": self.modules,
            "steps": self.steps,
            "scored_steps": self.scored_steps,
            "methods": self.methods,
        }

    @classmethod
    def _from_parts(cls, tensors: dict[str, Tensor], header: dict[str, Any]) -> "Scores":
        layers = range(header["layers"])
        return cls(
            heads=tuple(tensors[f"heads.{index}"] for index in layers),
            neurons=tuple(tensors[f"neurons.{index}"] for index in layers),
            ranks={name: tensors[f"ranks.{name}"] for name in header["modules"]},
            modules={name: float(value) for name, value in header["modules"].items()},
            steps=int(header["steps"]),
            scored_steps=header.get("scored_steps"),
            methods=dict(header["methods"]),
            layers=tuple(float(value) for value in header.get("layer_scores", ())),
            gates=under(tensors, "gates"),
            means=under(tensors, "means"),
        )

    def _by_kind(self) -> list[tuple[str, list[tuple[str, Tensor]]]]:
        return [
            ("head", [(f"layer {i}", t) for i, t in enumerate(self.heads)]),
            ("neuron", [(f"layer {i}", t) for i, t in enumerate(self.neurons)]),
            ("rank", list(self.ranks.items())),
            ("module", [(name, torch.tensor(value)) for name, value in self.modules.items()]),
            ("layer", [(f"layer {i}", torch.tensor(value)) for i, value in enumerate(self.layers)]),
            ("trained gate", list(self.gates.items())),
            ("mean input", list(self.means.items())),
        ]
