"""Names that come from a person or from data, before they become part of a path."""

from __future__ import annotations

import re

FORBIDDEN = re.compile(r'[\x00-\x1f\x7f<>:"|?*\ud800-\udfff]')
RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE)  # Windows has devices there
LONGEST = 120
LONGEST_PART = 200  # bytes: file systems take 255, and a number, an ending and a temporary name are added
ALLOWED = (
    f"expected a file name of up to {LONGEST} characters ({LONGEST_PART} bytes a part) such as my_dog or pets/dog, "
    "without a leading slash, '..', a dot at the end, any of <>:\"|?*, half characters or names that Windows keeps for "
    "devices, such as con."
)


def file_name_parts(name: str) -> list[str]:
    """The folders and the file of a name with slashes, none of which leads out of the folder that it is put in.

    Raises ValueError, with `ALLOWED` to be said, for a name that would, or that a file cannot have on some system.
    """
    parts = [part.strip() for part in name.replace("\\", "/").split("/")]
    if FORBIDDEN.search(name) or len(name) > LONGEST or not all(map(_is_allowed, parts)):
        raise ValueError(ALLOWED)
    return parts


def _is_allowed(part: str) -> bool:
    return bool(part) and not part.endswith(".") and not RESERVED.fullmatch(part) and len(part.encode()) <= LONGEST_PART
