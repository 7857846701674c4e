"""MMC4 and OBELICS: web documents of text and pictures. Both list pictures by address; the pictures come from beside.

    mmc4     .jsonl: {"text_list": [...],
                      "image_info": [{"image_name", "raw_url", "matched_text_index", "matched_sim"}, ...]}
    obelics  .parquet: texts and images, two lists of one length, in each place either a text or a URL

The pictures: a folder with MMC4's image names, or img2dataset's tars, whose json names the URL.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..samples import BadSample
from .conversion import Converted
from .image_store import ImageStore, checked
from .records import Records

Segments = list[tuple[str, tuple[str | None, ...]]]  # (text, ()) or ("", names of a picture)


class InterleavedDocuments:
    """Documents with those of their pictures that are at hand; a document without any is left out.

    layout: mmc4 or obelics. least_similarity: MMC4's pictures that fit their sentence worse (CLIP cosine) are left out.
    """

    def __init__(self, layout: str, source: Path, images: Path, work: Path, least_similarity: float = 0.0):
        self.layout, self.least_similarity = layout, least_similarity
        self.records = Records(source, ("texts", "images") if layout == "obelics" else ())
        self.images = ImageStore(images, work / "pictures.sqlite")

    def __len__(self) -> int:
        return len(self.records)

    def fingerprint(self) -> dict[str, Any]:
        found = {"layout": self.layout, "pictures": str(self.images.root.resolve())}
        return found | {"least_similarity": self.least_similarity} | self.records.fingerprint()

    def convert(self, number: int) -> Converted:
        row = self.records[number]
        try:
            segments = self._mmc4(row) if self.layout == "mmc4" else self._obelics(row)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise BadSample("bad document") from error
        listed, parts = [], {}
        for text, names in segments:
            if not names:
                listed += [{"text": text}] * bool(text.strip())
                continue
            try:
                ending, content = checked(self.images.get(*names))
            except BadSample:
                continue
            name = f"{len(parts)}.{ending}"
            parts[name] = content
            listed.append({"image": name})
        if not parts:
            raise BadSample("no picture of the document at hand")
        if len(parts) == len(listed):
            raise BadSample("no text")
        described = json.dumps({"segments": listed}, ensure_ascii=False)
        return Converted("", f"{number:09d}", parts | {"json": described.encode()})

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
