"""Read output shards back for tests."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def samples(folder: Path) -> dict[str, dict[str, bytes]]:
    """All samples of all shards: key -> ending -> content. A key that occurs twice fails."""
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.rglob("*.tar")):
        if ".work" in path.parts:
            continue
        keys = set()
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, ending = member.name.partition(".")
                keys.add(key)
                assert key not in found or key in keys - (found.keys() - keys), member.name
                parts = found.setdefault(key, {})
                assert ending not in parts, f"{member.name} is there twice"
                parts[ending] = tar.extractfile(member).read()
    return found


def described(sample: dict[str, bytes]) -> dict:
    return json.loads(sample["json"])


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def files(folder: Path) -> dict[str, bytes]:
    """Every finished file of an output folder by its relative name."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".work" not in path.parts
    }
