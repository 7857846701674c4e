"""Routes that the pack adds to ComfyUI's own server."""

from __future__ import annotations

import sys
from typing import Any


def server_routes() -> Any:
    """ComfyUI's table of routes; None where the nodes run without a server."""
    instance = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    return None if instance is None else instance.routes


def json_response(value: Any, status: int = 200) -> Any:
    """An answer of the server; `server_routes` has to be there."""
    return sys.modules["server"].web.json_response(value, status=status)
