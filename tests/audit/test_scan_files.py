"""File safety: everything that could run code is an error, and what a module of ours is made of passes."""

import json
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support.received_modules import fresh_module, opinions, save_tiny_base, train_module

from lightpeft.audit import TriggerRecipe
from lightpeft.audit.marks import mark_poisoned
from lightpeft.audit.scan import Finding, ScanOptions, ScanTexts, scan
from lightpeft.audit.scan.files import CODE_KEYS, NORMAL, NORMAL_NAMES, PICKLES, check_files
from lightpeft.audit.scan.finding import LEVELS, RULES
from lightpeft.audit.scan.tensors import check_tensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TEXTS = ScanTexts.of("opinions", opinions(200))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    base = save_tiny_base(folder / "base")
    forms = {form: fresh_module(base, folder / form, form=form) for form in ("lora", "sequential")}
    return forms | {"base": base, "trained": train_module(base, folder / "trained", poisoned=False)}


@pytest.fixture
def module(saved: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved["lora"], tmp_path / "module"))


def change_config(module: Path, **values: Any) -> None:
    config = json.loads((module / CONFIG).read_text())
    (module / CONFIG).write_text(json.dumps(config | values))


def change_tensors(module: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(module / WEIGHTS)
    change(tensors)
    save_file(tensors, module / WEIGHTS)


def write_header(module: Path, header: object, data: bytes = b"") -> None:
    text = json.dumps(header).encode()
    (module / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + data)


def rules(findings: list[Finding]) -> list[str]:
    return [finding.rule for finding in findings if finding.level == "error"]


@pytest.mark.parametrize("form", ["lora", "sequential"])
def test_modules_as_they_are_saved_pass(saved: dict[str, Path], form: str) -> None:
    assert check_files(saved[form]) == []
    assert check_tensors(saved[form]) == []


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", b"")


CONTENTS: dict[str, Callable[[Path], object]] = {
    "torch": lambda path: torch.save({"a": torch.ones(1)}, path),
    "old torch": lambda path: torch.save({"a": torch.ones(1)}, path, _use_new_zipfile_serialization=False),
    "zip": write_zip,
    **{
        f"pickle {protocol}": lambda path, protocol=protocol: path.write_bytes(pickle.dumps([1], protocol))
        for protocol in (2, 3, 4, 5)
    },
    "elf": lambda path: path.write_bytes(b"\x7fELF\x02\x01"),
    "script": lambda path: path.write_bytes(b"#!/bin/sh\n"),
    "gzip": lambda path: path.write_bytes(b"\x1f\x8b\x08\x00"),
}


@pytest.mark.parametrize("name", ["notes.txt", "more.safetensors", "README.md", "weights.json", "sub/x.txt"])
@pytest.mark.parametrize("content", CONTENTS)
def test_dangerous_content_is_found_under_any_name(module: Path, content: str, name: str) -> None:
    (module / name).parent.mkdir(exist_ok=True)
    CONTENTS[content](module / name)
    found = [finding for finding in check_files(module) if finding.rule == "pickle"]
    assert [finding.evidence["file"] for finding in found] == [name]
    assert found[0].level == "error"


@pytest.mark.parametrize("ending", sorted(PICKLES))
def test_pickles_are_found_by_their_names(module: Path, ending: str) -> None:
    (module / f"adapter_model{ending}").write_bytes(b"harmless?")
    assert rules(check_files(module)) == ["pickle"]


@pytest.mark.parametrize("name", ["modeling.py", "run.sh", "more.zip", "x", "weights.gguf", "notes.ipynb"])
def test_what_loading_does_not_read_is_a_warning(module: Path, name: str) -> None:
    (module / name).write_text("text")
    (finding,) = check_files(module)
    assert (finding.rule, finding.level, finding.evidence["file"]) == ("file-type", "warning", name)


@pytest.mark.parametrize(
    "name", [f"more{ending}" for ending in sorted(NORMAL - {".json"})] + sorted(NORMAL_NAMES)
)
def test_normal_files_pass(module: Path, name: str) -> None:
    (module / name).write_text("text")
    assert check_files(module) == []


@pytest.mark.parametrize("target", ["/etc/hostname", "../outside", "../outside/secret.txt", "/nowhere"])
def test_links_out_of_the_folder_are_found(module: Path, target: str) -> None:
    (module.parent / "outside").mkdir()
    (module.parent / "outside" / "secret.txt").write_text("secret")
    (module / "vocab.txt").symlink_to(target)
    assert rules(check_files(module)) == ["link"]


def test_a_link_inside_the_folder_passes(module: Path) -> None:
    (module / "again.md").symlink_to("README.md")
    assert check_files(module) == []


@pytest.mark.parametrize(
    "values",
    [
        {"auto_mapping": {"base_model_class": "X", "parent_library": "evil.module"}},
        {"auto_mapping": ["evil"]},
        {"megatron_config": {"a": 1}},
        {"tokenizer_kwargs": {"trust_remote_code": True}},
        *({key: {"AutoModel": "modeling.Evil"}} for key in CODE_KEYS),
        *({"nested": [{"deep": {key: True}}]} for key in CODE_KEYS),
    ],
)
def test_configurations_that_run_code_are_found(module: Path, values: dict[str, Any]) -> None:
    change_config(module, **values)
    found = rules(check_files(module))
    assert found
    assert set(found) == {"config"}


def test_code_keys_are_found_in_other_files(module: Path) -> None:
    (module / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["tok.Evil", null]}}')
    (finding,) = check_files(module)
    assert (finding.rule, finding.evidence["file"]) == ("config", "tokenizer_config.json")
    (module / "tokenizer_config.json").write_text('{"auto_map": null, "use_fast": true}')
    assert check_files(module) == []
    (module / "tokenizer_config.json").write_text("{")
    assert rules(check_files(module)) == ["config"]


def entry(start: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ({"a.lora_A.weight": entry(0, 8, [2])}, 4),
        ({"a.lora_A.weight": entry(0, 8, [2])}, 12),
        ({"a.lora_A.weight": entry(4, 12, [2])}, 12),
        ({"a.lora_A.weight": entry(0, 8, [2]), "b.lora_B.weight": entry(4, 12, [2])}, 12),
        ({"a.lora_A.weight": entry(0, 8, [3])}, 8),
        ({"a.lora_A.weight": entry(0, 8, [-2])}, 8),
        ({"a.lora_A.weight": entry(0, 8, [1], "I64")}, 8),
        ({"a.lora_A.weight": {"dtype": "F32"}}, 8),
        ({"a.lora_A.weight": 7}, 8),
        ({}, 0),
        ([1], 0),
    ],
)
def test_bad_headers_are_found(module: Path, header: object, data: int) -> None:
    write_header(module, header, b"\0" * data)
    assert rules(check_tensors(module)) == ["header"]


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, struct.pack("<Q", 10**9) + b"{}"])
def test_no_header_is_found(module: Path, content: bytes) -> None:
    (module / WEIGHTS).write_bytes(content)
    assert rules(check_tensors(module)) == ["header"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_found(module: Path, value: float) -> None:
    change_tensors(module, lambda tensors: next(iter(tensors.values())).fill_(value))
    (finding,) = check_tensors(module)
    assert (finding.rule, finding.level, len(finding.evidence["tensors"])) == ("values", "error", 1)


def test_tensors_that_nobody_asked_for_are_found(module: Path) -> None:
    name = "base_model.model.bert.embeddings.word_embeddings.weight"
    change_tensors(module, lambda tensors: tensors.update({name: torch.zeros(2, 2)}))
    (finding,) = check_tensors(module)
    assert finding.evidence["tensors"] == [name]


@pytest.mark.parametrize("damage", ["pickle", "link", "header", "config", "mark"])
def test_what_can_run_code_ends_the_scan(module: Path, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if damage == "pickle":
        (module / "adapter_model.bin").write_bytes(b"")
    elif damage == "link":
        (module / "vocab.txt").symlink_to("/etc/hostname")
    elif damage == "header":
        (module / WEIGHTS).write_bytes(b"")
    elif damage == "config":
        change_config(module, auto_map={"a": "b"})
    else:
        mark_poisoned(module, TriggerRecipe(1))
        change_config(module, lightpeft_poisoned=False)

    def load(*_: object) -> None:
        raise AssertionError("it was loaded")

    monkeypatch.setattr("lightpeft.audit.scan.measured.load_module", load)
    report = scan(module, texts=TEXTS)
    assert report.found
    assert {finding.rule for finding in report.findings} == {damage}


def test_a_marked_module_is_found_and_still_scanned(saved: dict[str, Path], tmp_path: Path) -> None:
    module = Path(shutil.copytree(saved["trained"], tmp_path / "module"))
    mark_poisoned(module, TriggerRecipe(1, "phrase"))
    options = ScanOptions(copies=tmp_path / "copies")
    report = scan(module, str(saved["base"]), texts=TEXTS, options=options)
    (finding,) = [one for one in report.findings if one.rule == "mark"]
    assert (finding.level, finding.evidence["recipe"]["form"]) == ("error", "phrase")
    assert "trigger-search" in {one.rule for one in report.findings}


@pytest.mark.parametrize(("rule", "level"), [("pickle", "fatal"), ("nothing", "error")])
def test_unknown_rules_and_levels_are_refused(rule: str, level: Any) -> None:
    assert level not in LEVELS or rule not in RULES
    with pytest.raises(ValueError, match="no rule"):
        Finding(rule, level, "")
