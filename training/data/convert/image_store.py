"""Pictures by name or URL, where people keep them: in folders, or in tars."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from ..cookers import find_image, read_json
from ..index import DataError, index_dataset
from ..reader import Reader
from ..sample_bounds import SampleBound
from ..sample_types import BadSample
from .conversion import folder_state, source_files

_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can name half a letter; neither SQLite nor a URL can
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
        return sqlite3.connect(f"{self.table.resolve().as_uri()}?mode=ro&immutable=1", uri=True)

    def fingerprint(self) -> dict[str, str]:
        """What the pictures depend on, for `Converter.fingerprint`."""
        return {"pictures": str(self.root.resolve()), "picture files": folder_state(self.root)}

    def get(self, *names: str | None, bound: SampleBound | None = None) -> bytes:
        """The encoded picture of the first name, path or URL that is there.

        bound: counts the pictures of one sample. Raises BadSample where there is no such picture, or it is too much.
        """
        bound = bound or SampleBound()
        for name in filter(None, names):
            if self.dataset and (content := self._in_tars(name)) is not None:
                bound.add(len(content))
                return content
            if (content := self._in_folder(name, bound)) is not None:
                return content
        raise BadSample("picture not found")

    def _in_folder(self, name: str, bound: SampleBound) -> bytes | None:
        path = self.root / name.lstrip("/")
        try:
            inside = path.resolve().is_relative_to(self.root.resolve())
            return bound.read(path) if inside and path.is_file() else None
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
        try:
            with contextlib.closing(sqlite3.connect(self.table, BUSY_SECONDS, isolation_level=None)) as rows, rows:
                self._fill(rows, state)
        except sqlite3.Error as error:
            raise DataError(
                f"The list of pictures {self.table} cannot be read or written ({error}). Make room, or delete it, and "
                "give the same command again."
            ) from error

    def _fill(self, rows: sqlite3.Connection, state: str) -> None:
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
    return [(name, number) for name in names if isinstance(name, str) and not _SURROGATE.search(name)]
