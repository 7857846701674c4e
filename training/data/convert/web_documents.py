"""MMC4 and OBELICS: web documents of text and pictures, as interleaved samples.

    mmc4     .jsonl: {"text_list": [...],
                      "image_info": [{"image_name", "raw_url", "matched_text_index", "matched_sim"}, ...]}
    obelics  .parquet: texts and images, two lists of one length, in each place either a text or a URL

Both name their pictures by URL and hold none. The pictures come from --pictures: a folder of files with MMC4's image
names, or img2dataset's tars, whose json tells the URL.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..sample_bounds import MOST_IMAGES, SampleBound
from ..sample_types import BadSample
from .conversion import Converted, key_of
from .image_store import ImageStore
from .parts import image_part, json_part
from .row_files import Rows

Segments = list[tuple[str, tuple[str | None, ...]]]  # (text, ()) or ("", names of a picture)


class WebDocuments:
    """Documents with those of their pictures that are in `images`; a document without any is left out.

    layout: mmc4 or obelics. least_similarity: MMC4's pictures whose CLIP similarity to their sentence is lower are left
    out.
    """

    def __init__(self, layout: str, source: Path, images: Path, work: Path, least_similarity: float = 0.0):
        self.layout, self.least_similarity = layout, least_similarity
        self.rows = Rows(source, ("texts", "images") if layout == "obelics" else ())
        self.images = ImageStore(images, work / "pictures.sqlite")

    def __len__(self) -> int:
        return len(self.rows)

    def fingerprint(self) -> dict[str, Any]:
        found = {"layout": self.layout, **self.images.fingerprint()}
        return found | {"least_similarity": self.least_similarity} | self.rows.fingerprint()

    def convert(self, number: int) -> Converted:
        row = self.rows[number]
        try:
            segments = self._mmc4(row) if self.layout == "mmc4" else self._obelics(row)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise BadSample("bad document") from error
        listed, parts, lacks, bound = [], {}, [], SampleBound()
        for text, names in segments:
            if not names:
                listed += [{"text": text}] * bool(text.strip())
                continue
            if bound.images == MOST_IMAGES:  # the rest cannot be there either, and need not be looked for
                raise BadSample("too many pictures")
            try:
                part = image_part(self.images.get(*names, bound=bound), f"{len(parts)}.")
            except BadSample as bad:
                lacks.append(bad.reason)
                continue
            parts |= part
            listed.append({"image": next(iter(part))})
        if not parts:
            raise BadSample("no picture of the document at hand")
        if len(parts) == len(listed):
            raise BadSample("no text")
        return Converted("", key_of(number), parts | json_part({"segments": listed}), tuple(lacks))

    def _mmc4(self, row: dict[str, Any]) -> Segments:
        """Each picture in front of the sentence that it was matched to."""
        before: dict[int, Segments] = {}
        for image in row["image_info"]:
            place = image["matched_text_index"]
            if not 0 <= place < len(row["text_list"]):
                raise ValueError("a picture matched to no sentence")
            if image.get("matched_sim", 1.0) >= self.least_similarity:
                before.setdefault(place, []).append(("", (image.get("image_name"), image.get("raw_url"))))
        segments: Segments = []
        for place, sentence in enumerate(row["text_list"]):
            segments += [*before.get(place, []), (str(sentence), ())]
        return segments

    def _obelics(self, row: dict[str, Any]) -> Segments:
        pairs = zip(row["texts"], row["images"], strict=True)
        return [("", (image,)) if image else (text or "", ()) for text, image in pairs]
