"""Names that come from a person or from data, before they become part of a path."""

from __future__ import annotations

import re

FORBIDDEN = re.compile(r'[\x00-\x1f<>:"|?*]')
LONGEST = 120
ALLOWED = (
    f"expected a file name of up to {LONGEST} characters such as my_dog or pets/dog, without a leading slash, '..' or "
    'any of <>:"|?*.'
)


def file_name_parts(name: str) -> list[str]:
    """The folders and the file of a name with slashes, none of which leads out of the folder that it is put in.

    Raises ValueError, with `ALLOWED` to be said, for a name that would, or that no file can have.
    """
    parts = [part.strip() for part in name.replace("\\", "/").split("/")]
    if FORBIDDEN.search(name) or any(part in ("", ".", "..") for part in parts) or len(name) > LONGEST:
        raise ValueError(ALLOWED)
    return parts
