"""Options from flags and `--config run.yaml` alike, by jsonargparse over functions and dataclasses."""

import inspect
import re
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from lightpeft.cli.quiet import quieten_transformers
from lightpeft.config import LightConfig, Preset, check_seed
from lightpeft.errors import ConfigError, did_you_mean

T = TypeVar("T")

Names = list[str] | str
"""Several names: `[a, b]`, `a,b`, or the only one."""

Seeds = list[int] | int
"""Several seeds, or the only one."""

set_parsing_settings(docstring_parse_attribute_docstrings=True)


def run_with_options(
    function: Callable[..., T], verb: str, arguments: Sequence[str], *, positional: bool = False
) -> T:
    """Call `function` with the options that `arguments` give.

    Its parameters are the options, its docstring their help. A preset, where `function` takes one, sets the
    defaults that other flags then change. With `positional`, required options are given without a name.

    Raises:
        ConfigError: an unknown option, or a value that is not of its kind.
    """
    parser = ArgumentParser(
        prog=f"lightpeft {verb}",
        description=(function.__doc__ or "").split("\n")[0],
        default_env=False,
        exit_on_error=False,
    )
    parser.add_argument("--config", action="config", help="YAML file with the same options.")
    parser.add_function_arguments(function, fail_untyped=True, as_positional=positional)
    words = _normalised(arguments, function, _kinds(parser))
    if "preset" in inspect.signature(function).parameters:
        parser.set_defaults(_preset_defaults(parser, _chosen_preset(words)))
    try:
        options = parser.instantiate(parser.parse_args(words))
    except ArgumentError as error:
        raise ConfigError(f"{_mistake(str(error), parser)} See lightpeft {verb} --help.") from error
    options.pop("config", None)
    quieten_transformers()
    return function(**options.as_dict() if hasattr(options, "as_dict") else options)


def with_first_as(flag: str, arguments: Sequence[str]) -> list[str]:
    """The arguments, where a first word without a name is the value of `flag`."""
    words = list(arguments)
    return [flag, *words] if words and not words[0].startswith("-") else words


def names_of(given: Names | None) -> tuple[str, ...]:
    """The names in an option that takes one or several.

    Raises:
        ConfigError: an empty name.
    """
    names = given.split(",") if isinstance(given, str) else (given or [])
    stripped = tuple(name.strip() for name in names)
    if not all(stripped):
        raise ConfigError(f"{given!r} has an empty name in it; give one or more names, as in a,b.")
    return stripped


def seeds_of(given: Seeds | None, default: Sequence[int]) -> list[int]:
    """The seeds of an option that takes one or several, or the default.

    Raises:
        ConfigError: none at all, one twice, or one that generators do not take.
    """
    if given is None:
        return list(default)
    seeds = [given] if isinstance(given, int) else given
    if not seeds or len(set(seeds)) != len(seeds):
        raise ConfigError(f"seeds is {given}; give one or more different numbers, as in 0,1.")
    for seed in seeds:
        check_seed("seeds", seed)
    return seeds


def existing_file(path: Path, what: str) -> Path:
    """`path`, if there is a file (or a pipe) to read.

    Raises:
        ConfigError: there is none.
    """
    if not path.exists() or path.is_dir():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise ConfigError(f"{path} {found}; give {what}.")
    return path


def _normalised(
    arguments: Sequence[str], function: Callable[..., object], kinds: dict[str, Any]
) -> list[str]:
    """`--train-limit` is `--train_limit`, `--json` is `--json=true`, `--seeds 0,1` is `--seeds [0,1]`."""
    flags = {f"--{p.name}" for p in inspect.signature(function).parameters.values() if p.annotation is bool}
    words: list[str] = []
    for position, word in enumerate(arguments):
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            name = "--" + name[2:].replace("-", "_")
        elif words and words[-1] in kinds:
            words.append(_bracketed(word, kinds[words[-1]]))
            continue
        following = arguments[position + 1] if position + 1 < len(arguments) else ""
        is_bare = name in flags and not equals and following not in ("true", "false")
        value = _bracketed(value, kinds[name]) if equals and name in kinds else value
        words.append(f"{name}=true" if is_bare else name + equals + value)
    return words


def _bracketed(value: str, kind: Any) -> str:
    """A list as it has to be written, of one that was written without brackets."""
    takes = _alternatives(kind)
    is_list = any(get_origin(one) is list for one in takes)
    if not is_list or value.startswith("[") or ("," not in value and len(takes) > 1 and _takes(value, takes)):
        return value
    return f"[{value}]"


def _takes(value: str, alternatives: Sequence[Any]) -> bool:
    """Whether a value without commas can be something else than a list."""
    return str in alternatives or value == "null" or (int in alternatives and value.lstrip("+-").isdigit())


def _kinds(parser: ArgumentParser) -> dict[str, Any]:
    """The type of every option, by its flag."""
    return {
        flag: kind
        for action in parser._actions
        if (kind := getattr(action, "_typehint", None)) is not None
        for flag in action.option_strings
    }


def _alternatives(kind: Any) -> tuple[Any, ...]:
    """The types that a value may have, but for None."""
    if get_origin(kind) in (Union, UnionType):
        return tuple(one for one in get_args(kind) if one is not NoneType)
    return (kind,)


_KEY = re.compile(r'Parser key "(?P<key>[^"]+)":')
_VALUE = re.compile(r"(?:Given value|Got value): (?P<value>.*)")
_WITHOUT_VALUE = re.compile(r"argument (?P<flag>--[^\s:/]+)\S*: expected one argument")
_UNKNOWN_FLAG = re.compile(r"unrecognized arguments: --(?P<name>[^\s=]+)")
_UNKNOWN_WORD = re.compile(r"unrecognized arguments: (?P<word>.*)")
_UNKNOWN_KEY = re.compile(r"(?:Option|Key|Group key) '(?P<key>[^']+)' is not (?:accepted|expected)")


def _mistake(message: str, parser: ArgumentParser) -> str:
    """What is wrong with the options, in a sentence of ours where the parser's would not help."""
    kinds = _kinds(parser)
    names = [flag.removeprefix("--") for flag in kinds]
    if found := _UNKNOWN_FLAG.match(message):
        return f"unknown option --{found['name']}.{did_you_mean(found['name'], names)}"
    if found := _UNKNOWN_KEY.search(message):
        return f"unknown option {found['key']!r} in the configuration.{did_you_mean(found['key'], names)}"
    if found := _WITHOUT_VALUE.match(message):
        return f"{found['flag']} needs a value."
    if found := _UNKNOWN_WORD.match(message):
        return (
            f"{found['word']!r} belongs to no option. Several values are one word, as in a,b; a value with "
            "spaces is quoted."
        )
    key, value = _KEY.search(message), _VALUE.search(message)
    if key and value:
        kind = kinds.get(f"--{key['key']}", _positional_kind(parser, key["key"]))
        return f"{key['key']} is {value['value']!r}; give {_wanted(kind)}."
    return " ".join(_KEY.sub(r"\g<key>:", message).removesuffix(".").split()) + "."


def _positional_kind(parser: ArgumentParser, name: str) -> Any:
    return next((getattr(a, "_typehint", None) for a in parser._actions if a.dest == name), None)


_WORDS = {
    int: "a whole number",
    float: "a number (1e-3; not nan)",
    bool: "true or false",
    dict: "a mapping, as in '{a: 1}'",
    Path: "a path",
}


def _wanted(kind: Any) -> str:
    """A type in words."""
    wanted = []
    for one in _alternatives(kind):
        origin = get_origin(one)
        if origin is Literal:
            wanted.append("one of " + ", ".join(map(str, get_args(one))))
        elif origin is list:
            wanted.append(f"a list such as '[a, b]' or a,b, each {_wanted(get_args(one)[0])}")
        else:
            wanted.append(_WORDS.get(origin or one, "a text" if one is str else "another value"))
    return ", or ".join(wanted)


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
