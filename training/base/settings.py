"""Fill a tree of dataclasses from YAML files and `--a.b value`, strictly: one sentence for every wrong key or value."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import functools
import json
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from jsonargparse import ArgumentParser, set_parsing_settings

from .errors import ConfigError
from .yaml_text import load_yaml

set_parsing_settings(docstring_parse_attribute_docstrings=True)

Config = TypeVar("Config")
LEAF = object()  # stands for a value on the command line, which is not looked at here


def fill(
    kind: type[Config],
    arguments: list[str],
    program: str,
    description: str | None,
    default: Callable[[], dict[str, Any]] = dict,
) -> Config:
    """An instance of the dataclass `kind` from `--config FILE` (repeatable) and `--key value`, later ones winning.

    default: values of what is not given; asked for once all keys are known to be right.

    Raises:
        ConfigError: a file, key or value is wrong; an unknown key is told the nearest valid one.
    """
    files = {path: read_yaml(path) for path in first_look(arguments).config}
    for path, values in files.items():
        _check_keys(values, kind, "", path)
    options = list(_options(arguments))
    for key, _ in options:
        _check_path(key, kind)
    for values in (*files.values(), *(_nested(*option) for option in options if option[1] is not None)):
        _check_nothing(values, kind)
    parser = _parser(kind, program, description, json.dumps(default()))
    try:
        built = parser.instantiate(parser.parse_args(arguments))
        built.pop("config")
        return kind(**built)
    except argparse.ArgumentError as error:
        raise ConfigError(
            _wrong_value([*files.values(), *(_nested(*option) for option in options)], kind)
            or " ".join(str(error).split())
        ) from None
    except (ValueError, TypeError) as error:
        raise ConfigError(" ".join(str(error).split())) from None


@functools.lru_cache(maxsize=16)
def _parser(kind: type, program: str, description: str | None, default: str) -> ArgumentParser:
    """The parser of `fill`, made once for the same defaults (JSON): reading a dataclass takes longer than parsing."""
    parser = ArgumentParser(prog=program, exit_on_error=False, description=description)
    parser.add_argument("--config", action="config", help="A YAML file; may be given more than once.")
    parser.add_class_arguments(kind, default=json.loads(default) or None)
    return parser


def first_look(arguments: list[str], *keys: str) -> argparse.Namespace:
    """The files of `--config` and the values of some keys, before it is known what the other keys may be.

    Raises:
        ConfigError: one of them has no value.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", action="append", default=[])
    for key in keys:
        parser.add_argument(f"--{key}")
    try:
        return parser.parse_known_args(arguments)[0]
    except argparse.ArgumentError as error:
        raise ConfigError(f"{error.argument_name}: {error.message}.") from None


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
        values = load_yaml(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {path}: cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise ConfigError(f"--config {path}: is no text file; give a YAML file of `key: value` lines.") from None
    except ValueError as error:
        raise ConfigError(f"--config {path}: is not valid YAML: {error}.") from None
    if not isinstance(values, dict):
        found = {type(None): "nothing", list: "a list"}.get(type(values), repr(values))
        raise ConfigError(f"--config {path}: expected `key: value` lines, found {found}.")
    return values


def _sections(kind: Any) -> list[type]:
    """The dataclasses a field's type may hold."""
    if dataclasses.is_dataclass(kind):
        return [kind]
    return [found for argument in typing.get_args(kind) for found in _sections(argument)]


def _is_table(kind: Any) -> bool:
    """Whether a field holds sections under names that a person chooses."""
    return typing.get_origin(kind) is dict or any(typing.get_origin(a) is dict for a in typing.get_args(kind))


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
    if _is_table(kind):
        for name, item in values.items():
            _check_keys(item, sections[0], f"{prefix}{name}.", source)
        return
    known = {name: hint for section in sections for name, hint in typing.get_type_hints(section).items()}
    for key, value in values.items():
        if key not in known:
            raise ConfigError(_unknown(f"{prefix}{key}", [f"{prefix}{name}" for name in known], source))
        _check_keys(value, known[key], f"{prefix}{key}.", source)


def _check_nothing(values: dict[str, Any], kind: type) -> None:
    """Refuse `key:` without a value where it has to have one: jsonargparse lets it pass as None."""
    for key, value, hint in _leaves(values, kind):
        if value in (None, "null") and hint not in (Any, str) and type(None) not in (hint, *typing.get_args(hint)):
            raise ConfigError(
                f"{key}: holds nothing, expected {_expected(key, hint)}; leave it out to keep its default."
            )


def _options(arguments: list[str]) -> Iterator[tuple[str, str | None]]:
    """Key and value of each `--key value` and `--key=value`; None where there is no value."""
    for word, following in zip(arguments, [*arguments[1:], None], strict=True):
        key, equals, value = word[2:].partition("=")
        if word.startswith("--") and key not in ("config", "help", "print_config"):
            yield key, value if equals else following


def _nested(key: str, value: Any) -> dict[str, Any]:
    """`a.b` and its value as a file would hold them."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def _check_path(key: str, kind: type) -> None:
    try:
        _check_keys(_nested(key, LEAF), kind, "", "command line")
    except ConfigError:
        given = key.split(".")
        known = [_named(pattern.split("."), given) for pattern in _all_keys(kind)]
        raise ConfigError(_unknown(key, known, "command line")) from None


def _named(pattern: list[str], given: list[str]) -> str:
    """A valid key with the names that a person chose in place of its asterisks."""
    own = [*given, *["NAME"] * len(pattern)]
    return ".".join(own[place] if part == "*" else part for place, part in enumerate(pattern))


def _unknown(key: str, known: list[str], source: str) -> str:
    section, _, name = key.rpartition(".")
    short = f"{section}.{''.join(word[:1] for word in name.split('_'))}".lstrip(".")  # optim.learning_rate is optim.lr
    near = [short] if short in known else difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    return f"{source}: there is no key '{key}'; the nearest is '{near[0]}'."


def _all_keys(kind: type, prefix: str = "") -> list[str]:
    keys = []
    for name, hint in typing.get_type_hints(kind).items():
        keys.append(f"{prefix}{name}")
        below = f"{prefix}{name}.*." if typing.get_origin(hint) is dict else f"{prefix}{name}."
        for section in _sections(hint):
            keys += _all_keys(section, below)
    return keys


def _wrong_value(given: list[dict[str, Any]], kind: type) -> str | None:
    """A sentence about the first value that its type refuses, found by trying each key on its own.

    jsonargparse's errors have no fields, only a text for its own console, so it is asked again for one value at a time.
    """
    for key, value, hint in (leaf for values in given for leaf in _leaves(values, kind)):
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--value", type=hint)
        try:
            parser.parse_args([f"--value={value}"]) if isinstance(value, str) else parser.parse_object({"value": value})
        except argparse.ArgumentError:
            return f"{key}: {value!r} is not valid, expected {_expected(key, hint)}."
    return None


def _expected(key: str, hint: Any) -> str:
    """A type as a person writes its values."""
    if dataclasses.is_dataclass(hint):
        return f"a key below it, such as --{key}.KEY VALUE, or a YAML file"
    if _is_table(hint):
        first = dataclasses.fields(_sections(hint)[0])[0].name if _sections(hint) else "VALUE"
        return f"keys below it, such as '{key}.NAME.{first}'"
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_expected(key, kind) for kind in typing.get_args(hint))
    if typing.get_origin(hint) is list and _sections(hint):
        return (
            "a list, each entry behind a dash: - {" + dataclasses.fields(_sections(hint)[0])[0].name + ": VALUE, ...}"
        )
    if hint is type(None):
        return "null"
    return str(hint) if typing.get_args(hint) else getattr(hint, "__name__", str(hint))


def _leaves(values: Any, kind: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Key, value and type of everything that is no section of its own; keys are known to be right."""
    sections = _sections(kind)
    if not isinstance(values, dict) or not sections or typing.get_origin(kind) is list:
        yield prefix, values, kind
    elif _is_table(kind):
        for name, item in values.items():
            yield from _leaves(item, sections[0], f"{prefix}.{name}")
    else:
        hints = {name: hint for section in sections for name, hint in typing.get_type_hints(section).items()}
        for name, item in values.items():
            yield from _leaves(item, hints[name], f"{prefix}.{name}" if prefix else name)


def as_typed(message: str, arguments: Sequence[str]) -> str:
    """A sentence that begins with a key, with the flag in its place where the person gave the key as one."""
    key = message.partition(":")[0]
    typed = any(argument == f"--{key}" or argument.startswith(f"--{key}=") for argument in arguments)
    return f"--{message}" if typed else message
