"""The first Kosmos-G implementation's tsv files: lines as this package's samples.

| kind                     | columns, separated by tabs                                                             |
| ------------------------ | -------------------------------------------------------------------------------------- |
| original-laion           | any, caption, picture, width, height                                                   |
| original-instructpix2pix | caption, instruction, then before and after for every seed                             |
| original-openimage       | caption, names of entities joined by commas, target, then per name: crop, crop on white |

Pictures are base64. That code's rules for finding the names in the caption are kept here, oddities included, so that a
data set prepared for it gives the token sequences that it gave there.
"""

from __future__ import annotations

import base64
import binascii
import re
import time
from typing import Any

import regex
from megatron.energon import basic_sample_keys, stateless
from megatron.energon.task_encoder.cooking import cooker

from ..base.text import decode_text
from .sample_types import BadSample, CaptionSample, CompositionalSample, EditSample, Entity, Filtered

COLOURS = "black blue brown cyan gold golden gray green grey orange pink purple red silver white yellow"
# Names are searched as regular expressions in each other, and those with several of these may take for ever.
REPEATS = "*+?{|"
SEARCH_SECONDS = 1.0  # all searches of one sample together; the original's own samples take some microseconds
MOST_NAMES, LONGEST_NAME = 500, 200
WORD_ENDS = " ,.!?;:)]}"


def _columns(crude: dict[str, Any], least: int) -> list[str]:
    try:
        # Stripping the line shifts the columns where the caption is empty; so did the original.
        columns = decode_text(crude["tsv"]).strip().split("\t")
    except (KeyError, ValueError) as error:
        raise BadSample("bad line") from error
    if len(columns) < least:
        raise BadSample("missing columns")
    return columns


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text)
    except (binascii.Error, ValueError) as error:
        raise BadSample("corrupt picture") from error


@stateless
@cooker
def cook_original_laion(crude: dict[str, Any]) -> CaptionSample:
    """A caption and its picture; sizes that are not whole numbers leave the sample out."""
    columns = _columns(crude, 5)
    if not (columns[3].isdigit() and columns[4].isdigit()):
        raise Filtered("size unknown")
    return CaptionSample(
        **basic_sample_keys(crude),
        caption=columns[1],
        image=_bytes(columns[2]),
        width=int(columns[3]),
        height=int(columns[4]),
    )


@stateless
@cooker
def cook_original_instructpix2pix(crude: dict[str, Any]) -> EditSample:
    """A caption, an instruction and the pairs of all seeds."""
    columns = _columns(crude, 4)
    images = [_bytes(column) for column in columns[2:]]
    pairs = list(zip(images[::2], images[1::2], strict=False))
    return EditSample(**basic_sample_keys(crude), caption=columns[0], instruction=columns[1], pairs=pairs)


@stateless
@cooker
def cook_original_openimage(crude: dict[str, Any]) -> CompositionalSample:
    """A caption with those of its entities that the original would have placed."""
    columns = _columns(crude, 3)
    caption, names = columns[0], columns[1].split(",")
    entities = []
    for number, start, end in placed_entities(caption, names):
        if len(columns) < 5 + 2 * number:
            raise BadSample("missing columns")
        crop, on_white = (_bytes(column) for column in columns[3 + 2 * number : 5 + 2 * number])
        entities.append(Entity(start, end, crop, on_white=on_white))
    return CompositionalSample(
        **basic_sample_keys(crude), caption=caption, entities=entities, target=_bytes(columns[2])
    )


def _found(pattern: str, text: str, deadline: float) -> bool:
    """Whether a pattern is found in a text; TimeoutError where that is not known by `deadline`."""
    if sum(map(pattern.count, REPEATS)) <= 1:
        return bool(re.search(pattern, text))
    re.compile(pattern)  # what it takes for an error, the original took for one
    return bool(regex.search(pattern, text, timeout=max(1e-3, deadline - time.monotonic())))


def placed_entities(caption: str, names: list[str]) -> list[tuple[int, int, int]]:
    """(number in `names`, start, end) of the names that are placed in the caption, in the order of placing.

    Raises BadSample where a name is no valid regular expression, which the original's search for it needed, or one
    whose search may have no end.
    """
    if len(names) > MOST_NAMES or max(map(len, names)) > LONGEST_NAME:
        raise BadSample("too many entity names")
    kept, deadline = [], time.monotonic() + SEARCH_SECONDS
    for number, name in enumerate(names):
        found = re.search(rf"\b{re.escape(name)}\b", caption, re.IGNORECASE)
        try:
            alone = sum(_found(rf"\b{name}\b", other, deadline) for other in names) <= 1
        except (re.error, regex.error, TimeoutError) as error:
            raise BadSample("bad entity name") from error
        if name and name not in COLOURS.split() and found and alone:
            kept.append((found.end(), number, name))
    placed, position = [], 0
    for _, number, name in sorted(kept, key=lambda entry: entry[0]):
        found = re.search(rf"\b{re.escape(name)}\b", caption[position:], re.IGNORECASE)
        if not found:
            continue
        start, end = position + found.start(), position + found.end()
        while end < len(caption) and caption[end] not in WORD_ENDS:
            end += 1
        placed.append((number, start, end))
        position = end
    return placed
