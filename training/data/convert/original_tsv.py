"""The first implementation's tsv files as this package's samples: captions, edits, or compositional ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..index import DataError, index_dataset
from ..reader import Reader
from ..samples import BadSample, CaptionSample, EditSample
from ..tsv_cookers import ORIGINAL_COOKS
from .conversion import Converted
from .edits import edit_parts
from .image_store import checked

SETS = tuple(name.removeprefix("original-") for name in ORIGINAL_COOKS)


class OriginalLines:
    """The lines of one of the three sets."""

    def __init__(self, source: Path, which: str):
        self.which, self.dataset = which, index_dataset(source)
        if self.dataset.ending != ".tsv":
            raise DataError(f"{source} holds no .tsv files.")
        self._reader: Reader | None = None

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_reader": None}

    def __len__(self) -> int:
        return len(self.dataset)

    def fingerprint(self) -> dict[str, Any]:
        files = [[shard.name, shard.size, shard.modified] for shard in self.dataset.shards]
        return {"layout": f"original-{self.which}", "root": str(self.dataset.root), "files": files}

    def convert(self, number: int) -> Converted:
        self._reader = self._reader or Reader(self.dataset, f"original-{self.which}")
        sample = ORIGINAL_COOKS[f"original-{self.which}"](self._reader[number])
        key = f"{number:09d}"
        if isinstance(sample, CaptionSample):
            if not sample.caption.strip():
                raise BadSample("empty caption")
            ending, content = checked(sample.image)
            sizes = json.dumps({"width": sample.width, "height": sample.height})
            return Converted("", key, {ending: content, "txt": sample.caption.encode(), "json": sizes.encode()})
        if isinstance(sample, EditSample):
            return Converted("", key, edit_parts(sample.caption, sample.instruction, sample.pairs))
        ending, content = checked(sample.target)
        parts, entities = {ending: content}, []
        for place, entity in enumerate(sample.entities):
            ending, content = checked(entity.crop)
            parts[f"{place}.{ending}"] = content
            ending, content = checked(entity.on_white)
            parts[f"{place}.white.{ending}"] = content
            words = sample.caption[entity.start : entity.end]
            entities.append({"text": words, "span": [entity.start, entity.end]})
        described = {"caption": sample.caption, "entities": entities}
        return Converted("", key, parts | {"json": json.dumps(described, ensure_ascii=False).encode()})
