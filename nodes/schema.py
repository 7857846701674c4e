"""One place for what differs between ComfyUI releases in the declaration of a node."""

from __future__ import annotations

import dataclasses
from typing import Any

from comfy_api.latest import io

SCHEMA_FIELDS = {field.name for field in dataclasses.fields(io.Schema)}


def node_schema(**fields: Any) -> io.Schema:
    """Build a node's Schema; fields that this ComfyUI does not know yet (search_aliases at 0.3.75) are left out."""
    return io.Schema(**{name: value for name, value in fields.items() if name in SCHEMA_FIELDS})
