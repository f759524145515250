"""Signals end the command in one line, imports included, and are left alone where lightpeft is a library."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lightpeft import stopping
from lightpeft.cli.main import main

SIGNALS = [(signal.SIGINT, "interrupted", 130), (signal.SIGTERM, "terminated", 143)]


@pytest.fixture(autouse=True)
def _handlers_as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in stopping.ENDINGS}
    # A shell's background jobs begin with Ctrl-C ignored, and their children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def run_with_fake(module: str, code: str, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own in which importing `module` runs `code`."""
    (folder / module).mkdir(parents=True)
    (folder / module / "__init__.py").write_text(code, encoding="utf-8")
    path = os.pathsep.join([str(folder), *sys.path])
    return subprocess.run(
        [sys.executable, *words],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(("number", "word", "status"), SIGNALS)
def test_a_signal_while_importing(number: int, word: str, status: int, tmp_path: Path) -> None:
    code = f"import os, time; os.kill(os.getpid(), {int(number)}); time.sleep(60)"
    ended = run_with_fake("torch", code, tmp_path, "-m", "lightpeft", "anatomy", "a-model")
    assert (ended.returncode, ended.stdout, ended.stderr) == (status, "", f"{word}\n")


def test_a_library_leaves_signals_alone(tmp_path: Path) -> None:
    code = "import signal as s; print(s.getsignal(s.SIGINT) is s.default_int_handler); raise SystemExit"
    ended = run_with_fake("torch", code, tmp_path, "-c", "from lightpeft import cut")
    assert ended.stdout == "True\n"
    assert not stopping.is_command()


@pytest.mark.parametrize(("number", "word", "status"), SIGNALS)
def test_a_signal_in_a_verb_is_raised_once(number: signal.Signals, word: str, status: int) -> None:
    tidied = []

    def verb() -> None:
        try:
            os.kill(os.getpid(), number)
        finally:
            tidied.append(True)

    with pytest.raises(KeyboardInterrupt) as raised, stopping.raised_inside():
        verb()
    assert tidied
    assert isinstance(raised.value, stopping.Terminated) == (number == signal.SIGTERM)
    assert signal.getsignal(number) is stopping.end_at_once
    assert stopping.ENDINGS[number] == (word, status)


def test_a_library_that_makes_another_error_of_it() -> None:
    def library() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            raise ValueError("stopped") from None

    with pytest.raises(KeyboardInterrupt), stopping.raised_inside():
        library()


def test_an_ignored_signal_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stopping.raised_inside():
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_an_interrupted_verb_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(words: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lightpeft.cli.report.run", interrupted)
    assert main(["report", "x"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(
    ("words", "arguments", "expected"),
    [
        (["/bin/lightpeft", "train"], [], True),
        ([r"C:\Scripts\lightpeft.exe"], [], os.name == "nt"),
        (["/src/lightpeft/__main__.py"], [], True),
        (["-m"], ["python", "-m", "lightpeft", "train"], True),
        (["-m"], ["python", "-m", "pytest"], False),
        (["train.py"], ["python", "train.py", "-m", "x"], False),
        ([], [], False),
    ],
)
def test_what_is_the_command(
    words: list[str], arguments: list[str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(sys, "orig_argv", arguments)
    assert stopping.is_command() == expected
