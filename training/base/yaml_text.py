"""YAML of unknown origin as plain values, with one kind of error and a bound on what aliases may repeat."""

from __future__ import annotations

from typing import Any

import yaml

MOST_VALUES = 1_000_000  # with what aliases stand for written out: nine lines of them can say a billion


def load_yaml(text: str) -> Any:
    """The value of one YAML document. Raises ValueError, in one line, whatever is wrong with it."""
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        _written_out(node, {})
        return None if node is None else loader.construct_document(node)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    except Exception as error:  # PyYAML looks `!!bool x` up in a table, and indexes the empty text of `!!int ""`
        detail = f" ({error})" if isinstance(error, ValueError) else ""
        raise ValueError(f"one of its values is not what its tag or form says{detail}") from error


def _refuse_key_twice(node: yaml.MappingNode) -> None:
    """PyYAML takes the last of two lines with one key and says nothing; YAML 1.2 (3.2.1.3) wants keys to differ."""
    lines: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            line, name = key.start_mark.line + 1, (key.tag, key.value)
            if name in lines:
                raise yaml.YAMLError(f"'{key.value}' is given twice, in lines {lines[name]} and {line}; leave one out")
            lines[name] = line


def _written_out(node: yaml.Node | None, known: dict[int, int]) -> int:
    """Number of values in a node, each alias counted as what it stands for; an alias inside of that is refused."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = MOST_VALUES + 1  # while it is being counted: met again, it holds itself
        parts = node.value
        if isinstance(node, yaml.MappingNode):
            _refuse_key_twice(node)
            parts = [part for pair in parts for part in pair]
        total = 1
        for part in parts:
            total += _written_out(part, known)
            if total > MOST_VALUES:
                raise yaml.YAMLError(f"its aliases repeat more than {MOST_VALUES:,} values, or themselves")
        known[id(node)] = total
    return known[id(node)]
