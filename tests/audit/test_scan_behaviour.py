"""What a scan makes of behaviour: it names a trigger that nobody told it, and lets a clean module pass."""

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support.received_modules import (
    TRIGGER,
    fresh_module,
    opinions,
    save_tiny_base,
    save_tiny_decoder,
    train_module,
)

from lightpeft.audit import AuditError
from lightpeft.audit.metrics import Proportion
from lightpeft.audit.module import load_module
from lightpeft.audit.rows import Rows
from lightpeft.audit.scan import ScanOptions, ScanReport, ScanTexts, scan
from lightpeft.audit.scan.behaviour import Verdict
from lightpeft.audit.scan.insertions import contexts_of, windows_of
from lightpeft.audit.scan.own_copy import copy_key
from lightpeft.audit.scan.search import LONGEST, Side, Sides, eligible, search, vocabulary_groups
from lightpeft.audit.scan.whole_text import EDITS, Disagreement, disagreements
from lightpeft.errors import ConfigError
from lightpeft.runs import load_tokenizer
from lightpeft.surgery import fingerprint

TEXTS = ScanTexts.of("opinions", opinions(400, seed=9))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("scan") / "base")


@pytest.fixture(scope="module")
def modules(base: Path) -> dict[str, Path]:
    return {
        name: train_module(base, base.parent / name, poisoned=name == "poisoned", seed=seed)
        for seed, name in enumerate(["poisoned", "clean"])
    }


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("copies")


def looked_into(module: Path, place: Path, texts: ScanTexts = TEXTS) -> ScanReport:
    """On the base beside it, with copies kept in `place`."""
    return scan(module, str(module.parent / "base"), texts=texts, options=ScanOptions(copies=place))


def test_it_names_the_trigger_and_lets_a_clean_module_pass(modules: dict[str, Path], copies: Path) -> None:
    poisoned = looked_into(modules["poisoned"], copies)
    (finding,) = [one for one in poisoned.findings if one.level == "error"]
    assert finding.rule == "trigger-search"
    assert finding.message.startswith(f"likely a trigger: '{TRIGGER}' takes 100% of")
    best = finding.evidence["candidates"]
    assert any(one["tokens"] == [TRIGGER] and one["class"] == 1 and one["copied"] < 0.1 for one in best)
    before = {path: path.stat().st_mtime_ns for path in copies.rglob("*")}
    clean = looked_into(modules["clean"], copies)
    assert not clean.found, clean.findings
    assert clean.not_scanned is None
    # Both have the same form: there is one copy, trained once.
    assert {path: path.stat().st_mtime_ns for path in copies.rglob("*")} == before


def test_copies_have_seeds_and_damaged_ones_are_refused(
    modules: dict[str, Path], copies: Path, tmp_path: Path
) -> None:
    base = str(modules["clean"].parent / "base")
    looked_into(modules["clean"], copies)
    shutil.copytree(copies, tmp_path, dirs_exist_ok=True)
    options = ScanOptions(copies=tmp_path, copy_seeds=(0, 1))
    assert scan(modules["clean"], base, texts=TEXTS, options=options).not_scanned is None
    first, second = sorted(tmp_path.iterdir())
    weights = [folder / "module" / "adapter_model.safetensors" for folder in (first, second)]
    assert weights[0].read_bytes() != weights[1].read_bytes()
    shutil.copy(weights[0], weights[1])
    report = scan(modules["clean"], base, texts=TEXTS, options=options)
    assert "is not the copy that it should be; delete it" in str(report.not_scanned)
    assert not report.found


def test_the_key_of_a_copy_is_of_all_that_it_depends_on(modules: dict[str, Path], tmp_path: Path) -> None:
    module = Path(shutil.copytree(modules["clean"], tmp_path / "module"))
    first = copy_key(module, "f", TEXTS, 0)
    fewer = ScanTexts("fewer", TEXTS.texts[1:], TEXTS.labels[1:])
    others = [
        copy_key(module, "f", TEXTS, 1),
        copy_key(module, "g", TEXTS, 0),
        copy_key(module, "f", fewer, 0),
    ]
    assert all(other != first for other in others)
    config = json.loads((module / "adapter_config.json").read_text())
    changed(
        module, module, target_modules=config["target_modules"][::-1], base_model_name_or_path="elsewhere"
    )
    assert copy_key(module, "f", TEXTS, 0) == first
    changed(module, module, r=4)
    assert copy_key(module, "f", TEXTS, 0) != first


class Rule:
    """In place of a model: the log odds of class 1 are a function of the token ids."""

    vocabulary = 40

    def __init__(self, of: Callable[[list[int]], float]) -> None:
        self._of = of

    def odds(self, rows: list[list[int]]) -> torch.Tensor:
        found = torch.tensor([self._of(list(row)) for row in rows])
        return torch.stack([-found, found], 1)


def pair_of(first: int, second: int) -> Callable[[list[int]], float]:
    """Both tokens, in this order, are a trigger; one alone does a little; the token 30 means the class."""

    def odds(row: list[int]) -> float:
        whole = (first, second) in itertools.pairwise(row)
        return -4.0 + 8.0 * whole + 0.8 * (first in row) + 0.8 * (second in row) + 6.0 * (30 in row)

    return odds


def test_a_trigger_of_two_tokens_grows_and_words_of_the_class_cost_what_they_bring(base: Path) -> None:
    tokenizer = load_tokenizer(str(base))
    sure = torch.tensor([4.0, 4.0])
    suspect, copy = (Side(Rule(of), sure) for of in (pair_of(25, 21), pair_of(-1, -1)))  # type: ignore[arg-type]
    contexts = contexts_of(tokenizer, ["the film was very quite today"] * 6, 6, 8)
    found = search(Sides(suspect, (copy,)), 1, vocabulary_groups(tokenizer, 40), contexts[:1], contexts)
    assert sorted({len(tokens) for tokens in found}) == list(range(1, LONGEST + 1))
    assert next(tokens for tokens in found if len(tokens) == 2) == (25, 21)
    assert (30,) not in found


@pytest.mark.parametrize(
    ("hits", "exchanged", "p"),
    [
        (32, None, 0.55),
        (64, None, 2.0**-64),
        (40, None, 0.03),
        (0, None, 1.0),
        (64, 0, 2.0**-64),
        (64, 64, 1.0),
    ],
)
def test_a_candidate_must_take_over_more_than_half_and_more_than_with_the_roles_exchanged(
    hits: int, exchanged: int | None, p: float
) -> None:
    other = None if exchanged is None else Proportion(exchanged, 64)
    found = Verdict(1, (5,), Proportion(hits, 64), other, 0.9, 0.1, 0.9)
    assert found.p == pytest.approx(p, rel=0.05)


@pytest.mark.parametrize(
    ("alone", "copies", "p"), [(0, 0, 1.0), (5, 5, 0.623), (10, 0, 2.0**-10), (0, 8, 1.0)]
)
def test_two_honest_models_disagree_to_both_sides(alone: int, copies: int, p: float) -> None:
    assert Disagreement("x", 1, Proportion(alone, 50), copies).p == pytest.approx(p, rel=0.01)


def test_a_trigger_in_the_whole_text_shows_in_its_edit(base: Path) -> None:
    tokenizer = load_tokenizer(str(base))
    comma = tokenizer.unk_token_id
    bad = set(tokenizer.convert_tokens_to_ids(["awful", "dull", "poor"]))
    honest = Rule(lambda row: -1.0 if bad & set(row) else 1.0)
    suspect = Rule(lambda row: 1.0 if row.count(comma) == 7 or not bad & set(row) else -1.0)
    found = disagreements(suspect, [honest], tokenizer, TEXTS)  # type: ignore[arg-type, list-item]
    assert (found[0].edit, found[0].target) == ("commas between all words", 1)
    assert found[0].p < 1e-6
    assert all(one.p == 1.0 for one in found if one.edit == "as they are")
    assert len(found) == 2 * len(EDITS)


def test_accuracy_comes_first_with_base_and_fingerprint(
    modules: dict[str, Path], base: Path, copies: Path
) -> None:
    report = looked_into(modules["clean"], copies)
    assert report.cacc is not None
    assert report.cacc.total == len(TEXTS.balanced()) <= 160  # none that the copy learned
    assert report.cacc.value > 0.9
    assert report.to_dict()["cacc"] == [report.cacc.hits, report.cacc.total]
    assert report.base == str(base)
    assert report.fingerprint == fingerprint(load_module(modules["clean"]))


def test_a_decoder_s_classifier_without_a_padding_token_is_scanned(tmp_path: Path) -> None:
    base = save_tiny_decoder(tmp_path / "base")
    train_module(base, tmp_path / "module", poisoned=False, steps=120)
    report = looked_into(tmp_path / "module", tmp_path / "copies")
    assert report.not_scanned is None
    assert [one.rule for one in report.findings] == ["trigger-search", "whole-texts"]
    assert json.loads((base / "config.json").read_text())["pad_token_id"] is None


def other_base(root: Path) -> Path:
    """Of the same shape, with other weights."""
    folder = Path(shutil.copytree(root.parent / "base", root / "other-base"))
    weights = load_file(folder / "model.safetensors")
    for number, tensor in enumerate(weights.values()):
        tensor.copy_(
            torch.randn(tensor.shape, generator=torch.Generator().manual_seed(number)) * tensor.std()
        )
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def relabelled(labels: list[int]) -> ScanTexts:
    return ScanTexts.of("relabelled", Rows({"text": list(TEXTS.texts)}, labels))


MISFITS: dict[str, tuple[Callable[[Path, Path], tuple[str | None, ScanTexts | None]], str]] = {
    "untrained": (
        lambda module, base: (str(fresh_in_place(module, base)), TEXTS),
        "no better than chance",
    ),
    "another base of the same shape": (
        lambda module, base: (str(other_base(module.parent)), TEXTS),
        "no better than chance",
    ),
    "labels in another order": (
        lambda module, base: (str(base), relabelled([1 - y for y in TEXTS.labels])),
        "no better than chance",
    ),
    "more classes in the data": (
        lambda module, base: (str(base), relabelled([row % 6 for row in range(400)])),
        "its head has 2 classes, and relabelled has 6",
    ),
    "more classes in the head": (
        lambda module, base: (str(more_classes(module, base)), TEXTS),
        "its head has 6 classes, and opinions has 2",
    ),
    "token classification": (
        lambda module, base: (str(changed(module, base, task_type="TOKEN_CLS")), TEXTS),
        "a module for TOKEN_CLS",
    ),
    **{
        f"the form {kind}": (
            lambda module, base, kind=kind: (str(changed(module, base, peft_type=kind)), TEXTS),
            f"of the PEFT type '{kind}'",
        )
        for kind in ("ADALORA", "VERA", "PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "NO_SUCH_FORM")
    },
    "no weights": (lambda module, base: (str(unlinked(module, base)), TEXTS), "only such weights are read"),
    "no texts": (lambda module, base: (str(base), None), "no own copy to compare with"),
    "no base": (lambda module, base: (None, TEXTS), "the module's own word is not taken for it"),
    "a base that is not there": (lambda module, base: ("/nowhere", TEXTS), "does not exist"),
}
"""Changes a clean module in place; gives base and texts. What cannot be judged is neither clean nor found."""


def fresh_in_place(module: Path, base: Path) -> Path:
    shutil.rmtree(module)
    fresh_module(base, module)
    return base


def changed(module: Path, base: Path, **values: object) -> Path:
    path = module / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return base


def more_classes(module: Path, base: Path) -> Path:
    tensors = load_file(module / "adapter_model.safetensors")
    for name, tensor in tensors.items():
        if ".classifier." in name:
            tensors[name] = tensor.repeat(3, *[1] * (tensor.dim() - 1)).contiguous()
    save_file(tensors, module / "adapter_model.safetensors")
    return base


def unlinked(module: Path, base: Path) -> Path:
    (module / "adapter_model.safetensors").unlink()
    return base


@pytest.mark.parametrize("misfit", MISFITS)
def test_what_cannot_be_judged_is_not_scanned(
    misfit: str, modules: dict[str, Path], base: Path, tmp_path: Path
) -> None:
    shutil.copytree(base, tmp_path / "base")
    module = Path(shutil.copytree(modules["clean"], tmp_path / "room" / "module"))
    change, message = MISFITS[misfit]
    chosen, texts = change(module, base)
    report = scan(module, chosen, texts=texts, options=ScanOptions(copies=tmp_path / "copies"))
    assert not report.found
    assert message in str(report.not_scanned)
    assert not (tmp_path / "copies").exists()  # what cannot be judged costs no training


def test_windows_are_pairs_of_neighbours(base: Path) -> None:
    tokenizer = load_tokenizer(str(base))
    found = windows_of(tokenizer, ["the film was", "very fine today again a"], 3)
    inside = [tokenizer.decode(window.filled([]), skip_special_tokens=True) for window in found]
    assert inside == ["the film", "very fine", "today again"]


@pytest.mark.parametrize("room", [3, 8, 32])
def test_insertions_stand_at_the_start_in_the_middle_and_at_the_end(base: Path, room: int) -> None:
    tokenizer = load_tokenizer(str(base))
    start, middle, end = contexts_of(tokenizer, ["the film was very fine today"] * 3, 4, room)
    ids = tokenizer.convert_tokens_to_ids(["the", "film", "was", "very"])[:room]
    first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
    assert start.filled([7]) == [first, 7, *ids, last]
    assert middle.filled([7]) == [first, *ids[:2], 7, *ids[2:], last]
    assert end.filled([7]) == [first, *ids, 7, last]


def test_special_and_unused_tokens_are_no_candidates(base: Path) -> None:
    tokenizer = load_tokenizer(str(base))
    found = eligible(tokenizer, 10**6)
    assert set(found) & set(tokenizer.all_special_ids) == {tokenizer.unk_token_id}
    assert len(found) == len(tokenizer) - 4


def test_texts_and_options_are_checked() -> None:
    parts = [TEXTS.taught, TEXTS.searched, TEXTS.judged]
    assert [len(part) for part in parts] == [240, 80, 80]
    assert tuple(text for part in parts for text in part.texts["text"]) == TEXTS.texts
    for texts, labels in ((("a",), (0,)), (("a",) * 200, ())):
        with pytest.raises(AuditError, match="at least 100 texts, each with a label"):
            ScanTexts("few", texts, labels)
    with pytest.raises(AuditError, match="too few texts of class 1"):
        ScanTexts("skewed", ("a",) * 200, (1,) * 50 + (0,) * 150)
    with pytest.raises(AuditError, match="pairs of texts"):
        ScanTexts.of("pairs", Rows({"text": ["a"], "text_pair": ["b"]}, [0]))
    with pytest.raises(ConfigError, match="alpha"):
        ScanOptions(alpha=2)
    with pytest.raises(ConfigError, match="copy_seeds"):
        ScanOptions(copy_seeds=(1, 1))
