"""Rows of .jsonl, .json and .parquet files by number, as dictionaries."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

from ..cookers import read_json
from ..index import DataError, index_dataset
from ..reader import Reader
from ..sample_types import BadSample
from .conversion import file_state, source_files

ENDINGS = (".parquet", ".jsonl", ".json")
PIECE = 8  # rows of a row group in memory at a time: it may hold all pictures of its file, or one for every row
PIECE_BYTES = 1 << 28  # of them: one value can be as large as its row group, and as all others of it


class Rows:
    """All rows of one file, or of all files of a folder, which are of one ending, in the order of their names.

    columns: what is read of a parquet file; a "?" at its end marks one that may be missing. A .json file holds a list.
    Each process that gets the rows opens the files itself. Raises DataError where there is nothing to read.
    """

    def __init__(self, source: Path, columns: tuple[str, ...] = ()):
        self.source, self.columns = source, columns
        self.files = _find(source)
        self.ending = self.files[0].suffix.lower()
        self._groups: list[tuple[int, int]] = []  # (file, row group) of parquet files
        try:
            counts = self._count()
        except (OSError, ValueError, RecursionError, pa.ArrowException) as error:
            raise DataError(f"{source} cannot be read: {error}.") from error
        self._starts = [0, *accumulate(counts)]
        self._open: tuple[int, _Forwards] | None = None  # the block that was read last

    @cached_property
    def _lines(self) -> Reader:
        return Reader(index_dataset(self.source), "text")

    def __len__(self) -> int:
        return self._starts[-1]

    def fingerprint(self) -> dict[str, Any]:
        return {"files": [file_state(path) for path in self.files]}

    def __getitem__(self, number: int) -> dict[str, Any]:
        """A row. Raises BadSample where it is no dictionary."""
        if self.ending == ".jsonl":
            return read_json(self._lines[number]["json"])
        block = bisect_right(self._starts, number) - 1
        offset = number - self._starts[block]
        if self._open is None or self._open[0] != block or offset < self._open[1].first:
            self._open = (block, _Forwards(self._read(block)))
        row = self._open[1].row(offset)
        if not isinstance(row, dict):
            raise BadSample("bad row")
        return row

    def _count(self) -> list[int]:
        """Rows in each block: a file, or a row group of a parquet file, which is what one reads at a time."""
        if self.ending == ".jsonl":
            return [len(index_dataset(self.source))]
        if self.ending == ".json":
            return [len(next(self._read(number))) for number in range(len(self.files))]
        counts = []
        for number, path in enumerate(self.files):
            metadata, size = parquet.read_metadata(path), path.stat().st_size
            if metadata.num_rows > size:  # the same row again takes no space; no list of pictures is like that
                raise ValueError(f"{path.name} claims {metadata.num_rows:,} rows in {size:,} bytes")
            self._check_columns(path, metadata.schema.to_arrow_schema().names)
            for group in range(metadata.num_row_groups):
                self._groups.append((number, group))
                counts.append(metadata.row_group(group).num_rows)
        return counts

    def _check_columns(self, path: Path, names: list[str]) -> None:
        missing = [column for column in self.columns if column not in names and not column.endswith("?")]
        if missing:
            raise ValueError(f"{path.name} has no column {missing[0]}, only {', '.join(names)}")

    def _read(self, block: int) -> Iterator[list]:
        """The rows of a block in pieces."""
        if self.ending == ".json":
            rows = json.loads(self.files[block].read_bytes())
            if not isinstance(rows, list):
                raise ValueError(f"{self.files[block].name} is not a list")
            yield rows
            return
        number, group = self._groups[block]
        with parquet.ParquetFile(self.files[number]) as file:
            columns = [
                name for name in (column.rstrip("?") for column in self.columns) if name in file.schema_arrow.names
            ]
            size = file.metadata.row_group(group).total_byte_size
            rows = max(1, min(PIECE, PIECE_BYTES // max(1, size)))
            for batch in file.iter_batches(rows, row_groups=[group], columns=columns):
                yield batch.to_pylist()


class _Forwards:
    """Rows that come in pieces, asked for in rising order; `first` is the first one that can still be had."""

    def __init__(self, pieces: Iterator[list]):
        self.pieces, self.first, self.rows = pieces, 0, []

    def row(self, number: int) -> Any:
        while number >= self.first + len(self.rows):
            self.first += len(self.rows)
            self.rows = next(self.pieces)
        return self.rows[number - self.first]


def _find(source: Path) -> list[Path]:
    """The file, or the folder's files, whose ending counts in any case. Raises DataError for files of two kinds."""
    if source.is_file() and source.suffix.lower() in ENDINGS:
        return [source]
    found: dict[str, list[Path]] = {ending: [] for ending in ENDINGS}
    for path in source_files(source) if source.is_dir() else ():
        found.get(path.suffix.lower(), []).append(path)
    kinds = [ending for ending in ENDINGS if found[ending]]
    if not kinds:
        raise DataError(f"{source} is or holds none of {', '.join(ENDINGS)}.")
    first = found[kinds[0]]
    for others in (found[ending] for ending in kinds[1:]):
        if other := next((path for path in others if path.suffix.lower() != ".json" or _begins_a_list(path)), None):
            raise DataError(
                f"{source} holds {first[0].name} and {other.name}, of which only one kind can be read. Give each a "
                "folder and a conversion of its own."
            )
    return sorted(first)


def _begins_a_list(path: Path) -> bool:
    """Whether a .json file may hold rows; beside rows of another kind it often is a description of them."""
    with path.open("rb") as file:
        return file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
