"""Packages that only some exports need."""

import importlib
from types import ModuleType

from lightpeft.errors import ConfigError


def need(*packages: str, extra: str) -> ModuleType:
    """Import packages of an extra; the last of them.

    Raises:
        ConfigError: one is not installed.
    """
    for package in packages:
        try:
            module = importlib.import_module(package)
        except ImportError as error:
            raise ConfigError(
                f'this export needs {package}, which is not installed: pip install "lightpeft[{extra}]"'
            ) from error
    return module
