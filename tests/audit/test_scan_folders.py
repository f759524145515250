"""Whole folders as people have them: clean modules pass, whatever lies beside, and bad ones do not."""

import gzip
import io
import json
import os
import pickle
import shutil
import struct
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support.received_modules import opinions, save_tiny_base, train_module

from lightpeft.audit.scan import ScanOptions, ScanReport, ScanTexts, scan

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TEXTS = ScanTexts.of("opinions", opinions(200))
MOST_SECONDS = 10
EXECUTES = b"cos\nsystem\n(S'true'\ntR"
"""What a pickle of protocol 0 runs before its reader sees that it has no end."""


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("folders")
    train_module(save_tiny_base(folder / "base"), folder / "module", poisoned=False)
    scan(folder / "module", str(folder / "base"), texts=TEXTS, options=ScanOptions(copies=folder / "copies"))
    return folder


@pytest.fixture
def module(room: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(room / "module", tmp_path / "module"))


def looked_into(folder: Path, room: Path) -> ScanReport:
    started = time.process_time()
    report = scan(folder, str(room / "base"), texts=TEXTS, options=ScanOptions(copies=room / "copies"))
    assert time.process_time() - started < MOST_SECONDS
    return report


def write(module: Path, **contents: str | bytes) -> Path:
    """Files by name; `__` is a dot, and `___` a folder."""
    for name, content in contents.items():
        path = module / name.replace("___", "/").replace("__", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return module


def hub_cache(module: Path) -> Path:
    """A snapshot whose files are links to the repository's blobs."""
    home = module.parent / "models--somebody--opinions"
    snapshot = home / "snapshots" / ("c" * 40)
    for folder in (home / "blobs", snapshot / "sub"):
        folder.mkdir(parents=True)
    (module / "sub").mkdir()
    (module / "sub" / "notes.md").write_text("notes")
    for number, path in enumerate(sorted(path for path in module.rglob("*") if path.is_file())):
        blob = home / "blobs" / f"{number:040x}"
        blob.write_bytes(path.read_bytes())
        link = snapshot / path.relative_to(module)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


def local_dir(module: Path) -> Path:
    """As `hf download --local-dir` leaves it."""
    place = ".cache/huggingface/"
    files: dict[str, str] = {f"{place}.gitignore": "*", f"{place}CACHEDIR.TAG": "Signature: 8a477f59"}
    for name in (CONFIG, WEIGHTS, "README.md"):
        files[f"{place}download/{name}.metadata"] = f"{'c' * 40}\n{'e' * 40}\n1700000000.0\n"
        files[f"{place}download/{name}.lock"] = ""
    for name, text in files.items():
        path = module / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return module


def trainer(module: Path) -> Path:
    """As a Trainer leaves its folder, a checkpoint in it."""
    shutil.copytree(module, module / "checkpoint-12")
    for folder in (module, module / "checkpoint-12"):
        for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "scaler.pt"):
            torch.save({"a": torch.ones(1)}, folder / name)
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": [{"loss": 1.0}]}))
    return write(module, runs___one___events__out__tfevents__1__host=b"\x18\x00\x00", train__log="step 1")


def tokenizer(module: Path) -> Path:
    return write(
        module,
        chat_template__jinja="{{ messages }}",
        tokenizer__model=b"\n\x0e\n\x05<unk>\x15\x00",
        vocab__json='{"a": 0}',
        merges__txt="#version: 0.2\na b\n",
        vocab__txt="cat\ndog\nRat\n(\n.\n",
        added_tokens__json='["<a>", "<b>"]',
        tokenizer_config__json='{"auto_map": null, "use_fast": true}',
    )


def pictures(module: Path) -> Path:
    png = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
    return write(module, assets___loss__png=png, LICENSE="Apache", results__csv="a,b\n", all__yaml="a: 1\n")


def large(module: Path) -> Path:
    """Sparse: logs and states of hundreds of megabytes."""
    for name in ("train.log", "optimizer.pt", "notes.txt", "trainer_state.json"):
        with (module / name).open("wb") as file:
            file.truncate(2**28)
    return module


def embeddings(module: Path) -> Path:
    """As PEFT saves a module whose base got new tokens, or was to be saved with its embeddings."""
    tensors = load_file(module / WEIGHTS)
    base = load_file(module.parent / "base.safetensors")
    name = "embeddings.word_embeddings.weight"
    tensors[f"base_model.model.bert.{name}"] = base[name]
    save_file(tensors, module / WEIGHTS, metadata={"format": "pt"})
    return module


def odd_names(module: Path) -> Path:
    for name in ("[/red].md", "line\nbreak.txt", "\x1b[2J.txt", "\udcff.txt"):
        (module / name).parent.mkdir(exist_ok=True)
        (module / name).write_text("text")
    return module


GOOD: dict[str, tuple[Callable[[Path], Path], int]] = {
    "as it was saved": (lambda module: module, 0),
    "a snapshot in the hub's cache": (hub_cache, 0),
    "downloaded to a folder": (local_dir, 0),
    "a trainer's folder": (trainer, 10),
    "a tokenizer's files": (tokenizer, 0),
    "pictures and tables": (pictures, 0),
    "large files beside": (large, 1),
    "with embeddings": (embeddings, 0),
    "names to stumble over": (odd_names, 0),
    "a script that nothing runs": (lambda module: write(module, train__py="import os"), 1),
}
"""Made from a clean module; with the number of warnings about files."""


@pytest.mark.parametrize("folder", GOOD)
def test_folders_of_a_clean_module_pass(folder: str, module: Path, room: Path) -> None:
    shutil.copy(room / "base" / "model.safetensors", module.parent / "base.safetensors")
    make, warnings = GOOD[folder]
    report = looked_into(make(module), room)
    assert report.not_scanned is None
    assert not report.found, report.findings
    assert "trigger-search" in {one.rule for one in report.findings}
    about_files = [one for one in report.findings if one.rule in ("file-type", "pickle", "link", "config")]
    assert [one.level for one in about_files] == ["warning"] * warnings
    json.dumps(report.to_dict(), ensure_ascii=False).encode()


def zipped(head: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data.pkl", EXECUTES)
    return head + buffer.getvalue()


def tarred(kind: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as file:
        info = tarfile.TarInfo("data.pkl")
        info.size = len(EXECUTES)
        file.addfile(info, io.BytesIO(EXECUTES))
    return buffer.getvalue()


def old_tar() -> bytes:
    """From before archives had a magic: the checksum is made anew without it."""
    block = bytearray(tarred(tarfile.USTAR_FORMAT))
    block[257:265] = bytes(8)
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block[:512]):06o}\0 ".encode()
    return bytes(block)


def linked(module: Path, name: str, target: str) -> Path:
    (module / name).unlink(missing_ok=True)
    (module / name).symlink_to(target)
    return module


def foreign_blob(module: Path) -> Path:
    """A link into the blobs of another repository."""
    snapshot = hub_cache(module)
    other = module.parent / "models--else--other" / "blobs"
    other.mkdir(parents=True)
    (other / "x").write_text("text")
    return linked(snapshot, "notes.txt", str(other / "x"))


def piped(module: Path, name: str) -> Path:
    (module / name).unlink(missing_ok=True)
    os.mkfifo(module / name)
    return module


def many_empty(module: Path) -> Path:
    entries = {
        f"base_model.model.x.{number}.lora_A.weight": {
            "dtype": "F32",
            "shape": [0, 4],
            "data_offsets": [0, 0],
        }
        for number in range(20_000)
    }
    text = json.dumps(entries).encode()
    (module / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text)
    return module


def one_sparse(module: Path) -> Path:
    size = 2**30
    entry = {"dtype": "F32", "shape": [2**14, 2**14], "data_offsets": [0, size]}
    text = json.dumps({"base_model.model.x.lora_A.weight": entry}).encode()
    with (module / WEIGHTS).open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + size)
    return module


def one_large(module: Path, name: str) -> Path:
    with (module / name).open("wb") as file:
        file.truncate(2**33)
    return module


def with_config(module: Path, **values: object) -> Path:
    config = json.loads((module / CONFIG).read_text())
    (module / CONFIG).write_text(json.dumps(config | values))
    return module


BAD: dict[str, tuple[Callable[[Path], Path], str | None]] = {
    "weights to unpickle": (lambda module: write(module, adapter_model__bin=EXECUTES), "pickle"),
    "weights to unpickle below": (lambda m: write(m, sub___pytorch_model__bin=b""), "pickle"),
    "protocol 0 in a text": (lambda module: write(module, notes__txt=pickle.dumps(["a", 1], 0)), "pickle"),
    "protocol 1 in a card": (lambda module: write(module, NOTES__md=pickle.dumps({"a": [1]}, 1)), "pickle"),
    "protocol 0 that calls": (lambda module: write(module, notes__txt=EXECUTES + b"."), "pickle"),
    "protocol 0 without an end": (lambda module: write(module, notes__txt=EXECUTES + b"\nmore"), "pickle"),
    "INST": (lambda module: write(module, notes__log=b"(S'true'\nios\nsystem\n."), "pickle"),
    "protocol 4 in a table": (lambda module: write(module, a__csv=pickle.dumps([1], 4)), "pickle"),
    "zip in a text": (lambda module: write(module, notes__txt=zipped()), "pickle"),
    "zip behind a picture": (lambda m: write(m, loss__png=zipped(b"\x89PNG\r\n\x1a\n")), "pickle"),
    "tar in JSON": (lambda module: write(module, data__json=tarred(tarfile.PAX_FORMAT)), "pickle"),
    "old tar in a text": (lambda module: write(module, notes__txt=old_tar()), "pickle"),
    "gzip in a model file": (lambda m: write(m, tokenizer__model=gzip.compress(EXECUTES)), "pickle"),
    "HDF5 in a text": (lambda module: write(module, notes__txt=b"\x89HDF\r\n\x1a\n"), "pickle"),
    "a program": (lambda module: write(module, lib__so=b"\x7fELF"), "pickle"),
    "a program in a picture": (lambda module: write(module, loss__png=b"\x7fELF"), "pickle"),
    "a script in a text": (lambda module: write(module, notes__txt="#!/bin/sh\n"), "pickle"),
    "a link out": (lambda module: linked(module, "notes.txt", "/etc/hostname"), "link"),
    "a link to weights out": (lambda module: linked(module, WEIGHTS, "/dev/zero"), "link"),
    "a link in a circle": (lambda module: linked(module, "notes.txt", "notes.txt"), "file-type"),
    "a link to nothing": (lambda module: linked(module, "notes.txt", "absent"), "file-type"),
    "a link to another repository": (foreign_blob, "link"),
    "a named pipe": (lambda module: piped(module, "tokenizer_config.json"), "file-type"),
    "a named pipe for weights": (lambda module: piped(module, WEIGHTS), "file-type"),
    "a named pipe for the card": (lambda module: piped(module, "README.md"), "file-type"),
    "code in a configuration": (lambda m: write(m, config__json='{"auto_map": {"A": "b.C"}}'), "config"),
    "code in its own": (lambda module: with_config(module, auto_map={"A": "b.C"}), "config"),
    "code in that of a form not supported": (
        lambda module: with_config(module, peft_type="VERA", auto_mapping={"parent_library": "evil"}),
        "config",
    ),
    "a configuration of nonsense": (lambda module: write(module, adapter_config__json="["), "config"),
    "a deep configuration": (lambda m: write(m, tokenizer_config__json="[" * 10**5), "config"),
    "a card of 8 GiB": (lambda module: one_large(module, "README.md"), "size"),
    "a configuration of 8 GiB": (lambda module: one_large(module, CONFIG), "size"),
    "a tokenizer's configuration of 8 GiB": (lambda m: one_large(m, "tokenizer_config.json"), "size"),
    "20,000 empty tensors": (many_empty, "header"),
    "a sparse tensor of 1 GiB": (one_sparse, None),
    "a named pipe for its configuration": (lambda module: piped(module, CONFIG), None),
}
"""Made from a clean module, with the rule of the finding; None: it cannot be scanned."""


@pytest.mark.parametrize("folder", BAD)
def test_bad_folders_do_not_pass(folder: str, module: Path, room: Path) -> None:
    make, rule = BAD[folder]
    report = looked_into(make(module), room)
    errors = {one.rule for one in report.findings if one.level == "error"}
    assert errors == ({rule} if rule else set())
    assert rule or report.not_scanned
