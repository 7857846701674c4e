"""Pictures on their way into a data set: checked, and found by name or URL where people keep them."""

from __future__ import annotations

import contextlib
import io
import json
import sqlite3
from pathlib import Path

from PIL import Image

from ..cookers import IMAGE_ENDINGS
from ..decoding import decode
from ..index import DataError, index_dataset
from ..reader import Reader
from ..samples import BadSample

KEPT = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}


def checked(content: bytes) -> tuple[str, bytes]:
    """A picture's ending and bytes, unchanged if it is a still JPEG, PNG or WebP, else its first frame as JPEG.

    Raises BadSample where it cannot be decoded whole.
    """
    image = decode(content)
    with contextlib.suppress(OSError), Image.open(io.BytesIO(content)) as opened:
        if opened.format in KEPT and getattr(opened, "n_frames", 1) == 1:
            return KEPT[opened.format], content
    return "jpg", as_jpeg(image)


def as_jpeg(image: Image.Image) -> bytes:
    """A picture as JPEG of high quality, without losing colour resolution."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95, subsampling=0)
    return file.getvalue()


class ImageStore:
    """Pictures by name: files of a folder, or samples of tars (by URL from their json, or by key).

    root: a folder of picture files with any sub-folders, or of tars as img2dataset writes them. table: where the list
    of what the tars hold is kept. Raises DataError if there is nothing.
    """

    def __init__(self, root: Path, table: Path):
        self.root, self.table = root, table
        if not root.is_dir():
            raise DataError(f"The picture folder {root} does not exist. Check --pictures.")
        self.dataset = index_dataset(root) if next(root.rglob("*.tar"), None) else None
        if self.dataset:
            self._list_tars()
        self._reader: Reader | None = None
        self._rows: sqlite3.Connection | None = None

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_reader": None, "_rows": None}

    def get(self, *names: str | None) -> bytes:
        """The encoded picture of the first name, path or URL that is there. Raises BadSample where none is."""
        for name in names:
            if name and (content := self._in_tars(name) if self.dataset else self._in_folder(name)) is not None:
                return content
        raise BadSample("picture not found")

    def _in_folder(self, name: str) -> bytes | None:
        path = self.root / name.lstrip("/")
        try:
            inside = path.resolve().is_relative_to(self.root.resolve())
            return path.read_bytes() if inside and path.is_file() else None
        except (OSError, ValueError):  # a URL is no file name
            return None

    def _in_tars(self, name: str) -> bytes | None:
        if self._reader is None:
            self._reader = Reader(self.dataset, "pictures")
            self._rows = sqlite3.connect(f"file:{self.table}?mode=ro&immutable=1", uri=True)
        for wanted in (name, Path(name).stem):
            found = self._rows.execute("select number from pictures where name = ?", (wanted,)).fetchone()
            if found:
                crude = self._reader[found[0]]
                return next((crude[ending] for ending in IMAGE_ENDINGS if ending in crude), None)
        return None

    def _list_tars(self) -> None:
        """Names and URLs of all samples, once; a table of other tars is made anew."""
        state = json.dumps([[shard.name, shard.size, shard.modified] for shard in self.dataset.shards])
        with contextlib.suppress(sqlite3.Error), sqlite3.connect(f"file:{self.table}?mode=ro", uri=True) as rows:
            if rows.execute("select tars from made_of").fetchone() == (state,):
                return
        self.table.parent.mkdir(parents=True, exist_ok=True)
        partial = self.table.with_suffix(".tmp")
        partial.unlink(missing_ok=True)
        reader = Reader(self.dataset, "pictures", _is_json)
        with sqlite3.connect(partial) as rows:
            rows.execute("create table pictures (name text primary key, number integer) without rowid")
            rows.execute("create table made_of (tars text)")
            for number in range(len(reader)):
                with contextlib.suppress(BadSample):
                    rows.executemany("insert or ignore into pictures values (?, ?)", _names(reader[number], number))
            rows.execute("insert into made_of values (?)", (state,))
        rows.close()
        partial.replace(self.table)


def _is_json(part: str) -> bool:
    return part == "json"


def _names(crude: dict, number: int) -> list[tuple[str, int]]:
    names = [crude["__key__"].rpartition("/")[2]]
    with contextlib.suppress(ValueError, KeyError, TypeError):
        names.append(json.loads(crude["json"])["url"])
    return [(name, number) for name in names if isinstance(name, str)]
