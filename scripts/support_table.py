"""Write docs/architectures.md: every architecture built tiny from its configuration, and probed.

    python -m scripts.support_table            # print
    python -m scripts.support_table --write    # write the page

A cell says what was seen; `tests/test_support_table.py` fails when the page no longer says what is seen.
"""

import argparse
import copy
import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from tests.support.models import gated
from tests.support.probing import agree, assert_cache_changes_nothing, outputs, plan_gates, random_scores
from tests.support.zoo import ANIMALS, Animal
from torch import Tensor
from torch.utils.data import Dataset
from transformers import TrainingArguments

import lightpeft
from lightpeft import (
    Budget,
    EstimationConfig,
    LightConfig,
    LightTrainer,
    SurgeryConfig,
    find_anatomy,
    make_plan,
)
from lightpeft.outputs import written_beside

PAGE = Path(__file__).parent.parent / "docs" / "architectures.md"
START, END = "<!-- table: python -m scripts.support_table --write -->", "<!-- end of table -->"
NOTHING = {"heads": 0.0, "neurons": 0.0, "modules": 0.0, "ranks": 0.0}
ALL = {"heads": 0.4, "neurons": 0.4, "modules": 0.3, "ranks": 0.4}
YES, NONE, NO = "yes", "–", "**no**"


def row(animal: Animal) -> list[str]:
    """The cells of one architecture."""
    return [animal.name, *(cell(animal) for cell in COLUMNS.values())]


def heads(animal: Animal) -> str:
    outs = [out for out in animal.outs if out.kind == "heads"]
    fixed = sum(len(out.fixed) for out in outs)
    seen = holds(animal, {"heads": 0.4})
    return f"{seen}; {fixed} of {sum(out.layers for out in outs)} blocks fixed" if fixed else seen


def kv_groups(animal: Animal) -> str:
    out = animal.outs[0]
    if out.group == 1:
        return NONE
    whole = "whole" if out.group < out.units and holds(animal, {"heads": 0.4}) == YES else ""
    equal = "equal" if out.splits and holds(animal, {"heads": 0.4}, kv_groups="equal") == YES else ""
    return " or ".join(filter(None, (whole, equal))) or NO


def neurons(animal: Animal) -> str:
    return holds(animal, {"neurons": 0.4}) if any(out.kind == "neurons" for out in animal.outs) else NONE


def modules_and_ranks(animal: Animal) -> str:
    return holds(animal, {"modules": 0.3, "ranks": 0.4})


def dora(animal: Animal) -> str:
    return holds(animal, ALL, form="dora")


def bottleneck(animal: Animal) -> str:
    seen = {holds(animal, ALL, form=form) for form in ("sequential", "parallel")}
    return YES if seen == {YES} else NO


def whole_blocks(animal: Animal) -> str:
    seen = [kind for kind in ("heads", "neurons") if loses_all(animal, kind)]
    return {(): NO, ("heads",): "attention", ("neurons",): "FFN"}.get(tuple(seen), "attention, FFN")


def eager(animal: Animal) -> str:
    return holds(animal, ALL, attention="eager")


def sdpa(animal: Animal) -> str:
    return holds(animal, ALL, attention="sdpa") if "sdpa" in animal.attentions else NONE


def padding(animal: Animal) -> str:
    return holds(animal, ALL, padded=True) if "attention_mask" in animal.batch(padded=True) else NONE


def cache(animal: Animal) -> str:
    if not animal.generates:
        return NONE
    model, batch, _ = cut_model(animal)
    return verdict(lambda: assert_cache_changes_nothing(model, batch))


def save_and_load(animal: Animal) -> str:
    model, batch, expected = cut_model(animal)
    with tempfile.TemporaryDirectory() as folder:
        lightpeft.save(model, folder)
        loaded = lightpeft.load(folder, base=animal.build(animal.attentions[-1]))
    return verdict(lambda: agree(outputs(loaded, batch), expected))


def merge(animal: Animal) -> str:
    model, batch, expected = cut_model(animal)
    return verdict(lambda: agree(outputs(copy.deepcopy(model).merge_and_unload(), batch), expected))


def resume(animal: Animal, form: str = "lora") -> str:
    """Whether a run that goes on from a checkpoint, before or after its cut, ends in the same weights."""
    with tempfile.TemporaryDirectory() as folder:
        whole = train(animal, form, Path(folder), None)
        again = [train(animal, form, Path(folder), step) for step in (2, 4)]
    same = all(torch.equal(whole[name], other[name]) for other in again for name in whole)
    return YES if same else NO


COLUMNS: dict[str, Callable[[Animal], str]] = {
    "heads": heads,
    "KV groups": kv_groups,
    "neurons": neurons,
    "modules, ranks": modules_and_ranks,
    "DoRA": dora,
    "bottleneck": bottleneck,
    "whole blocks": whole_blocks,
    "eager": eager,
    "sdpa": sdpa,
    "padding": padding,
    "cache": cache,
    "save, load": save_and_load,
    "merge": merge,
    "resume": resume,
}


def holds(
    animal: Animal,
    shares: dict[str, float],
    *,
    attention: str | None = None,
    padded: bool = False,
    form: str = "lora",
    **options: str,
) -> str:
    """Whether the model cut by such shares computes what the gated model does, within 1e-5."""
    model, batch = animal.with_peft(form, attention or animal.attentions[-1]), animal.batch(padded=padded)
    budget = Budget(**NOTHING | shares, heads_scope="global", **options)
    plan = make_plan(random_scores(model), find_anatomy(model), budget)
    assert not plan.cuts_nothing
    with gated(model.get_base_model(), plan_gates(animal, model, plan, ranks=True)):
        expected = outputs(model, batch)
    lightpeft.cut(model, plan, batch=batch, config=SurgeryConfig(fold_removed=False, compensate=False))
    return verdict(lambda: agree(outputs(model, batch), expected))


def loses_all(animal: Animal, kind: str) -> bool:
    """Whether a layer can lose all units of a kind."""
    model, batch = animal.with_lora(animal.attentions[-1]), animal.batch(padded=True)
    scores = random_scores(model)
    values = [one * (index > 1) for index, one in enumerate(getattr(scores, kind))]
    if not any(len(one) for one in values):
        return False
    budget = Budget(
        **NOTHING | {kind: 0.5}, heads_scope="global", neurons_scope="global", min_heads=0, min_neurons=0
    )
    plan = make_plan(dataclasses.replace(scores, **{kind: tuple(values)}), find_anatomy(model), budget)
    lightpeft.cut(model, plan, batch=batch)
    counts = {"heads": "head_count", "neurons": "neuron_count"}[kind]
    return any(getattr(layer, counts) and not getattr(layer, kind) for layer in plan.layers)


def cut_model(animal: Animal) -> tuple[torch.nn.Module, dict[str, Tensor], Tensor]:
    """A cut model, a batch, and what it computes."""
    model, batch = animal.with_lora(animal.attentions[-1]), animal.batch(padded=True)
    lightpeft.cut(model, make_plan(random_scores(model), find_anatomy(model), Budget(**ALL)), batch=batch)
    return model, batch, outputs(model, batch)


def verdict(check: Callable[[], None]) -> str:
    try:
        check()
    except AssertionError:
        return NO
    return YES


class Rows(Dataset[dict[str, Tensor]]):
    """The rows of a few batches; what has no rows (a flag) is the same for every batch."""

    def __init__(self, animal: Animal) -> None:
        batches = [animal.batch(padded=True, labels=True, seed=seed) for seed in range(4)]
        self.flags = {name: value for name, value in batches[0].items() if value.dim() == 0}
        columns = {name for name in batches[0] if name not in self.flags}
        self.rows = [{name: batch[name][i] for name in columns} for batch in batches for i in range(3)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.rows[index]

    def collate(self, rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """A batch again."""
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]} | self.flags


def train(animal: Animal, form: str, folder: Path, resume_at: int | None) -> dict[str, Tensor]:
    """Six steps, cut after the third; the weights at the end."""
    model = animal.with_peft(form, animal.attentions[-1])
    light = LightConfig(EstimationConfig(steps=3), Budget(**ALL))
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=6,
        per_device_train_batch_size=2,
        learning_rate=1e-3,
        save_strategy="no" if resume_at else "steps",
        save_steps=2,
        logging_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    rows = Rows(animal)
    trainer = LightTrainer(
        light=light, model=model, args=arguments, train_dataset=rows, data_collator=rows.collate
    )
    trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{resume_at}") if resume_at else None)
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def markdown_row(cells: list[str]) -> str:
    """One line of the table."""
    return f"| {' | '.join(cells)} |"


def page(table: list[str]) -> str:
    """The page with the table in its place."""
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.partition(START)[0], text.partition(END)[2]
    head = [markdown_row(["architecture", *COLUMNS]), "|---" * (len(COLUMNS) + 1) + "|"]
    return before + "\n".join([START, "", *head, *table, "", END]) + after


def main() -> None:
    """Probe all architectures and print or write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/architectures.md")
    options = parser.parse_args()
    table = []
    for animal in ANIMALS:
        table.append(markdown_row(row(animal)))
        print(table[-1], flush=True)
    if options.write:
        with written_beside(PAGE) as beside:
            beside.write_text(page(table), encoding="utf-8")


if __name__ == "__main__":
    main()
