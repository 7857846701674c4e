"""The pack's nodes in the tests' own process, beside the installed ComfyUI's classes but without its server."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from dev.install import COMFYUI_TREE, ROOT

PACK = "kosmos_g_in_process"


class Pack:
    """The pack as ComfyUI imports it, as a package of its own; `pack("nodes.conditioning")` is one of its modules."""

    def __init__(self, folder: Path) -> None:
        sys.path.append(str(COMFYUI_TREE))
        try:
            options = importlib.import_module("comfy.cli_args").args
            options.cpu, options.base_directory = True, str(folder)
            package = ModuleType(PACK)
            package.__path__ = [str(ROOT)]
            sys.modules[PACK] = package
            importlib.import_module(f"{PACK}.nodes")
        finally:
            sys.path.remove(str(COMFYUI_TREE))

    def __call__(self, module: str) -> Any:
        return importlib.import_module(f"{PACK}.{module}")
