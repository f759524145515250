"""The model card written with every light checkpoint."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

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


def model_card(base_name: str, plan: Plan, metrics: Mapping[str, float], version: str, form: str) -> str:
    """README.md of a light checkpoint, with the front matter that the hub reads."""
    heads = sum(len(layer.heads) for layer in plan.layers)
    head_count = sum(layer.head_count for layer in plan.layers)
    neurons = sum(len(layer.neurons) for layer in plan.layers)
    neuron_count = sum(layer.neuron_count for layer in plan.layers)
    skipped = ", ".join(layer.name for layer in plan.skipped_layers)
    layers = f"\nWhole layers are skipped: {skipped}.\n" if skipped else ""
    rows = "\n".join(f"| {name} | {value:.4g} |" for name, value in metrics.items())
    table = f"\n## Metrics\n\n| metric | value |\n|---|---|\n{rows}\n" if metrics else ""
    return f"""---
base_model: {base_name}
library_name: peft
tags: [lightpeft]
---

# Light PEFT checkpoint

An adapter ({form}) for a smaller `{base_name}`: what the task does not need was cut out of the base while
training (Light-PEFT, Gu et al., Findings of ACL 2024).

| kept | of | |
|---|---|---|
| {heads} | {head_count} | attention heads |
| {neurons} | {neuron_count} | FFN neurons |
| {len(plan.kept_modules)} | {len(plan.modules)} | PEFT modules |
{layers}{table}
## Use

```python
import lightpeft

model = lightpeft.load("THIS_FOLDER")
```

`pruning.json` says what was cut and why, `light.safetensors` holds what was folded into the base. The
adapter fits the cut base only. Written by lightpeft {version}.
"""
