"""Rows of .jsonl, .json and .parquet files by number, as dictionaries."""

from __future__ import annotations

import json
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

from ..index import DataError, index_dataset
from ..reader import Reader
from ..samples import BadSample
from .conversion import file_state


class Records:
    """All rows of one file, or of all files of one kind in a folder, in the order of their names.

    columns: the ones that are read of a parquet file, with a "?" those that may be missing. A .json file holds a list.
    Raises DataError where there is nothing to read.
    """

    def __init__(self, source: Path, columns: tuple[str, ...] = ()):
        self.source, self.columns = source, columns
        endings = (".parquet", ".jsonl", ".json")
        self.files = [source] if source.is_file() else []
        for ending in endings:
            if not self.files and source.is_dir():
                self.files = sorted(path for path in source.rglob(f"*{ending}") if not path.name.startswith("."))
        if not self.files or self.files[0].suffix not in endings:
            raise DataError(f"{source} is or holds none of {', '.join(endings)}.")
        self._groups: list[tuple[int, int]] = []  # (file, row group) of parquet files
        try:
            counts = self._count()
        except (OSError, ValueError, pa.ArrowException) as error:
            raise DataError(f"{source} cannot be read: {error}.") from error
        self._starts = [0, *accumulate(counts)]
        self._open: Any = None

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_open": None}

    def __len__(self) -> int:
        return self._starts[-1]

    def fingerprint(self) -> dict[str, Any]:
        return {"files": [file_state(path) for path in self.files]}

    def __getitem__(self, number: int) -> dict[str, Any]:
        """A row. Raises BadSample where it is no dictionary."""
        kind = self.files[0].suffix
        if kind == ".jsonl":
            self._open = self._open or Reader(index_dataset(self.source), "text")
            try:
                row = json.loads(self._open[number]["json"])
            except ValueError as error:
                raise BadSample("bad json") from error
        else:
            block = bisect_right(self._starts, number) - 1
            if self._open is None or self._open[0] != block:
                self._open = (block, self._read(block))
            row = self._open[1][number - self._starts[block]]
        if not isinstance(row, dict):
            raise BadSample("bad row")
        return row

    def _count(self) -> list[int]:
        """Rows in each block: a file, or a row group of a parquet file, which is what one reads at a time."""
        if self.files[0].suffix == ".jsonl":
            return [len(index_dataset(self.source))]
        if self.files[0].suffix == ".json":
            return [len(self._read(number)) for number in range(len(self.files))]
        counts = []
        for number, path in enumerate(self.files):
            metadata = parquet.read_metadata(path)
            self._check_columns(path, metadata.schema.to_arrow_schema().names)
            for group in range(metadata.num_row_groups):
                self._groups.append((number, group))
                counts.append(metadata.row_group(group).num_rows)
        return counts

    def _check_columns(self, path: Path, names: list[str]) -> None:
        missing = [column for column in self.columns if column not in names and not column.endswith("?")]
        if missing:
            raise ValueError(f"{path.name} has no column {missing[0]}, only {', '.join(names)}")

    def _read(self, block: int) -> list:
        if self.files[0].suffix == ".json":
            rows = json.loads(self.files[block].read_bytes())
            if not isinstance(rows, list):
                raise ValueError(f"{self.files[block].name} is not a list")
            return rows
        number, group = self._groups[block]
        with parquet.ParquetFile(self.files[number]) as file:
            wanted = [column.rstrip("?") for column in self.columns]
            return file.read_row_group(group, [name for name in wanted if name in file.schema_arrow.names]).to_pylist()
