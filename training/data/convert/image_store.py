"""Pictures by name or URL, where people keep them: in folders, or in tars."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from ..cookers import find_image, read_json
from ..index import DataError, index_dataset
from ..reader import Reader
from ..sample_types import BadSample
from .conversion import folder_state, source_files

BUSY_SECONDS = 3600  # how long to wait for another process that lists the same tars


class ImageStore:
    """Pictures by name: samples of tars (by URL from their json, or by key), or files of a folder.

    root: a folder of picture files with any sub-folders, of tars as img2dataset writes them, or of both. table: where
    the list of what the tars hold is kept. Each process that gets a store opens the files itself. Raises DataError
    where there is no such folder.
    """

    def __init__(self, root: Path, table: Path):
        self.root, self.table = root, table
        if not root.is_dir():
            raise DataError(f"The picture folder {root} does not exist. Check --pictures.")
        self.dataset = index_dataset(root) if any(_tars(root)) else None
        if self.dataset:
            self._list_tars()

    @cached_property
    def _reader(self) -> Reader:
        return Reader(self.dataset, "pictures")

    @cached_property
    def _rows(self) -> sqlite3.Connection:
        return sqlite3.connect(f"file:{self.table}?mode=ro&immutable=1", uri=True)

    def fingerprint(self) -> dict[str, str]:
        """What the pictures depend on, for `Converter.fingerprint`."""
        return {"pictures": str(self.root.resolve()), "picture files": folder_state(self.root)}

    def get(self, *names: str | None) -> bytes:
        """The encoded picture of the first name, path or URL that is there. Raises BadSample where none is."""
        for name in names:
            if name and (content := (self.dataset and self._in_tars(name)) or self._in_folder(name)) is not None:
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
        for wanted in (name, Path(name).stem):
            found = self._rows.execute("select number from pictures where name = ?", (wanted,)).fetchone()
            if found:
                return find_image(self._reader[found[0]])
        return None

    def _list_tars(self) -> None:
        """Write the names and URLs of all samples to the table, unless it is of these very tars.

        In one transaction, so that a process that is killed here leaves no half list behind.
        """
        state = json.dumps([[shard.name, shard.size, shard.modified] for shard in self.dataset.shards])
        self.table.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(sqlite3.connect(self.table, BUSY_SECONDS, isolation_level=None)) as rows, rows:
            rows.execute("begin immediate")
            with contextlib.suppress(sqlite3.Error):
                if rows.execute("select tars from made_of").fetchone() == (state,):
                    return
            for table in ("pictures", "made_of"):
                rows.execute(f"drop table if exists {table}")
            rows.execute("create table pictures (name text primary key, number integer) without rowid")
            rows.execute("create table made_of (tars text)")
            reader = Reader(self.dataset, "pictures", lambda part: part == "json")
            for number in range(len(reader)):
                with contextlib.suppress(BadSample):
                    rows.executemany("insert or ignore into pictures values (?, ?)", _names(reader[number], number))
            rows.execute("insert into made_of values (?)", (state,))


def _tars(root: Path) -> Iterator[Path]:
    return (path for path in source_files(root) if path.suffix.lower() == ".tar")


def _names(crude: dict, number: int) -> list[tuple[str, int]]:
    names = [crude["__key__"].rpartition("/")[2]]
    with contextlib.suppress(BadSample, KeyError):
        names.append(read_json(crude["json"])["url"])
    return [(name, number) for name in names if isinstance(name, str)]
