"""What stays takes over from what is cut: the lost contribution, regressed on the inputs that stay.

A linear whose inputs C are cut loses W_C x_C. Its mean goes into the bias; of the rest, as much as the kept
inputs K can say: min over M of ‖(x_C - mean) W_Cᵀ - (x_K - mean) Mᵀ‖² + λ‖M‖², of which the directions that
say most are kept (reduced-rank ridge regression). Least squares over whole columns is what OSSCAR, ZipLM and
others do; a low rank is what a light checkpoint can store.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightpeft.anatomy import Anatomy, base_of, linear_at
from lightpeft.estimation import TokenWeights
from lightpeft.linears import OUTPUTS, width
from lightpeft.processes import Processes
from lightpeft.surgery.pairs import Pair
from lightpeft.surgery.verify import Batch, as_computed, evaluating

BATCHES = 8
"""Of a run that the regression is of: 6,000 tokens or so, for 1,000 to 2,000 unknowns per output."""

HELD_BACK = 4
"""One batch of so many, and at least one, judges the others' regression."""

PENALTIES = (0.03, 0.1, 0.3)
"""λ, over the mean square of a kept input, of which the batches held back choose: on MiniLM, of .003 to 1,
hardly ever another."""

LARGEST_TABLES = 2**30
"""Bytes of second moments at a time; linears beyond it take another pass over the batches."""


@dataclass(frozen=True)
class Loss:
    """What a linear loses."""

    kept: Tensor
    """Input channels that stay, (k,)."""

    gone: Tensor
    """The others, (c,)."""

    weight: Tensor
    """What the linear and its PEFT modules do with the others, (d_out, c), float32."""

    mean: Tensor
    """Of all inputs, (d_in,), float32; zeros where no bias can hold what comes of it."""


@dataclass(frozen=True)
class Correction:
    """What is added to the kept columns of a linear's weight."""

    pair: Pair
    share: float
    """Of the square of what is lost beyond its mean, how much comes back, on batches held back."""


def corrections(
    model: nn.Module,
    anatomy: Anatomy,
    sizes: Mapping[str, int],
    loss_of: Callable[[str], Loss],
    batches: Sequence[Batch],
    rank: int,
    processes: Processes = Processes(),
) -> dict[str, Correction]:
    """Solve for the kept columns of every linear that loses some.

    Args:
        model: not cut yet.
        sizes: how many inputs stay, per linear that loses some.
        loss_of: what such a linear loses; asked for some at a time.
        batches: what the base was called with in training; with fewer than two nothing can be judged, and
            with a prefix's keys and values, which a call changes, none can be made again: then nothing is
            done.
        processes: those that cut the same model together, each with batches of its own.

    Returns:
        Corrections of those linears where it helps on batches that were not used for it.
    """
    if len(batches) < 2 or any(_reads_a_prefix(batch) for batch in batches):
        return {}
    found: dict[str, Correction] = {}
    for group in _groups(base_of(model), sizes):
        tables = _gather(model, anatomy, {name: loss_of(name) for name in group}, batches)
        for moments in (one for pair in tables.values() for one in pair):
            moments.average(processes)
        solved = {name: _solve(*tables.pop(name), rank) for name in group}
        found |= {name: one for name, one in solved.items() if one is not None}
    return found


def _reads_a_prefix(batch: Batch) -> bool:
    """Whether the mask is of more tokens than there are."""
    text, mask = batch.get("input_ids", batch.get("inputs_embeds")), batch.get("attention_mask")
    return text is not None and mask is not None and mask.dim() == 2 and mask.shape[1] > text.shape[1]


class _Moments:
    """Sums over tokens, of kept inputs x (k,) and of what is lost y (d_out,)."""

    def __init__(self, loss: Loss) -> None:
        kept, outputs = len(loss.kept), len(loss.weight)
        self.inputs = loss.weight.new_zeros(kept, kept)
        """Σ x xᵀ."""
        self.across = loss.weight.new_zeros(kept, outputs)
        """Σ x yᵀ."""
        self.lost = loss.weight.new_zeros(())
        """Σ yᵀy."""

    def add(self, x: Tensor, y: Tensor) -> None:
        self.inputs.addmm_(x.T, x)
        self.across.addmm_(x.T, y)
        self.lost += y.square().sum()

    def add_all(self, other: "_Moments") -> None:
        self.inputs += other.inputs
        self.across += other.across
        self.lost += other.lost

    def average(self, processes: Processes) -> None:
        """Of their sums only the ratios count."""
        for values in (self.inputs, self.across, self.lost):
            processes.average(values)


Tables = tuple[_Moments, _Moments]
"""Of the batches that are fitted, and of those held back."""


def _groups(base: nn.Module, sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Linears whose tables, two of float32 each, fit at a time."""
    group: list[str] = []
    size = 0
    for name, kept in sizes.items():
        own = 2 * 4 * kept * (kept + width(linear_at(base, name), OUTPUTS))
        if group and size + own > LARGEST_TABLES:
            yield group
            group, size = [], 0
        group.append(name)
        size += own
    if group:
        yield group


def _gather(
    model: nn.Module, anatomy: Anatomy, losses: Mapping[str, Loss], batches: Sequence[Batch]
) -> dict[str, Tables]:
    base = base_of(model)
    tables = {name: (_Moments(loss), _Moments(loss)) for name, loss in losses.items()}
    held = False

    def hook_for(name: str) -> Any:
        loss = losses[name]

        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            real = tokens.of(inputs[0], name).weights.bool()
            rows = inputs[0].detach().flatten(0, -2)[real].float() - loss.mean
            tables[name][held].add(rows[:, loss.kept], rows[:, loss.gone] @ loss.weight.T)

        return hook

    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        tokens = TokenWeights(base, anatomy)
        for handle in tokens.handles:
            stack.callback(handle.remove)
        for name in losses:
            stack.callback(linear_at(base, name).register_forward_pre_hook(hook_for(name)).remove)
        stack.enter_context(as_computed(base))
        for left, batch in zip(range(len(batches) - 1, -1, -1), batches, strict=True):
            held = left % HELD_BACK == 0
            base(**batch)
    return tables


def _solve(fitted: _Moments, held: _Moments, rank: int) -> Correction | None:
    """The regression with the penalty that does best on what is held back, then fitted to all of it."""
    judged = [(_share(_regression(fitted, penalty, rank), held), penalty) for penalty in PENALTIES]
    share, penalty = max(judged)
    if not share > 0:  # nothing comes back, or nothing was lost (0 / 0)
        return None
    fitted.add_all(held)
    return Correction(_regression(fitted, penalty, rank), share)


def _regression(moments: _Moments, penalty: float, rank: int) -> Pair:
    """(d_out, r) and (r, k): ridge regression, reduced to the directions of outputs that it says most of."""
    size = moments.inputs.diagonal().mean()
    inputs = moments.inputs + penalty * size * torch.eye(len(moments.inputs), device=size.device)
    solved = torch.linalg.solve(inputs, moments.across)
    explained = moments.across.T @ solved
    directions = torch.linalg.eigh((explained + explained.T) / 2).eigenvectors[:, -rank:]
    return directions.contiguous(), (solved @ directions).T.contiguous()


def _share(pair: Pair, held: _Moments) -> float:
    """Of the lost square, how much a correction brings back: 1 all of it, below 0 it does harm."""
    left, right = pair
    both = ((right @ held.across) * left.T).sum()
    again = ((right @ held.inputs @ right.T) * (left.T @ left)).sum()
    return float((2 * both - again) / held.lost)
