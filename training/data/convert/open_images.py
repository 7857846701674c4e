"""Open Images: the pictures of a CSV, upright, with what the CSV says of them, ready for data construction.

`ImageID,Subset,OriginalURL,OriginalLandingURL,License,...,Rotation`: Rotation is in degrees counter-clockwise and must
be applied; a picture that needs none keeps its bytes. The samples have no captions: `python -m training.construct`
makes them.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from ..decoding import decode
from ..index import DataError
from ..samples import BadSample
from .conversion import Converted, file_state
from .image_store import ImageStore, as_jpeg, checked


class OpenImagesConversion:
    """The rows of the CSV, read by their offsets: it has nine million."""

    def __init__(self, source: Path, images: Path, work: Path):
        self.source = source
        self.images = ImageStore(images, work / "pictures.sqlite")
        try:
            with source.open("rb") as file:
                self.columns = next(csv.reader([file.readline().decode("utf-8-sig")]), [])
                self.offsets = np.fromiter(_line_starts(file), np.int64)
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{source} cannot be read: {error}.") from error
        missing = [name for name in ("ImageID", "Rotation") if name not in self.columns]
        if missing:
            raise DataError(f"{source} has no column {missing[0]}: expected an Open Images CSV with its header.")

    def __len__(self) -> int:
        return max(len(self.offsets) - 1, 0)

    def fingerprint(self) -> dict[str, Any]:
        return {"layout": "openimages", "pictures": str(self.images.root.resolve()), "files": [file_state(self.source)]}

    def convert(self, number: int) -> Converted:
        start, stop = (int(offset) for offset in self.offsets[number : number + 2])
        with self.source.open("rb") as file:
            file.seek(start)
            line = file.read(stop - start).decode("utf-8", "replace")
        row = dict(zip(self.columns, next(csv.reader([line]), []), strict=False))
        identity, subset = row.get("ImageID", ""), row.get("Subset", "")
        if not identity:
            raise BadSample("bad row")
        content = self.images.get(f"{subset}/{identity}.jpg", f"{identity}.jpg", identity)
        rotation = _rotation(row.get("Rotation", ""))
        if rotation:
            ending, content = "jpg", as_jpeg(decode(content).rotate(rotation, expand=True))
        else:
            ending, content = checked(content)
        described = {
            "key": identity,
            "source": row.get("OriginalLandingURL") or row.get("OriginalURL") or "",
            "license": row.get("License", ""),
            "rotation_applied": rotation,
        }
        key = identity.replace(".", "_").replace("/", "_")
        return Converted("", key, {ending: content, "json": json.dumps(described, ensure_ascii=False).encode()})


def _line_starts(file):
    """Offsets of the lines from here on, and of the end. A quoted field may not hold a line break; theirs do not."""
    position = file.tell()
    for line in file:
        if line.strip():
            yield position
        position += len(line)
    yield position


def _rotation(value: str) -> int:
    """Degrees counter-clockwise; empty or "nan" is none. Raises BadSample for what is no quarter turn."""
    try:
        rotation = float(value or 0)
    except ValueError as error:
        raise BadSample("bad rotation") from error
    if rotation != rotation:
        return 0
    if rotation % 90:
        raise BadSample("bad rotation")
    return int(rotation) % 360
