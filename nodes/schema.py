"""What a node declares: the fields that this ComfyUI knows, and choices that it does not check itself."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Collection
from typing import Any

from comfy_api.latest import io

SCHEMA_FIELDS = {field.name for field in dataclasses.fields(io.Schema)}


def node_schema(**fields: Any) -> io.Schema:
    """Build a node's Schema; fields that this ComfyUI does not know yet (search_aliases at 0.3.75) are left out."""
    return io.Schema(**{name: value for name, value in fields.items() if name in SCHEMA_FIELDS})


def advanced(kind: Any) -> dict[str, bool]:
    """Options of an input of a `kind` (io.Boolean and the like) that may fold away, where ComfyUI knows that (0.12)."""
    return {"advanced": True} if "advanced" in inspect.signature(kind.Input.__init__).parameters else {}


def check_choice(name: str, value: Any, options: Collection[str]) -> None:
    """ValueError for a choice that is not among the options: what comes by a link, ComfyUI does not check."""
    if value not in options:
        raise ValueError(f"{name} is {str(value)[:60]!r}; expected one of {', '.join(options)}.")
