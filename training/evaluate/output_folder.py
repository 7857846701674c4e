"""The folder of an evaluation: pictures and records that survive a kill at any moment.

    run.json              what was asked for, and digests of models and pictures; --resume insists on the same
    pictures/...png       each appears under its name only when complete
    generated-0.jsonl     a line per picture, one file for each process
    scores-0.jsonl        a line per scored picture
    scorer.json           digests of what scored them
A picture is made when its file is there; a line that was lost in a kill is written again from the job.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from PIL import Image

from kosmos_core.atomic import UNFINISHED, atomic_write

from ..base.content_digest import content_digest
from ..base.errors import ConfigError, TrainingStopped
from ..base.processes import ProcessGroup

LOCK = ".lock"


class OutputFolder:
    """Reads and writes the folder of one evaluation as process `rank` of several."""

    def __init__(self, path: str | Path, rank: int = 0) -> None:
        self.path, self.rank = Path(path), rank
        self._mended: set[str] = set()

    def start(
        self,
        settings: dict[str, Any],
        resume: bool,
        process_group: ProcessGroup,
        contents: Callable[[], dict[str, str]] = dict,
    ) -> None:
        """Begin, or go on with the same settings and the same content of models and pictures.

        Process 0 alone looks at the folder, because the others would see what it has just written. ConfigError, in
        every process, where the folder holds another evaluation.
        """
        problem = None
        if self.rank == 0:
            try:
                self._start(settings, resume, contents)
            except (ConfigError, OSError) as error:
                problem = str(error)
        problem = process_group.gather(problem)[0]
        if problem:
            raise ConfigError(problem)

    def _start(self, settings: dict[str, Any], resume: bool, contents: Callable[[], dict[str, str]]) -> None:
        record = self.path / "run.json"
        if not record.exists():
            if not resume and self.path.exists() and any(path.name != LOCK for path in self.path.iterdir()):
                raise ConfigError(f"--output: {self.path} holds other files; choose a new or empty folder")
            self._own()
            self.write("run.json", json.dumps({**settings, "contents": contents()}, indent=2) + "\n")
            return
        if not resume:
            raise ConfigError(
                f"--output: {self.path} already holds an evaluation; add --resume to go on with it, or choose "
                "another folder"
            )
        self._own()
        before = self.settings()
        recorded = before.pop("contents", None)
        settings = json.loads(json.dumps(settings))
        for key in sorted(before.keys() | settings.keys()):
            if before.get(key) != settings.get(key):
                raise ConfigError(
                    f"--resume: {self.path} was made with {key} = {before.get(key)!r}, now it is "
                    f"{settings.get(key)!r}; ask for the same, or choose another --output"
                )
        now = contents()
        if recorded is None:
            print(
                f"{self.path} does not record the content of models and pictures, as earlier releases did not: it is "
                "taken for granted that they are the same",
                file=sys.stderr,
            )
        for key in sorted(now if recorded is None else now.keys() & recorded.keys()):
            if recorded is not None and now[key] != recorded[key]:
                differ = "are not what they were" if key.startswith("the prompts") else "is not what it was"
                raise ConfigError(
                    f"--resume: {key} {differ} when the pictures in {self.path} were made; bring the earlier content "
                    "back, or choose another --output"
                )
        self.write("run.json", json.dumps({**settings, "contents": (recorded or {}) | now}, indent=2) + "\n")

    def _own(self) -> None:
        """Hold the folder as long as this object, or its process, lives; another command at it gets a sentence."""
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock = FileLock(self.path / LOCK)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise ConfigError(
                f"--output: another evaluation is writing to {self.path}; wait for it, or choose another folder"
            ) from None

    def settings(self) -> dict[str, Any]:
        """The settings that the pictures were made with; empty for pictures of other programs."""
        record = self.path / "run.json"
        if not record.exists():
            return {}
        try:
            return dict(json.loads(record.read_text()))
        except (ValueError, TypeError, RecursionError) as error:
            raise ConfigError(
                f"--output: {record} is no record of an evaluation ({error}); choose another folder"
            ) from error

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

    def digest(self, name: str) -> str:
        """The digest of one file."""
        return content_digest([self.path / name], [""])

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
                    with contextlib.suppress(
                        ValueError, LookupError, TypeError, RecursionError
                    ):  # a broken line is written again
                        record = json.loads(line)
                        found[record["path"]] = record
        return found

    def begin_scores(self, scorer: dict[str, str], process_group: ProcessGroup) -> None:
        """Scores of another scorer, or of other real pictures, are dropped, with all that was made from them.

        scorer: digests by the name that a person knows each by. Process 0 alone looks at the folder.
        """
        if self.rank == 0:
            record = self.path / "scorer.json"
            before = None
            with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
                before = dict(json.loads(record.read_text()))
            stale = list(self.path.glob("scores-*.jsonl"))
            if before != scorer:
                changed = sorted(key for key in scorer if (before or {}).get(key) != scorer[key])
                if any(path.stat().st_size for path in stale if path.is_file()):
                    what = changed[0] if before else "what scored them, which was not recorded,"
                    print(f"scoring all pictures anew: {what} may differ from what scored them before", file=sys.stderr)
                for path in (*stale, *(self.path / name for name in ("results.json", "table.md", "scores.jsonl"))):
                    path.unlink(missing_ok=True)
                shutil.rmtree(self.path / "sheets", ignore_errors=True)
                self.write("scorer.json", json.dumps(scorer, indent=2) + "\n")
        process_group.barrier()

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
