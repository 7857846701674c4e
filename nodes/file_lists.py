"""Names of files in ComfyUI's model folders, whatever happens to the folders while ComfyUI runs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection

import folder_paths


def listed_files(kind: str) -> list[str]:
    """Names of the files in the model folders `kind`; a folder that is gone or cannot be read holds none.

    ComfyUI remembers its lists by the folders' dates and fails where a remembered folder has been deleted since: the
    list of all nodes would fail with it.
    """
    for _ in range(2):
        try:
            return folder_paths.get_filename_list(kind)
        except OSError:
            folder_paths.filename_list_cache.pop(kind, None)
    return []


def entries(kind: str) -> set[str]:
    """Names of everything that lies directly in the model folders `kind`."""
    found: set[str] = set()
    for folder in folder_paths.get_folder_paths(kind):
        with contextlib.suppress(OSError):
            found.update(os.listdir(folder))
    return found


def options(names: Collection[str], none: str) -> list[str]:
    """What a widget offers: the names, or where there is none the sentence `none`, so that it says why it is empty."""
    return sorted(names) or [none]


def shown(value: object) -> str:
    """A name as a message can show it: one line, not too long."""
    return "".join(char if char.isprintable() else "�" for char in str(value)[:130])
