"""What 8 to 512 GPUs send and wait for in a step, on paper: the tables of docs/distributed.md.

python benchmarks/scaling_paper.py

The two shares of the cut are those of benchmarks/results/scaling.json (PEFT parameters) and of the preset
`default` (parameters of the layers).
"""

from dataclasses import dataclass

GPUS = (8, 64, 512)
RANK = 16
TOKENS = 4096
"""Of one GPU in a step."""
FLOPS, BANDWIDTH, LATENCY = 4e14, 50e9, 5e-6
"""Of one GPU a second, in 16 bits; bytes a second between two; seconds of one message."""
LAYERS_LEFT, PEFT_LEFT = 0.67, 0.28
"""Shares that a cut leaves."""


@dataclass(frozen=True)
class Model:
    """A LLaMA-like one; LoRA sits on all seven linears of a layer."""

    name: str
    width: int
    neurons: int
    layers: int
    heads: int
    key_values: int
    """Channels of keys, and of values."""

    @property
    def linears(self) -> tuple[tuple[int, int], ...]:
        """Inputs and outputs, of one layer."""
        attention = ((self.width, self.width),) * 2 + ((self.width, self.key_values),) * 2
        return (*attention, *((self.width, self.neurons),) * 3)

    @property
    def parameters(self) -> int:
        """Of the layers."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.linears)

    @property
    def peft_bytes(self) -> int:
        """Of the gradients of LoRA, float32."""
        return 4 * RANK * self.layers * sum(inputs + outputs for inputs, outputs in self.linears)

    @property
    def gate_bytes(self) -> int:
        """Of the gradients of the gates, float32."""
        return 4 * self.layers * (self.heads + self.neurons + RANK * len(self.linears))


MODELS = (
    Model("7 B", 4096, 11008, 32, 32, 4096),
    Model("13 B", 5120, 13824, 40, 40, 5120),
    Model("70 B", 8192, 28672, 80, 64, 1024),
)


def seconds_of_work(parameters: float) -> float:
    """Forward and backward, without gradients of the weights: 4 operations a parameter and token."""
    return 4 * parameters * TOKENS / FLOPS


def all_reduce(size: float, gpus: int) -> float:
    """Seconds of a ring, 2 (N - 1) messages of size / N."""
    return 2 * (gpus - 1) * (size / gpus / BANDWIDTH + LATENCY)


def all_gather(size: float, gpus: int) -> float:
    """Seconds of a ring, N - 1 messages of size / N."""
    return (gpus - 1) * (size / gpus / BANDWIDTH + LATENCY)


def main() -> None:
    print("| model | GPUs | sent by DDP, MB | share of the step | after the cut, MB | share | step |")
    print("|---|---|---|---|---|---|---|")
    for model in MODELS:
        for gpus in GPUS:
            print(ddp_row(model, gpus))
    print(
        "\n| model | GPUs | FSDP sends, GB | wait, s | after the cut, GB | wait, s | work before, after, s |"
    )
    print("|---|---|---|---|---|---|---|")
    for model in MODELS:
        for gpus in GPUS:
            print(fsdp_row(model, gpus))
    for model in MODELS:
        print(f"{model.name}: gates {model.gate_bytes / 1e6:.1f} MB beside {model.peft_bytes / 1e6:.0f} MB")


def ddp_row(model: Model, gpus: int) -> str:
    share = 2 * (gpus - 1) / gpus
    work, wait = seconds_of_work(model.parameters), all_reduce(model.peft_bytes, gpus)
    small_work = seconds_of_work(LAYERS_LEFT * model.parameters)
    small_wait = all_reduce(PEFT_LEFT * model.peft_bytes, gpus)
    ratio = (small_work + small_wait) / (work + wait)
    return (
        f"| {model.name} | {gpus} | {share * model.peft_bytes / 1e6:.0f} | {wait / (work + wait):.1%} "
        f"| {share * PEFT_LEFT * model.peft_bytes / 1e6:.0f} | {small_wait / (small_work + small_wait):.1%} "
        f"| {ratio:.2f} |"
    )


def fsdp_row(model: Model, gpus: int) -> str:
    """Weights in 16 bits are gathered for the forward and for the backward pass; one message a layer."""
    size = 2 * 2 * model.parameters
    per_layer = size / 2 / model.layers
    wait = 2 * model.layers * all_gather(per_layer, gpus)
    small = 2 * model.layers * all_gather(LAYERS_LEFT * per_layer, gpus)
    share = (gpus - 1) / gpus
    work = seconds_of_work(model.parameters)
    return (
        f"| {model.name} | {gpus} | {share * size / 1e9:.0f} | {wait:.2f} "
        f"| {share * LAYERS_LEFT * size / 1e9:.0f} | {small:.2f} | {work:.2f}, {LAYERS_LEFT * work:.2f} |"
    )


if __name__ == "__main__":
    main()
