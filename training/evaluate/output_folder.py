"""The folder of an evaluation: pictures and records that survive a kill at any moment.

    run.json              what was asked for; --resume insists on the same
    pictures/...png       each appears under its name only when complete
    generated-0.jsonl     a line per picture, one file for each process
    scores-0.jsonl        a line per scored picture
A picture is made when its file is there; a line that was lost in a kill is written again from the job.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from kosmos_core.atomic import UNFINISHED, atomic_write

from ..base.errors import ConfigError, TrainingStopped
from ..base.processes import ProcessGroup


class OutputFolder:
    """Reads and writes the folder of one evaluation as process `rank` of several."""

    def __init__(self, path: str | Path, rank: int = 0) -> None:
        self.path, self.rank = Path(path), rank
        self._mended: set[str] = set()

    def start(self, settings: dict[str, Any], resume: bool, process_group: ProcessGroup) -> None:
        """Begin, or go on with the same settings.

        Process 0 alone looks at the folder, because the others would see what it has just written. ConfigError, in
        every process, where the folder holds another evaluation.
        """
        problem = None
        if self.rank == 0:
            try:
                self._start(settings, resume)
            except ConfigError as error:
                problem = str(error)
        problem = process_group.gather(problem)[0]
        if problem:
            raise ConfigError(problem)

    def _start(self, settings: dict[str, Any], resume: bool) -> None:
        record = self.path / "run.json"
        if not record.exists():
            if not resume and self.path.exists() and any(self.path.iterdir()):
                raise ConfigError(f"--output: {self.path} holds other files; choose a new or empty folder")
            self.write("run.json", json.dumps(settings, indent=2) + "\n")
            return
        if not resume:
            raise ConfigError(
                f"--output: {self.path} already holds an evaluation; add --resume to go on with it, or choose "
                "another folder"
            )
        before = json.loads(record.read_text())
        settings = json.loads(json.dumps(settings))
        for key in sorted(before.keys() | settings.keys()):
            if before.get(key) != settings.get(key):
                raise ConfigError(
                    f"--resume: {self.path} was made with {key} = {before.get(key)!r}, now it is "
                    f"{settings.get(key)!r}; ask for the same, or choose another --output"
                )

    def settings(self) -> dict[str, Any]:
        """The settings that the pictures were made with; empty for pictures of other programs."""
        record = self.path / "run.json"
        return json.loads(record.read_text()) if record.exists() else {}

    def write(self, name: str, content: str | bytes | Image.Image) -> Path:
        """Write a file so that it is complete or absent; TrainingStopped where it cannot be written."""
        target = self.path / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(target) as file:
                if isinstance(content, Image.Image):
                    content.save(file, format="PNG", compress_level=1)
                else:
                    file.write(content.encode() if isinstance(content, str) else content)
        except OSError as error:
            raise _refused(target, error) from error
        return target

    def append(self, kind: str, records: Iterable[dict[str, Any]]) -> None:
        """Add lines to this process's `kind` records; they are on the disk when the call returns."""
        path = self.path / f"{kind}-{self.rank}.jsonl"
        lines = "".join(json.dumps(record) + "\n" for record in records).encode()
        try:
            if kind not in self._mended:
                if path.is_file():  # a kill may have cut the last line short
                    os.truncate(path, _complete_bytes(path))
                self._mended.add(kind)
            with path.open("ab") as file:
                file.write(lines)
                file.flush()
                if path.is_file():
                    os.fsync(file.fileno())
        except OSError as error:
            raise _refused(path, error) from error

    def records(self, kind: str) -> dict[str, dict[str, Any]]:
        """All complete records of `kind` by picture, of every process that ever wrote here."""
        found = {}
        for path in sorted(self.path.glob(f"{kind}-*.jsonl")):
            if path.is_file():
                for line in path.read_bytes()[: _complete_bytes(path)].splitlines():
                    record = json.loads(line)
                    found[record["path"]] = record
        return found

    def clear_unfinished(self) -> None:
        """Remove the unfinished files of processes that were killed."""
        for pattern in (UNFINISHED, ".unfinished-*"):  # the second is the name of earlier versions
            for path in self.path.rglob(pattern):
                path.unlink(missing_ok=True)


def _complete_bytes(path: Path) -> int:
    """Length of a JSONL file up to its last complete line."""
    return path.read_bytes().rfind(b"\n") + 1


def _refused(path: Path, error: OSError) -> TrainingStopped:
    return TrainingStopped(
        f"{path} cannot be written: {error.strerror or error}; everything before it is kept: make room and run the "
        "same command with --resume"
    )
