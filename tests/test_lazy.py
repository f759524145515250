"""What `import lightpeft` does not import, and what works all the same."""

import subprocess
import sys

import pytest

import lightpeft
import lightpeft.audit

HEAVY = (
    "torch",
    "transformers",
    "peft",
    "datasets",
    "accelerate",
    "sklearn",
    "scipy",
    "pandas",
    "matplotlib",
)
REGISTERED = (
    "from peft import PeftType, PEFT_TYPE_TO_CONFIG_MAPPING as known; assert PeftType.BOTTLENECK in known"
)


def python(*lines: str) -> str:
    """What a new interpreter prints that runs these lines.

    Raises:
        AssertionError: it fails; says how.
    """
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_lightpeft_imports_nothing_heavy() -> None:
    printed = python("import lightpeft, sys", f"print([name for name in {HEAVY} if name in sys.modules])")
    assert printed == "[]\n"


@pytest.mark.parametrize("package", [lightpeft, lightpeft.audit], ids=lambda package: package.__name__)
def test_every_public_name_is_there_and_listed(package: object) -> None:
    names = package.__all__  # type: ignore[attr-defined]
    assert set(names) <= set(dir(package))
    assert all(getattr(package, name) is not None for name in names)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'lightpeft' has no attribute 'Budgets'"):
        lightpeft.Budgets  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'Budgets'"):
        from lightpeft import Budgets  # noqa: F401


@pytest.mark.parametrize(
    "imports",
    [
        "import lightpeft, peft",
        "import peft, lightpeft",
        "import lightpeft, transformers.trainer",
        "from lightpeft import find_anatomy; import peft",
        "from lightpeft.checkpoint import load",
    ],
)
def test_peft_knows_bottleneck_adapters_whatever_is_imported_first(imports: str) -> None:
    python(
        imports,
        REGISTERED,
        "import inspect, peft, sys",
        "assert inspect.getsource(peft), 'it is the module that it would be without us'",
        "assert not any('lightpeft' in type(finder).__module__ for finder in sys.meta_path)",
    )


def test_rooms_below_the_adapters_do_not_import_peft() -> None:
    """Its import would import the adapters, which need these rooms."""
    rooms = ("anatomy", "wrapping", "edits", "files", "memory", "run_config")
    python(
        "import importlib, sys",
        f"for room in {rooms}:",
        "    importlib.import_module(f'lightpeft.{room}')",
        "    assert 'peft' not in sys.modules, room",
    )


def test_without_peft_nothing_is_in_the_way_of_its_own_error() -> None:
    python(
        "import sys; sys.path[:] = [path for path in sys.path if 'site-packages' not in path]",
        f"sys.path.insert(0, {str(lightpeft.__path__[0])!r}.removesuffix('/lightpeft'))",
        "import importlib.metadata; importlib.metadata.version = lambda name: '0'",
        "import lightpeft",
        "try: import peft",
        "except ModuleNotFoundError as error: assert error.name == 'peft'",
        "else: raise AssertionError",
    )
