"""Open Images: the pictures of a CSV, upright, with their origin and licence, as input of `training.construct`.

`ImageID,Subset,OriginalURL,OriginalLandingURL,License,...,Rotation`: a picture is turned by its Rotation, degrees
counter-clockwise; one that needs no turning keeps its bytes. The samples have no captions.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np

from ..decoding import decode
from ..index import DataError
from ..sample_types import BadSample
from .conversion import Converted, file_state, key_of
from .image_store import ImageStore
from .parts import as_jpeg, image_part, json_part


class OpenImagesRows:
    """The pictures that the rows of the CSV name. Rows are read by their offsets: there are nine million."""

    def __init__(self, source: Path, images: Path, work: Path):
        self.source = source
        self.images = ImageStore(images, work / "pictures.sqlite")
        try:
            with source.open("rb") as file:
                self.columns = next(csv.reader([file.readline().decode("utf-8-sig")]), [])
                self.offsets = np.fromiter(_line_starts(file), np.int64)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{source} cannot be read: {error}.") from error
        missing = [name for name in ("ImageID", "Rotation") if name not in self.columns]
        if missing:
            raise DataError(f"{source} has no column {missing[0]}: expected an Open Images CSV with its header.")

    def __len__(self) -> int:
        return max(len(self.offsets) - 1, 0)

    def fingerprint(self) -> dict[str, Any]:
        return {"layout": "openimages", **self.images.fingerprint(), "files": [file_state(self.source)]}

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
        turned = {"jpg": as_jpeg(decode(content).rotate(rotation, expand=True))} if rotation else image_part(content)
        described = {
            "key": identity,
            "source": row.get("OriginalLandingURL") or row.get("OriginalURL") or "",
            "license": row.get("License", ""),
            "rotation_applied": rotation,
        }
        return Converted("", key_of(identity), turned | json_part(described))


def _line_starts(file):
    """Offsets of the lines from here on, and of the end. Quoted fields with line breaks would be cut: it has none."""
    position = file.tell()
    for line in file:
        if line.strip():
            yield position
        position += len(line)
    yield position


def _rotation(value: str) -> int:
    """Degrees counter-clockwise, 0 for an empty value or "nan". Raises BadSample for what is no quarter turn."""
    try:
        rotation = float(value or 0)
    except ValueError as error:
        raise BadSample("bad rotation") from error
    if rotation != rotation:
        return 0
    if rotation % 90:
        raise BadSample("bad rotation")
    return int(rotation) % 360
