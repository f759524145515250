"""Optimizers by what they keep, one row each; those of other libraries imitated by their kind of state."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from peft.optimizers import create_lorafa_optimizer
from torch import Tensor, nn
from transformers import Adafactor
from transformers.trainer_pt_utils import LayerWiseDummyOptimizer

BLOCK = 16


class Simple(torch.optim.Optimizer):
    """Base of the imitations: plain descent, with state that `remember` makes and uses."""

    def __init__(self, params: Iterable[Any], lr: float = 1e-2) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    update = self.remember(self.state[parameter], parameter.grad)
                    parameter.sub_(group["lr"] * update)

    def remember(self, state: dict[str, Any], grad: Tensor) -> Tensor:
        raise NotImplementedError


class Lion(Simple):
    """Signs of one moment."""

    def remember(self, state: dict[str, Any], grad: Tensor) -> Tensor:
        moment = state.setdefault("exp_avg", torch.zeros_like(grad))
        update = (0.9 * moment + 0.1 * grad).sign()
        moment.lerp_(grad, 0.01)
        return update


class Blockwise(Simple):
    """bitsandbytes' kind: the moment in 8 bit, a scale per block of the flat parameter, a code book."""

    def remember(self, state: dict[str, Any], grad: Tensor) -> Tensor:
        blocks = -(-grad.numel() // BLOCK)
        if not state:
            state["state1"] = torch.zeros(grad.shape, dtype=torch.uint8)
            state["absmax1"] = torch.zeros(blocks)
            state["qmap1"] = torch.linspace(-1, 1, 256)
        flat = nn.functional.pad(grad.flatten(), (0, blocks * BLOCK - grad.numel())).view(blocks, BLOCK)
        state["absmax1"].copy_(flat.abs().amax(1))
        share = flat / state["absmax1"].clamp_min(1e-12)[:, None]
        state["state1"].copy_(((share + 1) * 127.5).to(torch.uint8).flatten()[: grad.numel()].view_as(grad))
        return grad + 0 * state["state1"]


class Packed(Tensor):
    """A tensor whose entries cannot be taken out, as torchao's 8-bit and 4-bit state."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "index" in getattr(func, "__name__", ""):
            raise NotImplementedError(f"Packed has no {func}")
        return super().__torch_function__(func, types, args, kwargs or {})


class PackedState(Simple):
    """torchao's kind."""

    def remember(self, state: dict[str, Any], grad: Tensor) -> Tensor:
        if not state:
            state["exp_avg"] = torch.zeros_like(grad).as_subclass(Packed)
        state["exp_avg"].lerp_(grad, 0.1)
        return state["exp_avg"].as_subclass(Tensor).clone()


class Projected(Simple):
    """GaLore's kind: the moment of the gradient in a subspace, which an object in the state holds."""

    def remember(self, state: dict[str, Any], grad: Tensor) -> Tensor:
        if grad.dim() < 2:
            return grad
        if not state:
            state["projector"] = {"basis": torch.randn(grad.shape[0], 2)}
            state["moment"] = torch.zeros(2, grad.shape[1])
        basis = state["projector"]["basis"]
        state["moment"].lerp_(basis.T @ grad, 0.1)
        return basis @ state["moment"]


class Preconditioned(Simple):
    """SOAP's and Shampoo's kind: a list with one square matrix per dimension."""

    def remember(self, state: dict[str, Any], grad: Tensor) -> Tensor:
        matrices = state.setdefault("GG", [torch.eye(size) for size in grad.shape])
        for dim, matrix in enumerate(matrices):
            grad = torch.tensordot(matrix, grad, ([1], [dim])).movedim(0, dim)
        return grad


class InGroups(Simple):
    """State of all parameters together, in the group, by their position."""

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for position, parameter in enumerate(group["params"]):
                moments = self.state.setdefault("moments", {})
                moments.setdefault(position, torch.zeros_like(parameter)).lerp_(parameter.grad, 0.1)
                parameter.data.sub_(group["lr"] * moments[position])


class Fragile(Simple):
    """Makes its state in the constructor, from something that only the user had, and not again."""

    def __init__(self, params: Iterable[Any], lr: float, start: float) -> None:
        super().__init__(params, lr)
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["exp_avg"] = torch.full_like(parameter, start)

    def remember(self, state: dict[str, Any], grad: Tensor) -> Tensor:
        return torch.as_tensor(state["exp_avg"].lerp_(grad, 0.1))


class Around(torch.optim.Optimizer):
    """Lookahead's kind: an optimizer around another."""

    def __init__(self, params: Iterable[Any], lr: float = 1e-2) -> None:
        self.base_optimizer = torch.optim.SGD(params, lr=lr)
        super().__init__(self.base_optimizer.param_groups, {})

    def step(self, closure: Any = None) -> None:
        self.base_optimizer.step()


@dataclass(frozen=True)
class OptimizerRow:
    """One kind of optimizer."""

    name: str
    make: Callable[[PeftModel], torch.optim.Optimizer]
    outcome: str = "follows"
    """`follows`, `anew` (its state of what was cut starts anew, with a warning), or why it is refused."""


def trained(model: nn.Module) -> list[nn.Parameter]:
    """What an optimizer gets."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _of(kind: Any, **options: Any) -> Callable[[PeftModel], torch.optim.Optimizer]:
    return lambda model: kind(trained(model), **({"lr": 1e-2} | options))


def _lorafa(model: PeftModel) -> torch.optim.Optimizer:
    optimizer: torch.optim.Optimizer = create_lorafa_optimizer(model, r=4, lora_alpha=6, lr=1e-2)
    return optimizer


OPTIMIZERS = {
    row.name: row
    for row in (
        OptimizerRow("adamw", _of(torch.optim.AdamW, weight_decay=0.1)),
        OptimizerRow("amsgrad", _of(torch.optim.Adam, amsgrad=True)),
        OptimizerRow("adamw foreach", _of(torch.optim.AdamW, foreach=True)),
        OptimizerRow("adamw fused", _of(torch.optim.AdamW, fused=True)),
        OptimizerRow("sgd", _of(torch.optim.SGD)),
        OptimizerRow("momentum", _of(torch.optim.SGD, momentum=0.9)),
        OptimizerRow("adafactor", _of(torch.optim.Adafactor)),
        OptimizerRow("adafactor of transformers", _of(Adafactor, relative_step=False)),
        OptimizerRow("adafactor, own rate", _of(Adafactor, lr=None, beta1=0.9)),
        OptimizerRow("adagrad", _of(torch.optim.Adagrad)),
        OptimizerRow("rmsprop", _of(torch.optim.RMSprop, centered=True, momentum=0.9)),
        OptimizerRow("adadelta", _of(torch.optim.Adadelta)),
        OptimizerRow("adamax", _of(torch.optim.Adamax)),
        OptimizerRow("nadam", _of(torch.optim.NAdam)),
        OptimizerRow("radam", _of(torch.optim.RAdam)),
        OptimizerRow("asgd", _of(torch.optim.ASGD)),
        OptimizerRow("rprop", _of(torch.optim.Rprop)),
        OptimizerRow("lion", _of(Lion)),
        OptimizerRow("blockwise 8 bit", _of(Blockwise), "anew"),
        OptimizerRow("packed", _of(PackedState), "anew"),
        OptimizerRow("projected", _of(Projected), "anew"),
        OptimizerRow("preconditioned", _of(Preconditioned), "anew"),
        OptimizerRow("lora-fa", _lorafa, "LoraFAOptimizer"),
        OptimizerRow("layer-wise", lambda model: LayerWiseDummyOptimizer(), "does not hold the parameters"),
        OptimizerRow("in groups", _of(InGroups), "InGroups"),
        OptimizerRow("fragile", _of(Fragile, start=0.1), "Fragile.*ended in KeyError"),
        OptimizerRow("around another", _of(Around), "Around.*wraps another optimizer"),
        OptimizerRow("l-bfgs", _of(torch.optim.LBFGS), "LBFGS.*closure"),
    )
}
