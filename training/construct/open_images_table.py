"""Open Images' CSV as a table on disk: rotation, licence and origin of nine million pictures, looked up by id.

`ImageID,Subset,OriginalURL,OriginalLandingURL,License,AuthorProfileURL,Author,Title,...,Rotation`; Rotation is in
degrees counter-clockwise and often empty. The table is an SQLite file in the output folder, built once.
"""

from __future__ import annotations

import csv
import os
import sqlite3
from functools import lru_cache
from pathlib import Path

from ..base.errors import ConfigError
from .chunks import SourceImage
from .construct_config import ConstructConfig

NEEDED = ("ImageID", "Rotation")


def table_path(config: ConstructConfig) -> Path:
    return Path(config.output, ".work", "open-images.sqlite")


def build_table(config: ConstructConfig) -> None:
    """Build the table of `config.open_images`, unless it is there already.

    Raises:
        ConfigError: the file cannot be read or is no Open Images CSV.
    """
    source, target = Path(config.open_images), table_path(config)
    try:
        state = source.stat()
        mark = f"{state.st_size} {state.st_mtime_ns}"
        if target.is_file() and _mark(target) == mark:
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(f".{os.getpid()}.tmp")  # SQLite writes its file itself, so no `atomic_write`
        with source.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            missing = [name for name in NEEDED if name not in (rows.fieldnames or ())]
            if missing:
                raise ConfigError(f"open_images: {source} has no column {missing[0]}; expected an Open Images CSV.")
            _fill(partial, rows, mark)
        partial.replace(target)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"open_images: {source} cannot be read ({error}).") from error


def _mark(path: Path) -> str | None:
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as table:
        return table.execute("select licence from pictures where id = ''").fetchone()[0]


def _fill(path: Path, rows: csv.DictReader, mark: str) -> None:
    path.unlink(missing_ok=True)
    table = sqlite3.connect(path)
    with table:
        table.execute(
            "create table pictures (id text primary key, rotation integer, licence text, source text) without rowid"
        )
        table.execute("insert into pictures values ('', null, ?, '')", (mark,))
        table.executemany("insert or replace into pictures values (?, ?, ?, ?)", map(_row, rows))
    table.close()


def _row(row: dict[str, str]) -> tuple[str, int | None, str, str]:
    try:
        rotation = round(float(row["Rotation"])) % 360
    except (TypeError, ValueError):
        rotation = None
    if rotation is not None and rotation % 90:
        rotation = None
    origin = row.get("OriginalLandingURL") or row.get("OriginalURL") or ""
    return row["ImageID"], rotation, row.get("License") or "", origin


class OpenImagesTable:
    """Read access to the table."""

    def __init__(self, path: str):
        self.table = sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True)

    @staticmethod
    def beside(config: ConstructConfig) -> OpenImagesTable:
        return _opened(str(table_path(config)))

    def describe(self, image: SourceImage, identity: str) -> None:
        """Set rotation, licence and origin; a picture that is not listed is left out."""
        query = "select rotation, licence, source from pictures where id = ?"
        found = self.table.execute(query, (identity,)).fetchone()
        if found is None or not identity:
            image.problem = "picture: not in the Open Images CSV"
            return
        rotation, licence, source = found
        image.rotation = rotation
        image.licence = licence or image.licence
        image.source = source or image.source


@lru_cache(maxsize=1)
def _opened(path: str) -> OpenImagesTable:
    return OpenImagesTable(path)
