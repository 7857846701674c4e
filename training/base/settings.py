"""Fill a tree of dataclasses from YAML files and `--a.b value`, strictly: one sentence for every wrong key or value."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import re
import typing
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from .errors import ConfigError

set_parsing_settings(docstring_parse_attribute_docstrings=True)

Config = TypeVar("Config")
LEAF = object()  # stands for a value on the command line, which is not looked at here


def fill(
    kind: type[Config], arguments: list[str], program: str, description: str | None, default: dict | None = None
) -> Config:
    """An instance of the dataclass `kind` from `--config FILE` (repeatable) and `--key value`, later ones winning.

    Raises:
        ConfigError: a file, key or value is wrong; an unknown key is told the nearest valid one.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", action="append", default=[])
    for path in first.parse_known_args(arguments)[0].config:
        _check_keys(read_yaml(path), kind, "", path)
    parser = ArgumentParser(prog=program, exit_on_error=False, description=description)
    parser.add_argument("--config", action="config", help="A YAML file; may be given more than once.")
    parser.add_class_arguments(kind, default=default)
    for word in arguments:
        key = word[2:].split("=")[0]
        if word.startswith("--") and key not in ("config", "help", "print_config"):
            _check_path(key, kind)
    try:
        built = parser.instantiate(parser.parse_args(arguments))
        built.pop("config")
        return kind(**built)
    except (argparse.ArgumentError, ValueError, TypeError) as error:
        raise ConfigError(_sentence(str(error))) from None


def plain(value: Any) -> Any:
    """Dataclasses, paths and tuples as the dictionaries, strings and lists that YAML and JSON hold."""
    if dataclasses.is_dataclass(value):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def read_yaml(path: str) -> dict[str, Any]:
    """The keys and values of a configuration file; ConfigError where it has none."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {path}: cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise ConfigError(f"--config {path}: is no text file; give a YAML file of `key: value` lines.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"--config {path}: is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(values, dict):
        raise ConfigError(f"--config {path}: expected `key: value` lines, found {type(values).__name__}.")
    return values


def _sections(kind: Any) -> list[type]:
    """The dataclasses a field's type may hold."""
    if dataclasses.is_dataclass(kind):
        return [kind]
    return [found for argument in typing.get_args(kind) for found in _sections(argument)]


def _check_keys(values: Any, kind: Any, prefix: str, source: str) -> None:
    sections = _sections(kind)
    if dataclasses.is_dataclass(kind) and values is not LEAF and not isinstance(values, dict):
        first, found = dataclasses.fields(kind)[0].name, "nothing" if values is None else repr(values)
        raise ConfigError(
            f"{source}: '{prefix[:-1]}' holds {found}, expected keys below it, such as '{prefix}{first}'; leave it out "
            f"to keep its defaults."
        )
    if isinstance(values, list):
        for item in values:
            _check_keys(item, kind, prefix, source)
    if not sections or not isinstance(values, dict):
        return
    if typing.get_origin(kind) is dict or any(typing.get_origin(a) is dict for a in typing.get_args(kind)):
        for name, item in values.items():
            _check_keys(item, sections[0], f"{prefix}{name}.", source)
        return
    known = {name: hint for section in sections for name, hint in typing.get_type_hints(section).items()}
    for key, value in values.items():
        if key not in known:
            raise ConfigError(_unknown(f"{prefix}{key}", [f"{prefix}{name}" for name in known], source))
        _check_keys(value, known[key], f"{prefix}{key}.", source)


def _check_path(key: str, kind: type) -> None:
    nested: Any = LEAF
    for part in reversed(key.split(".")):
        nested = {part: nested}
    try:
        _check_keys(nested, kind, "", "command line")
    except ConfigError:
        given = key.split(".")
        known = [_named(pattern.split("."), given) for pattern in _all_keys(kind)]
        raise ConfigError(_unknown(key, known, "command line")) from None


def _named(pattern: list[str], given: list[str]) -> str:
    """A valid key with the names that a person chose in place of its asterisks."""
    own = [*given, *["NAME"] * len(pattern)]
    return ".".join(own[place] if part == "*" else part for place, part in enumerate(pattern))


def _unknown(key: str, known: list[str], source: str) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    return f"{source}: there is no key '{key}'; the nearest is '{near[0]}'."


def _all_keys(kind: type, prefix: str = "") -> list[str]:
    keys = []
    for name, hint in typing.get_type_hints(kind).items():
        keys.append(f"{prefix}{name}")
        below = f"{prefix}{name}.*." if typing.get_origin(hint) is dict else f"{prefix}{name}."
        for section in _sections(hint):
            keys += _all_keys(section, below)
    return keys


def _sentence(message: str) -> str:
    """jsonargparse's report of a wrong value as one sentence."""
    found = re.search(r'Parser key "([^"]+)":\s*(.*)', message, re.DOTALL)
    if not found:
        return " ".join(message.split())
    key, rest = found.groups()
    if file := re.search(r'Unable to load config "(.*?)"', rest):
        return f"{key}: {file[1]!r} is not valid, expected a key below it, such as --{key}.KEY VALUE, or a YAML file."
    value = re.search(r"Got value: (.*)", rest)
    expected = re.search(r"Expected an? (.*?)\.? Got value", rest, re.DOTALL)
    if value and expected:
        kind = re.sub(r"<class '(\w+)'>", r"\1", expected[1])
        kind = re.sub(r"typing\.Literal\[(.*?)\]", lambda names: "one of " + names[1].replace("'", ""), kind)
        return f"{key}: {value[1].strip()!r} is not valid, expected {' '.join(kind.split())}."
    return f"{key}: {' '.join(rest.split())}"
