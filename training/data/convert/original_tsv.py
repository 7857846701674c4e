"""The first implementation's tsv files as this package's samples: captions, edits, or compositional ones."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from ..cookers import COOKERS
from ..index import DataError, index_dataset
from ..reader import Reader
from ..sample_types import BadSample, CaptionSample, EditSample
from .conversion import Converted, file_state, key_of
from .parts import caption_parts, compositional_parts, edit_parts

PREFIX = "original-"
SETS = tuple(kind.removeprefix(PREFIX) for kind in COOKERS if kind.startswith(PREFIX))


class OriginalTsv:
    """The lines of one of the three sets."""

    def __init__(self, source: Path, which: str):
        self.kind, self.dataset = PREFIX + which, index_dataset(source)
        if self.dataset.ending != ".tsv":
            raise DataError(f"{source} holds no .tsv files.")

    @cached_property
    def _reader(self) -> Reader:
        return Reader(self.dataset, self.kind)

    def __len__(self) -> int:
        return len(self.dataset)

    def fingerprint(self) -> dict[str, Any]:
        files = [file_state(self.dataset.root / shard.name) for shard in self.dataset.shards]
        return {"layout": self.kind, "root": str(self.dataset.root), "files": files}

    def convert(self, number: int) -> Converted:
        sample = COOKERS[self.kind](self._reader[number])
        if isinstance(sample, CaptionSample):
            if not sample.caption.strip():
                raise BadSample("empty caption")
            parts = caption_parts(sample.image, sample.caption, {"width": sample.width, "height": sample.height})
        elif isinstance(sample, EditSample):
            parts = edit_parts(sample.caption, sample.instruction, sample.pairs)
        else:
            parts = compositional_parts(sample.caption, sample.target, sample.entities)
        return Converted("", key_of(number), parts)
