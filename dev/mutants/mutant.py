"""What a mutant is: one small, plausible mistake in the product, and the tests that have to notice it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from ..install import ROOT


class MutantError(ValueError):
    """A mutant no longer fits the code, or was asked for by a name that nobody has; the text says which."""


@dataclass(frozen=True)
class Mutant:
    """`before`, which stands once in `file`, becomes `after`.

    `tests` are files or single tests, as pytest takes them; without them every test file is run that imports the
    mutated module. `equivalent` says why no test can notice it, where that is so. `author` is "outside" where somebody
    wrote it who did not write the tests.
    """

    promise: str  # what breaks, in a few words: its name in lists
    file: str
    before: str
    after: str
    tests: tuple[str, ...] = ()
    equivalent: str = ""
    author: str = ""

    @property
    def area(self) -> str:
        """core, nodes, construct, evaluate, training, emoji_world or dev."""
        folders = self.file.split("/")
        if folders[0] == "training" and folders[1] in ("construct", "evaluate"):
            return folders[1]
        return {"kosmos_core": "core"}.get(folders[0], folders[0])

    @property
    def name(self) -> str:
        """Short, and the same as long as the mutant is."""
        return f"{self.area}-{hashlib.sha256(repr((self.file, self.before, self.after)).encode()).hexdigest()[:6]}"

    def source(self) -> str:
        """The mutated file's text; MutantError where `before` does not stand in it exactly once."""
        try:
            text = (ROOT / self.file).read_text(encoding="utf-8")
        except OSError as error:
            raise MutantError(f"{self.name} ({self.promise}): there is no file {self.file}") from error
        if (count := text.count(self.before)) != 1 or self.before == self.after:
            raise MutantError(
                f"{self.name} ({self.promise}): {self.before!r} stands {count} times in {self.file}, expected once; "
                "write it as the code is today"
            )
        return text.replace(self.before, self.after)
