"""One contact sheet per subject: everything of it, to look at before believing a number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..base import contact_sheet as sheet
from .subjects import open_image

MARGIN, GAP, THUMBNAIL, SHOWN = 32, 6, 152, 152
COLUMNS = 2  # of prompts
ALARM = "#c2410c"


def subject_sheet(
    title: str, shown: Sequence[Path], records: Sequence[Mapping[str, Any]], root: Path, copy_threshold: float | None
) -> Image.Image:
    """The shown pictures on top, then every prompt with its results and their DINO and CLIP-T; likely copies stand out.

    `records` are the scored pictures of one subject, with paths relative to `root`.
    """
    prompts: dict[str, list[Mapping[str, Any]]] = {}
    for record in sorted(records, key=lambda record: record["path"]):
        prompts.setdefault(record["prompt"], []).append(record)
    across = max(3, *map(len, prompts.values()))
    block_width = across * (THUMBNAIL + GAP) - GAP
    columns = min(COLUMNS, len(prompts))
    width = columns * (block_width + MARGIN) - MARGIN
    note = "below each picture: DINO / CLIP-T"
    if copy_threshold is not None:
        note += f"; orange: foreground alike above {copy_threshold:.2f}, a likely copy"
    references = [sheet.framed(sheet.thumbnail(open_image(path), SHOWN, cover=True)) for path in shown]
    beside = width - len(references) * (SHOWN + GAP) - 2 * GAP
    told = [
        sheet.text(title, beside, 30),
        sheet.text(_summary(records), beside, 17, sheet.FAINT),
        sheet.text(note, beside, 14, sheet.FAINT),
    ]
    rows = []
    for prompt, found in prompts.items():
        results = sheet.row([_result(record, root, copy_threshold) for record in found], GAP)
        rows.append(sheet.column([sheet.text(prompt, block_width, 16, lines=1), sheet.padded(results, 0, 2)]))
    header = sheet.row([*references, sheet.padded(sheet.column(told), 2 * GAP, 0)], GAP)
    return sheet.page(sheet.column([header, sheet.rule(width), sheet.grid(rows, columns, MARGIN)], 24), MARGIN, "white")


def _result(record: Mapping[str, Any], root: Path, copy_threshold: float | None) -> sheet.Block:
    image = sheet.thumbnail(open_image(root / record["path"]), THUMBNAIL, cover=True)
    likely_copy = copy_threshold is not None and record.get("copy", 0) > copy_threshold
    if likely_copy:
        image = sheet.framed(image, ALARM, line=2)
    scores = f"{record['dino']:.2f} / {record['clip_t']:.2f}" if record.get("dino") is not None else ""
    return sheet.column([image, sheet.text(scores, THUMBNAIL, 13, ALARM if likely_copy else sheet.FAINT)], 3)


def _summary(records: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    for name, metric in (("DINO", "dino"), ("CLIP-I", "clip_i"), ("CLIP-T", "clip_t")):
        values = [record[metric] for record in records if record.get(metric) is not None]
        if values:
            parts.append(f"{name} {sum(values) / len(values):.3f}")
    return ", ".join([*parts, f"{len(records)} pictures"])
