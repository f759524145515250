"""Options from flags and `--config run.yaml` alike, by jsonargparse over functions and dataclasses."""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from lightpeft.config import LightConfig, Preset

T = TypeVar("T")

set_parsing_settings(docstring_parse_attribute_docstrings=True)


def run_with_options(
    function: Callable[..., T], verb: str, arguments: Sequence[str], *, positional: bool = False
) -> T:
    """Call `function` with the options that `arguments` give.

    Its parameters are the options, its docstring their help. A preset, where `function` takes one, sets the
    defaults that other flags then change. With `positional`, required options are given without a name.
    """
    words = _normalised(arguments, function)
    parser = ArgumentParser(
        prog=f"lightpeft {verb}",
        description=(function.__doc__ or "").split("\n")[0],
        default_env=False,
    )
    parser.add_argument("--config", action="config", help="YAML file with the same options.")
    parser.add_function_arguments(function, fail_untyped=True, as_positional=positional)
    if "preset" in inspect.signature(function).parameters:
        parser.set_defaults(_preset_defaults(parser, _chosen_preset(words)))
    options = parser.instantiate(parser.parse_args(words))
    options.pop("config", None)
    return function(**options.as_dict() if hasattr(options, "as_dict") else options)


def _normalised(arguments: Sequence[str], function: Callable[..., object]) -> list[str]:
    """`--train-limit` is `--train_limit`, and a bare `--json` is `--json=true`."""
    flags = {f"--{p.name}" for p in inspect.signature(function).parameters.values() if p.annotation is bool}
    words = []
    for position, word in enumerate(arguments):
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            name = "--" + name[2:].replace("-", "_")
        following = arguments[position + 1] if position + 1 < len(arguments) else ""
        is_bare = name in flags and not equals and following not in ("true", "false")
        words.append(f"{name}=true" if is_bare else name + equals + value)
    return words


def _chosen_preset(arguments: Sequence[str]) -> Preset:
    """The preset among the flags or in the YAML file, before anything else is parsed."""
    chosen: Any = _flag(arguments, "--preset")
    if chosen is None and (path := _flag(arguments, "--config")) is not None:
        try:
            with Path(path).open(encoding="utf-8") as file:
                content = yaml.safe_load(file)
        except (OSError, yaml.YAMLError, UnicodeDecodeError):
            content = None
        chosen = content.get("preset") if isinstance(content, dict) else None
    return chosen if chosen in get_args(Preset) else "default"


def _flag(arguments: Sequence[str], name: str) -> str | None:
    for position, word in enumerate(arguments):
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
        if word == name and position + 1 < len(arguments):
            return arguments[position + 1]
    return None


def _preset_defaults(parser: ArgumentParser, preset: Preset) -> dict[str, Any]:
    values = LightConfig.preset(preset).to_dict()
    flat: dict[str, Any] = {}
    for group, fields in values.items():
        if isinstance(fields, dict):
            flat |= {f"{group}.{name}": value for name, value in fields.items()}
        else:
            flat[group] = fields
    known = {action.dest for action in parser._actions}
    return {name: value for name, value in flat.items() if name in known}
