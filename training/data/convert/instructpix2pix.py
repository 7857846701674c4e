"""InstructPix2Pix as edit samples: the folders that its authors distribute, or parquet files, one pair a row.

<source>/seeds.json                     [["0000001", ["123456", ...]], ...], optional
<source>/0000001/prompt.json            {"input": caption, "edit": instruction, "output": caption of the result}
<source>/0000001/123456_0.jpg, _1.jpg   before and after, with any picture ending

*.parquet: original_image, edit_prompt, edited_image (bytes, or {"bytes"}); original_prompt, edited_prompt where present
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path, PurePath
from typing import Any

from kosmos_core.images import is_image_name

from ..cookers import read_json
from ..index import DataError
from ..sample_bounds import SampleBound
from ..sample_types import BadSample
from .conversion import Converted, folder_state, key_of, source_files
from .parts import edit_parts
from .row_files import Rows


class FolderEdits:
    """The data set as its authors distribute it."""

    def __init__(self, source: Path):
        self.source = source
        listed = source / "seeds.json"
        try:
            if listed.is_file():
                self.items = [
                    (str(name), [str(seed) for seed in seeds]) for name, seeds in json.loads(listed.read_bytes())
                ]
            else:
                prompts = (path for path in source_files(source) if path.name == "prompt.json")
                self.items = [(name, None) for name in sorted(p.parent.relative_to(source).as_posix() for p in prompts)]
        except (ValueError, TypeError, RecursionError) as error:
            raise DataError(f"{listed} is not a list of [name, [seed, ...]]: {error}.") from error
        if not self.items:
            raise DataError(f"{source} holds neither seeds.json nor folders with a prompt.json.")
        self._files = folder_state(source)

    def __len__(self) -> int:
        return len(self.items)

    def fingerprint(self) -> dict[str, Any]:
        return {"layout": "instructpix2pix", "source": str(self.source.resolve()), "content": self._files}

    def convert(self, number: int) -> Converted:
        name, seeds = self.items[number]
        if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
            raise BadSample("a name outside of the source")
        folder = self.source / name
        try:
            prompt = read_json((folder / "prompt.json").read_bytes())
        except OSError as error:
            raise BadSample("missing prompt.json") from error
        except BadSample as error:
            raise BadSample("bad prompt.json") from error
        images = {path.stem: path for path in sorted(folder.iterdir()) if is_image_name(path.name)}
        if seeds is None:
            seeds = sorted({name[:-2] for name in images if name.endswith(("_0", "_1")) and not name.startswith(".")})
        pairs, bound = [], SampleBound()
        for seed in seeds:
            with contextlib.suppress(OSError, KeyError):
                pairs.append(tuple(bound.read(images[f"{seed}_{moment}"]) for moment in (0, 1)))
        if not pairs:
            raise BadSample("missing picture")
        caption, edited = (str(prompt.get(name) or "") for name in ("input", "output"))
        lacks = ("picture of a pair",) * (len(seeds) - len(pairs))
        return Converted("", key_of(name), edit_parts(caption, prompt.get("edit"), pairs, edited), lacks)


class ParquetEdits:
    """The data set as parquet files."""

    def __init__(self, source: Path):
        columns = ("original_image", "edit_prompt", "edited_image", "original_prompt?", "edited_prompt?")
        self.rows = Rows(source, columns)

    def __len__(self) -> int:
        return len(self.rows)

    def fingerprint(self) -> dict[str, Any]:
        return {"layout": "instructpix2pix-parquet"} | self.rows.fingerprint()

    def convert(self, number: int) -> Converted:
        row = self.rows[number]
        pair = tuple(_bytes(row[column]) for column in ("original_image", "edited_image"))
        caption, edited = (row.get(name) or "" for name in ("original_prompt", "edited_prompt"))
        return Converted("", key_of(number), edit_parts(caption, row["edit_prompt"], [pair], edited))


def _bytes(value: Any) -> bytes:
    content = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(content, bytes):
        raise BadSample("missing picture")
    return content


def open_edits(source: Path) -> FolderEdits | ParquetEdits:
    """The converter that fits what is there."""
    folders = not source.is_file() and not any(path.suffix.lower() == ".parquet" for path in source_files(source))
    return FolderEdits(source) if folders else ParquetEdits(source)
