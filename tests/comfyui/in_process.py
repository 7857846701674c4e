"""The pack's nodes in the tests' own process, beside the installed ComfyUI's classes but without its server."""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from dev.install import COMFYUI_TREE, ROOT

PACK = "kosmos_g_in_process"


class Pack:
    """The pack as ComfyUI imports it, as a package of its own; `pack("nodes.conditioning")` is one of its modules.

    `imported` are the packages of which its modules hold something once they are imported, `import_seconds` is the
    processor time that this took beside ComfyUI's own modules.
    """

    def __init__(self, folder: Path) -> None:
        sys.path.append(str(COMFYUI_TREE))
        try:
            options = importlib.import_module("comfy.cli_args").args
            options.cpu, options.base_directory = True, str(folder)
            package = ModuleType(PACK)
            package.__path__ = [str(ROOT)]
            sys.modules[PACK] = package
            for module in ("comfy.sd", "comfy_api.latest", "folder_paths"):  # which ComfyUI has when it loads packs
                importlib.import_module(module)
            start = time.process_time()
            importlib.import_module(f"{PACK}.nodes")
            self.import_seconds = time.process_time() - start
            own = [module for name, module in sys.modules.items() if name.startswith(f"{PACK}.")]
            held = {value for module in own for value in vars(module).values() if isinstance(value, ModuleType | type)}
            homes = {value.__name__ if isinstance(value, ModuleType) else value.__module__ for value in held}
            self.imported = {name.partition(".")[0] for name in homes} - {PACK}
        finally:
            sys.path.remove(str(COMFYUI_TREE))

    def __call__(self, module: str) -> Any:
        return importlib.import_module(f"{PACK}.{module}")
