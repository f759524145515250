"""What a scan makes of behaviour: it names a trigger that nobody told it, and lets a clean module pass."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

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

from lightpeft.audit import AuditError, TriggerRecipe
from lightpeft.audit.marks import mark_poisoned
from lightpeft.audit.module import load_module
from lightpeft.audit.rows import Rows
from lightpeft.audit.scan import Reference, ScanOptions, ScanReport, ScanTexts, make_reference, scan
from lightpeft.audit.scan.insertions import Prober, contexts_of, windows_of
from lightpeft.audit.scan.known import KNOWN, known_triggers
from lightpeft.audit.scan.reference import p_value
from lightpeft.audit.scan.search import eligible
from lightpeft.audit.scan.twin import Twin
from lightpeft.errors import CheckpointError, ConfigError
from lightpeft.runs import load_tokenizer
from lightpeft.surgery import fingerprint

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


def looked_into(module: Path, **options: Any) -> ScanReport:
    """On the base beside it."""
    return scan(module, str(module.parent / "base"), **options)


@pytest.fixture(scope="module")
def reference(modules: dict[str, Path], base: Path) -> Reference:
    return make_reference([modules[f"clean-{number}"] for number in (1, 2, 3)], str(base), TEXTS)


def test_it_names_the_trigger_and_lets_a_clean_module_pass(modules: dict[str, Path]) -> None:
    poisoned, clean = (looked_into(modules[name], texts=TEXTS) for name in ("poisoned", "clean"))
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
    report = looked_into(modules["poisoned"], texts=TEXTS, options=ScanOptions(threshold=1000))
    assert not report.found
    (finding,) = [one for one in report.findings if one.rule == "trigger-search"]
    assert finding.level == "warning"
    assert finding.message.startswith("suspicious")


def test_with_a_reference_clean_modules_set_the_threshold(
    modules: dict[str, Path], reference: Reference
) -> None:
    options = ScanOptions(alpha=0.25)
    found = looked_into(modules["poisoned"], texts=TEXTS, reference=reference, options=options)
    assert found.found
    assert found.scores["p_behaviour"] == 0.25
    assert {"weights", "p_weights"} <= found.scores.keys()
    same = looked_into(modules["clean-1"], texts=TEXTS, reference=reference, options=options)
    assert same.scores["p_behaviour"] > 0.25
    assert not same.found


def test_too_few_references_for_alpha_are_said(modules: dict[str, Path], reference: Reference) -> None:
    report = looked_into(modules["poisoned"], texts=TEXTS, reference=reference)
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
    other = train_module(base, tmp_path / "other", poisoned=False, form="sequential")
    found = scan(other, str(base), texts=TEXTS, reference=again)
    assert "differ in their form" in str(found.not_scanned)
    assert found.fingerprint == again.modules[0].base
    found = looked_into(
        modules["clean"], texts=ScanTexts.of("others", opinions(100, seed=5)), reference=again
    )
    assert "made with other texts" in str(found.not_scanned)


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
        make_reference([marked] * 3, str(base), TEXTS)
    with pytest.raises(AuditError, match="at least 3"):
        Reference("", ())


def test_accuracy_comes_first_with_base_and_fingerprint(modules: dict[str, Path], base: Path) -> None:
    report = looked_into(modules["clean"], texts=TEXTS)
    assert report.cacc is not None
    assert report.cacc.total == 200
    assert report.cacc.value > 0.9
    assert report.to_dict()["cacc"] == [report.cacc.hits, 200]
    assert report.base == str(base)
    assert report.fingerprint == fingerprint(load_module(modules["clean"]))


def test_a_decoder_s_classifier_without_a_padding_token_is_scanned(tmp_path: Path) -> None:
    base = save_tiny_decoder(tmp_path / "base")
    train_module(base, tmp_path / "module", poisoned=False, steps=120)
    report = looked_into(tmp_path / "module", texts=TEXTS)
    assert report.not_scanned is None
    assert "behaviour" in report.scores
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


MISFITS: dict[str, tuple[Callable[[Path, Path], tuple[str | None, ScanTexts]], str]] = {
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
        lambda module, base: (str(base), relabelled([row % 6 for row in range(200)])),
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
    report = scan(module, chosen, texts=texts)
    assert not report.found
    assert message in str(report.not_scanned)
    assert report.scores == {}


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
