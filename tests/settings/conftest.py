"""One run a row, shared by its behaviours, and one other process that loads what the rows saved."""

import gc
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.conftest import REPO
from tests.settings.kinds import Example, Kind
from tests.settings.row import Result, Row, result_of


@pytest.fixture(scope="session", autouse=True)
def _small_heap() -> Iterator[None]:
    """Each run collects garbage several times, and looks at every object of torch and transformers then."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Kind], Path]:
    """The folder of a kind's base, written once."""
    folders: dict[int, Path] = {}

    def folder_of(kind: Kind) -> Path:
        if id(kind) not in folders:
            folders[id(kind)] = kind.save_base(tmp_path_factory.mktemp(kind.animal))
        return folders[id(kind)]

    return folder_of


@pytest.fixture(scope="module")
def result(
    request: pytest.FixtureRequest,
    bases: Callable[[Kind], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Result:
    """What training, cutting and saving of one row left."""
    row: Row = request.param
    return result_of(row, bases(row.kind), tmp_path_factory.mktemp("row"))


class OtherProcess:
    """A Python that imported lightpeft and nothing of the tests, and loads folders."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        script = REPO / "tests" / "settings" / "loads_folders.py"
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def logits(self, saved: Path, row: Row) -> Example:
        """What the model in `saved` computes there."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        inputs, outputs = self.folder / "inputs.safetensors", self.folder / "outputs.safetensors"
        save_file({key: value.contiguous() for key, value in row.kind.probe().items()}, inputs)
        precision = "bf16" if row.autocast else "as it is"
        print(saved, inputs, outputs, precision, sep="\t", file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline().strip()
        assert answer == "done", answer
        return load_file(outputs)

    def close(self) -> None:
        """Let it end."""
        self.process.communicate(timeout=60)


@pytest.fixture(scope="session")
def other_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OtherProcess]:
    """One for all rows."""
    process = OtherProcess(tmp_path_factory.mktemp("other"))
    yield process
    process.close()
