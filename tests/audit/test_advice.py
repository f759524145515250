"""What `audit defend` advises without a method: by the committed numbers, and by nothing else."""

import json
from pathlib import Path

import pytest
from benchmarks.audit_tables import as_json, cells_of
from benchmarks.audit_tables import evidence as seen_in
from peft import LoraConfig
from tests.support.audit_runs import save_tiny_task

from lightpeft.adapters import BottleneckConfig
from lightpeft.audit.advice import advise, ranked
from lightpeft.audit.defences import DEFENCES
from lightpeft.audit.defences import evidence as evidence_room
from lightpeft.audit.defences.evidence import Seen, evidence
from lightpeft.audit.errors import AuditError
from lightpeft.audit.metrics import Proportion
from lightpeft.cli.main import main
from lightpeft.errors import CheckpointError

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
MEASURED = ("audit-defences.json", "audit-lora.json")


def seen(defence: str, lfr: int, *, form: str = "lora", floor: int = 10) -> Seen:
    """LFR and floor in per cent."""
    shares = {"lfr": lfr, "undefended": 90, "floor": floor, "cacc": 80, "cacc_undefended": 82}
    return Seen(
        defence, form, "words", "a → b", (0,), **{name: Proportion(n, 100) for name, n in shares.items()}
    )


def module(folder: Path, config: LoraConfig | BottleneckConfig) -> Path:
    """The folder of a module, of which advice reads the configuration only."""
    config.save_pretrained(str(folder))
    return folder


def test_the_numbers_are_those_of_the_committed_cells() -> None:
    cells = [cell for name in MEASURED for cell in cells_of(RESULTS / name)]
    packed = Path(evidence_room.__file__).with_name("evidence.json").read_text(encoding="utf-8")
    assert packed == as_json(seen_in(cells)) + "\n"
    assert {one.defence for one in evidence()} <= DEFENCES.keys()


@pytest.mark.parametrize("form", [None, "lora", "parallel", "sequential", "ia3"])
def test_discard_comes_first_and_what_is_not_proven_does_not_come(form: str | None) -> None:
    found = ranked(evidence(), form)[0]
    assert found[0].method == "discard"
    assert all(not one.left.is_above for one in found[0].seen)
    assert not {"onion", "strip", "rap"} & {one.method for one in found}


def test_the_order_is_by_what_was_left_where_most_was_left() -> None:
    rows = [
        *(seen("none", 90, form=form) for form in ("lora", "parallel")),
        *(seen("hotter", lfr, form=form) for lfr, form in ((10, "parallel"), (60, "lora"))),
        *(seen("reset_layers", 30, form=form) for form in ("lora", "parallel")),
        *(
            seen("discard", lfr, form=form, floor=floor)
            for lfr, floor, form in ((40, 40, "lora"), (5, 9, "parallel"))
        ),
        seen("fine_mixing", 0),
        *(seen("onion", 0, form=form) for form in ("lora", "parallel")),
    ]
    whole, part = ranked(rows)
    assert [one.method for one in whole] == ["discard", "reset_layers", "hotter", "none"]
    assert [one.method for one in part] == ["fine_mixing"]
    assert whole[2].worst() == seen("hotter", 60)
    assert whole[2].worst("parallel") == seen("hotter", 10, form="parallel")
    assert whole[2].worst("ia3") is None
    of_form = ranked(rows, "parallel")[0]
    assert [one.method for one in of_form] == ["discard", "hotter", "reset_layers", "none"]
    assert ranked(rows, "ia3")[0] == whole
    assert whole[2].costs == pytest.approx((0.02, 0.02))


@pytest.mark.parametrize(
    ("config", "form"),
    [
        (LoraConfig(), "lora"),
        (LoraConfig(use_dora=True), None),
        (BottleneckConfig(form="parallel"), "parallel"),
        (BottleneckConfig(), "sequential"),
    ],
)
def test_the_form_of_a_module_is_known(
    config: LoraConfig | BottleneckConfig,
    form: str | None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert advise(module(tmp_path, config)).form == form
    assert main(["audit", "defend", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert ("is of another form of PEFT than all that was measured" in printed) == (form is None)


def test_advice_is_printed_with_what_to_do_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "defend", str(module(tmp_path, LoraConfig()))]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Do not use a module from a stranger as it came")
    assert lines[1].startswith("Best: discard. ")
    keeping = advise(tmp_path).keeping.method
    assert lines[2].startswith(f"If it knows what your data cannot teach: {keeping}. ")
    text = "\n".join(lines)
    for part in ("1 training", "3 trainings", "Left out: onion, measured with n-grams", "docs/audit.md"):
        assert part in text


def test_advice_counts_the_steps_on_your_own_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = save_tiny_task(tmp_path / "meals", "meals")
    words = [
        "audit",
        "defend",
        str(module(tmp_path / "module", LoraConfig())),
        "--task",
        "own",
        "--text",
        "text",
    ]
    more = ["--data", str(data), "--held-out", "8", "--training.batch_size", "5", "--training.epochs", "2"]
    assert main([*words, *more, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["rows"], found["steps"]) == (40, 16)
    assert (found["form"], found["marked"]) == ("lora", False)
    assert found["advice"] == ["discard", advise(tmp_path / "module").keeping.method]
    best = found["defences"][0]
    assert best["method"] == "discard"
    assert best["what"].startswith("Throw the received module away")
    assert {row["form"] for row in best["seen"]} == {"lora", "parallel", "sequential"}
    assert set(found["left_out"]) == {name for name, row in DEFENCES.items() if row.unproven}
    assert main([*words, *more]) == 0
    assert "One training of yours is 16 steps on 40 rows." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "o", "--probe", "cf"], "--out, --probe would have no effect with no --method"),
        (["--options.share", "0.5"], "--options would have no effect with no --method"),
        (["--data", "d"], "--data would have no effect with no --task"),
        (["--training.save_steps", "2"], "save_steps has no effect"),
        (["--method", "none"], "give --task and --out too"),
        (["--method", "none", "--task", "glue/sst2"], "give --out too"),
    ],
)
def test_what_has_no_effect_is_refused(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", "defend", str(module(tmp_path, LoraConfig())), *words]) == 2
    assert message in capsys.readouterr().err


def test_what_is_no_module_gets_no_advice(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is missing"):
        advise(tmp_path)
    module(tmp_path, LoraConfig())
    (tmp_path / "pruning.json").write_text("{}")
    with pytest.raises(AuditError, match="is cut already"):
        advise(tmp_path)
