"""The policies that gradient control is compared with: joint training, RIPPLe, LWP, GradNorm, PCGrad."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightpeft.audit.policies.gradient_control import project
from lightpeft.audit.policies.gradients import Batch, TaskPair, task_gradients
from lightpeft.audit.policies.layers import LayerMap
from lightpeft.audit.policies.layerwise import check_first_token_head, layerwise_loss
from lightpeft.audit.policies.policy import Policy, model_loss

if TYPE_CHECKING:
    from lightpeft.audit.policies.options import PolicyOptions


class Vanilla(Policy):
    """g_c + g_p: joint training on both tasks."""

    def combine(self, pair: TaskPair) -> list[Tensor]:
        """The sum, layer by layer."""
        return [clean + poisoned for clean, poisoned in zip(pair.clean, pair.poisoned, strict=True)]


class Ripple(Policy):
    """RIPPLe (Kurita et al. 2020): the gradient of L_p + λ · max(0, -∇L_p · ∇L_c), over all parameters.

    Exact, second order: gradients are differentiated again, which takes about twice the time and the memory
    of both graphs at once, and forces attention's plain kernel, the only one that can be differentiated
    twice. The released code takes the clean gradient as a constant, which is first order in L_c. The clean
    task acts through the penalty only, so the poisoned batches must be a mixture with clean rows.
    """

    reads = ("ripple_lambda",)

    second_order = True
    trains_poisoned_only = True

    def losses(self, model: nn.Module, clean_batch: Batch, poisoned_batch: Batch) -> tuple[Tensor, Tensor]:
        """The model's own, by a kernel that has a second derivative."""
        with sdpa_kernel(SDPBackend.MATH):
            return super().losses(model, clean_batch, poisoned_batch)

    def combine(self, pair: TaskPair) -> list[Tensor]:
        """∇L_p, and where the inner product is negative -λ ∇(∇L_p · ∇L_c)."""
        poisoned = [gradient.detach() for gradient in pair.poisoned]
        if sum(pair.inner) >= 0 or not self.options.ripple_lambda:
            return poisoned
        inner = sum(
            (g_c @ g_p for g_c, g_p in zip(pair.clean, pair.poisoned, strict=True)), torch.tensor(0.0)
        )
        penalty = task_gradients(-self.options.ripple_lambda * inner, self.layers, "combined")
        return [g + change for g, change in zip(poisoned, penalty, strict=True)]


class LayerwisePoisoning(Vanilla):
    """LWP (Li et al. 2021): a loss at every layer for the poisoned task, see `layerwise_loss`."""

    reads = ("layerwise_tasks",)

    def __init__(self, options: "PolicyOptions", layers: LayerMap) -> None:
        super().__init__(options, layers)
        self._checked: nn.Module | None = None

    def losses(self, model: nn.Module, clean_batch: Batch, poisoned_batch: Batch) -> tuple[Tensor, Tensor]:
        """The layer-wise loss of the poisoned batch, and the clean one, usual or layer-wise.

        Raises:
            AuditError: the head reads more than the first token; looked at once.
        """
        if self._checked is not model:
            check_first_token_head(model, poisoned_batch)
            self._checked = model
        on_clean = layerwise_loss if self.options.layerwise_tasks == "both" else model_loss
        return on_clean(model, clean_batch), layerwise_loss(model, poisoned_batch)


class GradNorm(Policy):
    """GradNorm (Chen et al. 2018) for two tasks: w_c g_c + w_p g_p, so that both train equally fast.

    W, whose gradient norms are balanced, is everything that is trained: both tasks share all of it. After
    each step w_c + w_p is brought back to 2.
    """

    reads = ("gradnorm_alpha", "gradnorm_rate")

    def __init__(self, options: "PolicyOptions", layers: LayerMap) -> None:
        super().__init__(options, layers)
        self._weights = torch.ones(2, dtype=torch.float64, requires_grad=True)
        self._optimizer = torch.optim.Adam([self._weights], lr=options.gradnorm_rate)
        self._first: Tensor | None = None

    def combine(self, pair: TaskPair) -> list[Tensor]:
        """The weighted sum."""
        w_c, w_p = self._weights.tolist()
        return [
            w_c * clean + w_p * poisoned for clean, poisoned in zip(pair.clean, pair.poisoned, strict=True)
        ]

    def update(self, pair: TaskPair) -> None:
        """One step of the weights on Σ |w_i ‖g_i‖ - Ḡ · r_i^α| (algorithm 1)."""
        losses = torch.stack([pair.clean_loss.detach(), pair.poisoned_loss.detach()]).double().cpu()
        tiny = torch.finfo(losses.dtype).tiny
        self._first = losses if self._first is None else self._first
        ratios = losses / self._first.clamp_min(tiny)
        rates = ratios / ratios.mean().clamp_min(tiny)
        norms = torch.tensor([pair.clean_norms, pair.poisoned_norms], dtype=torch.float64).norm(dim=1)
        weighted = self._weights * norms
        target = (weighted.mean() * rates**self.options.gradnorm_alpha).detach()
        self._optimizer.zero_grad()
        (weighted - target).abs().sum().backward()
        self._optimizer.step()
        with torch.no_grad():
            self._weights.clamp_(min=1e-3)
            self._weights.mul_(2 / self._weights.sum())

    def readings(self) -> dict[str, list[float]]:
        """`task_weights`: w_c and w_p."""
        return {"task_weights": self._weights.tolist()}


class PCGrad(Policy):
    """PCGrad (Yu et al. 2020) for two tasks: each projected on the other where they conflict, then the sum.

    As published, one vector over all layers; ILProj with both β at 0 is the same layer by layer.
    """

    def combine(self, pair: TaskPair) -> list[Tensor]:
        """The sum of the projected gradients."""
        sizes = [len(gradient) for gradient in pair.clean]
        clean, poisoned = torch.cat(pair.clean), torch.cat(pair.poisoned)
        return list((project(clean, poisoned) + project(poisoned, clean)).split(sizes))
