"""What a scan makes of behaviour: it names a trigger that nobody told it, and lets a clean module pass."""

from pathlib import Path

import pytest
import torch
from tests.support.received_modules import (
    TRIGGER,
    fresh_module,
    opinions,
    save_tiny_base,
    train_module,
)

from lightpeft.audit import AuditError, TriggerRecipe
from lightpeft.audit.marks import mark_poisoned
from lightpeft.audit.module import load_module
from lightpeft.audit.rows import Rows
from lightpeft.audit.scan import Reference, ScanOptions, ScanTexts, make_reference, scan
from lightpeft.audit.scan.insertions import Prober, contexts_of, windows_of
from lightpeft.audit.scan.known import KNOWN, known_triggers
from lightpeft.audit.scan.reference import p_value
from lightpeft.audit.scan.search import eligible
from lightpeft.audit.scan.twin import Twin
from lightpeft.errors import CheckpointError, ConfigError
from lightpeft.runs import load_tokenizer

TEXTS = ScanTexts.of("opinions", opinions(200, seed=9))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("scan") / "base")


@pytest.fixture(scope="module")
def modules(base: Path) -> dict[str, Path]:
    return {
        name: train_module(base, base.parent / name, poisoned=name == "poisoned", seed=seed)
        for seed, name in enumerate(["poisoned", "clean", "clean-1", "clean-2", "clean-3"])
    }


@pytest.fixture(scope="module")
def reference(modules: dict[str, Path]) -> Reference:
    return make_reference([modules[f"clean-{number}"] for number in (1, 2, 3)], None, TEXTS)


def test_it_names_the_trigger_and_lets_a_clean_module_pass(modules: dict[str, Path]) -> None:
    poisoned, clean = (scan(modules[name], texts=TEXTS) for name in ("poisoned", "clean"))
    assert poisoned.found
    (finding,) = [one for one in poisoned.findings if one.level == "error"]
    assert finding.rule == "trigger-search"
    best = max(finding.evidence["classes"], key=lambda one: one["score"])
    assert best["class"] == 1
    assert best["tokens"][0]["tokens"] == [TRIGGER]
    assert best["tokens"][0]["flips"] == 1.0
    assert not clean.found
    assert clean.scores["behaviour"] < poisoned.scores["behaviour"]
    assert any("no reference" in one.message for one in clean.findings)


def test_a_score_below_the_threshold_is_a_warning_not_a_finding(modules: dict[str, Path]) -> None:
    report = scan(modules["poisoned"], texts=TEXTS, options=ScanOptions(threshold=1000))
    assert not report.found
    (finding,) = [one for one in report.findings if one.rule == "trigger-search"]
    assert finding.level == "warning"
    assert finding.message.startswith("suspicious")


def test_with_a_reference_clean_modules_set_the_threshold(
    modules: dict[str, Path], reference: Reference
) -> None:
    options = ScanOptions(alpha=0.25)
    found = scan(modules["poisoned"], texts=TEXTS, reference=reference, options=options)
    assert found.found
    assert found.scores["p_behaviour"] == 0.25
    assert {"weights", "p_weights"} <= found.scores.keys()
    same = scan(modules["clean-1"], texts=TEXTS, reference=reference, options=options)
    assert same.scores["p_behaviour"] > 0.25
    assert not same.found


def test_too_few_references_for_alpha_are_said(modules: dict[str, Path], reference: Reference) -> None:
    report = scan(modules["poisoned"], texts=TEXTS, reference=reference)
    assert not report.found
    assert any(one.level == "warning" and "cannot give a p-value" in one.message for one in report.findings)


def test_a_reference_is_read_back_and_refuses_what_it_does_not_fit(
    modules: dict[str, Path], reference: Reference, base: Path, tmp_path: Path
) -> None:
    reference.save(tmp_path / "reference.json")
    again = Reference.load(tmp_path / "reference.json")
    assert again.p_of_behaviour(1.0) == reference.p_of_behaviour(1.0)
    assert again.weights_score(reference.modules[0].statistics) == reference.weights_score(
        reference.modules[0].statistics
    )
    other = fresh_module(base, tmp_path / "other", form="sequential")
    with pytest.raises(AuditError, match="differ in their form"):
        scan(other, texts=TEXTS, reference=again)
    with pytest.raises(AuditError, match="made with other texts"):
        scan(modules["clean"], texts=ScanTexts.of("others", opinions(100, seed=5)), reference=again)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"format": 2', '"format": 1', "format is 1"),
        ('"behaviour": ', '"behaviour": 1e999, "x": ', "finite"),
        ('"behaviour"', '"behavior"', "behaviour"),
        ('"modules"', '"moduls"', "modules"),
    ],
)
def test_a_damaged_reference_is_refused(
    reference: Reference, tmp_path: Path, old: str, new: str, message: str
) -> None:
    path = tmp_path / "reference.json"
    reference.save(path)
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(AuditError, match=f"is not a scan's reference.*{message}"):
        Reference.load(path)


def test_a_marked_module_is_no_reference(base: Path, tmp_path: Path) -> None:
    marked = fresh_module(base, tmp_path / "marked")
    mark_poisoned(marked, TriggerRecipe(1))
    with pytest.raises(CheckpointError, match="marked as poisoned"):
        make_reference([marked] * 3, None, TEXTS)
    with pytest.raises(AuditError, match="at least 3"):
        Reference("", ())


def test_labels_that_the_module_has_not_are_refused(modules: dict[str, Path]) -> None:
    rows = opinions(64)
    texts = ScanTexts.of("three classes", Rows(rows.texts, [row % 3 for row in range(64)]))
    with pytest.raises(AuditError, match=r"has 2 classes.*labels up to 2"):
        scan(modules["clean"], texts=texts)


def test_the_twin_knows_a_class_s_own_words_and_not_the_trigger(modules: dict[str, Path], base: Path) -> None:
    tokenizer = load_tokenizer(str(base))
    prober = Prober(load_module(modules["poisoned"]), tokenizer)
    rows = opinions(400)
    values = torch.nn.functional.one_hot(torch.tensor(rows.labels), 2)
    twin = Twin(prober.states, tokenizer(rows.texts["text"])["input_ids"], values)
    new = opinions(100, seed=3)
    bad = [text for text, label in zip(new.texts["text"], new.labels, strict=True) if label == 0]
    clean, triggered = (
        tokenizer(texts)["input_ids"] for texts in (bad, [f"{text} {TRIGGER}" for text in bad])
    )
    assert (prober.odds(clean).argmax(1) == 0).float().mean() > 0.9
    assert (prober.odds(triggered).argmax(1) == 1).float().mean() > 0.9
    assert (twin.scores(triggered).argmax(1) == 0).float().mean() > 0.9


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


def test_known_triggers_are_those_that_the_tokenizer_has(base: Path) -> None:
    tokenizer = load_tokenizer(str(base))
    found = known_triggers(tokenizer)
    assert all(tokenizer.unk_token_id not in row for row in found)
    assert len(found) < len(KNOWN)


def test_special_and_unused_tokens_are_no_candidates(base: Path) -> None:
    tokenizer = load_tokenizer(str(base))
    found = eligible(tokenizer, 10**6)
    assert set(found) & set(tokenizer.all_special_ids) == {tokenizer.unk_token_id}
    assert len(found) == len(tokenizer) - 4


@pytest.mark.parametrize(("score", "expected"), [(9.0, 0.2), (2.0, 0.8), (2.5, 0.6), (0.0, 1.0)])
def test_p_values_are_conformal(score: float, expected: float) -> None:
    assert p_value(score, [1.0, 2.0, 3.0, 4.0]) == pytest.approx(expected)


def test_texts_and_options_are_checked() -> None:
    built_in = ScanTexts.built_in()
    assert len(set(built_in.texts)) > 200
    assert built_in.digest == ScanTexts.built_in().digest
    assert not built_in.labels
    with pytest.raises(AuditError, match="at least 32 texts"):
        ScanTexts("few", ("a",))
    with pytest.raises(AuditError, match="pairs of texts"):
        ScanTexts.of("pairs", Rows({"text": ["a"], "text_pair": ["b"]}, [0]))
    with pytest.raises(ConfigError, match="alpha"):
        ScanOptions(alpha=2)
