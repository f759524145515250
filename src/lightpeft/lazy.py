"""Imports that wait: for a package's names until one is used, for a module until another is imported."""

import ast
import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def lazy_names(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` (PEP 562) of a package that imports its public names under `TYPE_CHECKING`.

    Those imports are the only list: type checkers and editors read it, and so does this.
    """
    module, homes = sys.modules[package], _imports_for_checkers(package)

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(homes[name]), name)
        setattr(module, name, value)
        return value

    return get, lambda: sorted({*vars(module), *homes})


def import_after(first: str, then: str) -> None:
    """Import the module `then` once `first` is imported: now if it is, else after somebody imports it."""
    if first in sys.modules:
        importlib.import_module(then)
    else:
        sys.meta_path.insert(0, _Follower(first, then))


class _Follower(MetaPathFinder):
    """Lets the other finders find `first`, and adds to what loading it does. Asking alone changes nothing."""

    def __init__(self, first: str, then: str) -> None:
        self.first, self.then = first, then

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.first:
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        found = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            vars(spec.loader)["exec_module"] = self._followed(spec.loader.exec_module)
        return spec

    def _followed(self, load: Callable[[ModuleType], None]) -> Callable[[ModuleType], None]:
        def load_both(module: ModuleType) -> None:
            load(module)
            sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self]
            importlib.import_module(self.then)

        return load_both


def _imports_for_checkers(package: str) -> dict[str, str]:
    """The module of every name that the package's source imports under `if TYPE_CHECKING`."""
    spec = sys.modules[package].__spec__
    source = spec.loader.get_source(package)  # type: ignore[union-attr]
    return {
        name.name: found.module or ""
        for block in ast.parse(source).body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for found in block.body
        if isinstance(found, ast.ImportFrom)
        for name in found.names
    }
