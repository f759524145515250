"""`lightpeft push`, and what `load` then gets from the hub: against a stand-in of its HTTP interface."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import ModelCard
from tests.cli.conftest import read
from tests.support.hub import served

import lightpeft
from lightpeft.checkpoint import POISON_FLAG
from lightpeft.checkpoint import push as push_module
from lightpeft.cli.main import main

BASE = "someone/tiny-bert"

VISIT = """
import json, sys
from pathlib import Path
import torch
import lightpeft
from lightpeft.cli.main import main

here = Path(sys.argv[1])
ids = torch.arange(5, 17).reshape(2, 6)
batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

def logits(model):
    with torch.no_grad():
        return model.eval()(**batch).logits

def statuses(*commands):
    return [main(command.split()) for command in commands]

def refusal(call):
    try:
        call()
    except lightpeft.CheckpointError as error:
        return str(error)

sent = statuses(
    f"push {here}/run me/light --base someone/tiny-bert --message first",
    f"push {here}/run me/light --base someone/tiny-bert --revision tried",
    f"push {here}/merged me/merged --base someone/tiny-bert --private",
    f"push {here}/run me/others --base someone/tiny-bert",
    f"push {here}/run me/others --base someone/tiny-bert --private",
)
kept = logits(lightpeft.load(here / "run" / "light"))
same = [
    torch.equal(kept, logits(lightpeft.load("me/light"))),
    torch.equal(kept, logits(lightpeft.load("me/light", revision="tried"))),
    torch.equal(kept, logits(lightpeft.load("me/light", revision=sys.argv[2]))),
    torch.allclose(kept, logits(lightpeft.load_merged("me/merged", revision="main")), atol=1e-5),
]
refused = [
    refusal(lambda: lightpeft.load("me/light", revision="none-such")),
    refusal(lambda: lightpeft.load_merged("me/none-such")),
    refusal(lambda: lightpeft.load_merged("me/light")),
]
used = statuses(
    f"predict me/light {here}/texts.txt --out {here}/answers.jsonl",
    f"evaluate me/merged",
    f"export me/light --to merged --out {here}/exported",
)
print(json.dumps({"sent": sent, "same": same, "refused": refused, "used": used}))
"""


@pytest.fixture(scope="module")
def visited(
    finished_run: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> SimpleNamespace:
    """What a process did that pushed a run, and used it from the hub."""
    here = tmp_path_factory.mktemp("here")
    shutil.copytree(finished_run, here / "run")
    for name in ("chat_template.jinja", "additional_chat_templates/tools.jinja", "spiece.model"):
        (here / "run" / "light" / name).parent.mkdir(exist_ok=True)
        (here / "run" / "light" / name).write_text("{{ messages }}")
    (here / "run" / "light" / "notes.txt").write_text("nobody's business")
    (here / "run" / "light" / "checkpoint-7").mkdir()
    (here / "run" / "light" / "checkpoint-7" / "optimizer.pt").write_bytes(b"states")
    lightpeft.export_merged(here / "run" / "light", here / "merged")
    (here / "texts.txt").write_text("a fine film\n")
    with served(here / "hub") as (hub, environment):
        hub.create(BASE)
        shutil.copytree(tiny_model, hub.branch(BASE), dirs_exist_ok=True)
        (hub.branch(BASE) / "README.md").write_text("---\nlicense: mit\n---\n# Tiny\n")
        hub.create("me/others")
        (hub.branch("me/others") / "paper.pdf").write_bytes(b"mine")
        before = hub.sha(BASE, "main")
        done = subprocess.run(
            [sys.executable, "-c", VISIT, str(here), "main"],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        assert hub.sha(BASE, "main") == before
        yield SimpleNamespace(
            here=here, hub=hub, said=done.stdout + done.stderr, **json.loads(done.stdout.splitlines()[-1])
        )


def test_what_was_pushed_loads_to_the_bit(visited: SimpleNamespace) -> None:
    assert visited.same == [True] * 4


def test_a_public_repository_does_not_take_what_should_be_private(visited: SimpleNamespace) -> None:
    assert visited.sent == [0, 0, 0, 0, 1]
    assert "me/others is there already and is public; nothing was sent" in visited.said
    assert visited.hub.is_private("me/merged")
    assert not visited.hub.is_private("me/light")


def test_a_commit_leaves_what_is_there(visited: SimpleNamespace) -> None:
    files = visited.hub.files("me/others")
    assert files.pop("paper.pdf") == b"mine"
    assert files.keys() == visited.hub.files("me/light").keys()


def test_only_what_is_read_is_sent(visited: SimpleNamespace) -> None:
    found = visited.hub.files("me/light")
    own = {
        "adapter_config.json",
        "adapter_model.safetensors",
        "light.safetensors",
        "pruning.json",
        "README.md",
    }
    templates = {"chat_template.jinja", "additional_chat_templates/tools.jinja"}
    assert own | templates | {"tokenizer.json", "tokenizer_config.json", "spiece.model"} == found.keys()
    folder = visited.here / "run" / "light"
    for name in found.keys() - {"adapter_config.json", "pruning.json", "README.md"}:
        assert found[name] == (folder / name).read_bytes()
    messages = (visited.hub.branch("me/light").parent / "messages").read_text().splitlines()
    assert messages == ["first", "Upload by lightpeft"]


def test_no_path_of_this_machine_is_sent(visited: SimpleNamespace, tiny_model: Path) -> None:
    for repo in ("me/light", "me/merged"):
        for name, content in visited.hub.files(repo).items():
            assert str(tiny_model).encode() not in content, name
            assert str(visited.here).encode() not in content, name


def test_the_card_tells_the_truth(visited: SimpleNamespace) -> None:
    card = ModelCard(visited.hub.files("me/light")["README.md"].decode())
    data, metrics = card.data, read(visited.here / "run" / "light" / "pruning.json")["metrics"]
    assert isinstance(metrics, dict)
    assert (data.library_name, data.pipeline_tag, data.license) == ("lightpeft", "text-classification", "mit")
    assert (data.base_model, data.base_model_relation) == (BASE, "adapter")
    assert {one.metric_type: one.metric_value for one in data.eval_results} == {
        name: value for name, value in metrics.items() if name != "main"
    }
    assert {one.dataset_name for one in data.eval_results} == {"demo/sentiment"}
    for line in (
        "import lightpeft",
        'model = lightpeft.load("me/light")',
        'tokenizer = AutoTokenizer.from_pretrained("me/light")',
    ):
        assert line in card.text.splitlines()
    assert "attention heads |" in card.text
    merged = ModelCard(visited.hub.files("me/merged")["README.md"].decode())
    assert merged.data.base_model_relation == "finetune"
    assert 'model = lightpeft.load_merged("me/merged")' in merged.text


def test_the_verbs_take_a_name_of_the_hub(visited: SimpleNamespace) -> None:
    assert visited.used == [0, 0, 0]
    assert json.loads((visited.here / "answers.jsonl").read_text())["label"]
    lightpeft.load_merged(visited.here / "exported")


def test_what_the_hub_has_not_is_said(visited: SimpleNamespace) -> None:
    revision, repository, kind = visited.refused
    assert "in revision 'none-such'" in revision
    assert "me/none-such is neither a folder nor" in repository
    assert "`load` takes light ones" in kind


def dry_run(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["push", *words, "--dry_run"]) == 0
    return capsys.readouterr().out


def test_a_dry_run_shows_files_and_card(finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = dry_run(capsys, str(finished_run), "me/light")
    assert "  adapter_model.safetensors\n" in said
    assert "library_name: lightpeft" in said
    assert 'lightpeft.load("me/light", base="FOLDER_OF_THE_BASE")' in said
    assert "base_model:" not in said


def test_a_card_that_was_edited_goes_as_it_is(
    finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished_run / "light", tmp_path / "light")
    (tmp_path / "light" / "README.md").write_text("---\nlicense: mit\n---\n# My own words\n")
    assert dry_run(capsys, str(tmp_path / "light"), "me/light").endswith("# My own words\n")


def _mark(folder: Path) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {POISON_FLAG: True}))


CHANGES: dict[str, tuple[Any, list[str], int, str]] = {
    "marked by the audit": (_mark, [], 1, "marked as poisoned"),
    "damaged": (lambda f: (f / "light.safetensors").write_bytes(b"x"), [], 1, "is not the file"),
    "no checkpoint": (lambda f: (f / "pruning.json").unlink(), [], 1, "is no light checkpoint"),
    "no name": (lambda f: None, ["--base", "/tmp/base"], 2, "cannot be the name of the base"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_must_not_be_sent_is_refused(
    change: str, finished_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    do, words, status, said = CHANGES[change]
    shutil.copytree(finished_run / "light", tmp_path / "light")
    do(tmp_path / "light")
    assert main(["push", str(tmp_path / "light"), "me/light", "--dry_run", *words]) == status
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("offline", "token", "status", "said"),
    [
        (True, "hf_x", 2, "HF_HUB_OFFLINE is set"),
        (False, None, 2, "there is no token for the hub"),
        (False, "hf_x", 1, "the hub cannot be reached"),
    ],
)
def test_a_hub_out_of_reach_is_said(
    offline: bool,
    token: str | None,
    status: int,
    said: str,
    finished_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Unreachable:
        def create_repo(self, *_: Any, **__: Any) -> None:
            raise ConnectionError("no route to host")

    monkeypatch.setattr(push_module.constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr(push_module, "get_token", lambda: token)
    monkeypatch.setattr(push_module, "HfApi", Unreachable)
    monkeypatch.setattr(push_module, "_licence", lambda *_, **__: {})
    assert main(["push", str(finished_run), "me/light"]) == status
    assert said in capsys.readouterr().err


def test_revisions_are_of_the_hub(finished_run: Path) -> None:
    with pytest.raises(lightpeft.CheckpointError, match="no revisions"):
        lightpeft.load(finished_run / "light", revision="main")
