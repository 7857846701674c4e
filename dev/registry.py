"""Whether pyproject.toml says all that ComfyUI's registry shows of the pack; the publishing workflow asks first.

python -m dev.registry      # exit status 1, and a sentence for each thing that lacks
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

from .install import ROOT

PLACEHOLDER = "OWNER"  # in place of the account whose repository this is, until that is public
SIDES = {"Icon": (400, 400), "Banner": (1260, 540)}  # pixels; the registry wants a square and 21:9


def faults(project: dict[str, Any], root: Path = ROOT) -> list[str]:
    """What keeps a pyproject.toml from being published, a sentence each."""
    comfy = project.get("tool", {}).get("comfy", {})
    addresses = {
        "project.urls.Repository": project["project"].get("urls", {}).get("Repository", ""),
        **{f"tool.comfy.{name}": comfy.get(name, "") for name in SIDES},
    }
    found = [
        f"{name} in pyproject.toml is {address!r}: write the public repository's account in place of {PLACEHOLDER}."
        for name, address in addresses.items()
        if not address.startswith("https://") or f"/{PLACEHOLDER}/" in address
    ]
    for name, sides in SIDES.items():
        path = root / "assets" / addresses[f"tool.comfy.{name}"].rpartition("/")[2]
        size = png_size(path)
        if size != sides:
            found.append(
                f"tool.comfy.{name} is assets/{path.name}, {size or 'no PNG'}: expected {sides[0]} x {sides[1]}."
            )
    return found


def png_size(path: Path) -> tuple[int, int] | None:
    """Width and height in the header of a PNG file; None where it is none."""
    start = path.read_bytes()[:24] if path.is_file() else b""
    if not start.startswith(b"\x89PNG\r\n\x1a\n") or len(start) < 24:
        return None
    width, height = struct.unpack(">II", start[16:24])
    return width, height


def main() -> int:
    """Print the faults; the exit status."""
    import tomllib  # of Python 3.11, on which publishing runs

    found = faults(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8")))
    print("\n".join(found) or "pyproject.toml is ready for the registry.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
