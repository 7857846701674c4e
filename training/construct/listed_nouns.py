"""Read the nouns that a language model lists, in whatever way it writes lists.

One of JSON, a table, bulleted or numbered lines, lines of one noun each, or a paragraph with commas; with or without an
introduction, notes in brackets, explanations behind an item, and prose before or behind the list.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from .caption_words import word_count

MOST_WORDS = 5  # a longer "tag" is a clause
THINKING = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>|^.*</think(?:ing)?>", re.DOTALL)
LINK = re.compile(r"\[([^\[\]]*)\]\([^()]*\)")
FENCE = re.compile(r"^\s*```.*$", re.MULTILINE)
NUMBERED = r"(?:(?:noun|entity|object|item|thing|tag|\u540d\u8bcd|\u5b9e\u4f53|\u7269\u4f53)\s*)?"
NUMBER = rf"{NUMBERED}[(\uff08]?\d+\s*[.):\uff1a\u3001\uff0e\uff09]|[\u2460-\u2473]"
SIGN = r"[\u2190-\u21ff\u25a0-\u27bf\u2b00-\u2bff\U0001f300-\U0001faff][\ufe0f\u200d]?"  # arrows, ticks, emoji
BULLET = re.compile(
    rf"^\s*(?:[-*+\u2022\u00b7\u2023\u2013\u2014]\s*(?!\*)|(?:{SIGN})+\s*|(?:{NUMBER})\s*)", re.IGNORECASE
)
INLINE_NUMBER = re.compile(r"\s+(?:[(\uff08]?\d+[.)\u3001\uff09]\s+|[\u2460-\u2473]\s*)")
LETTER = re.compile(r"^\s*\(?(?:[a-z]|[ivx]+)[.)]\s+", re.IGNORECASE)
ARROW = re.compile(r"(?<=\w)\s*(?:->|=>|\u2192|\s=\s).*$")
NOTE = re.compile(r"\s*(?:\([^()]*\)|\[[^\[\]]*\]|\uff08[^\uff08\uff09]*\uff09|\u3010[^\u3010\u3011]*\u3011)")
SEPARATOR = re.compile(
    r"[,;|\t\u3001\uff0c\uff1b\u2022\u00b7]|\s/\s|\s+(?:and|&)\s+|\s+\+\s+"
    r"|(?<=[\u201d\u2019\u00bb\u300d\u300f\u300b])\s*(?=[\u201c\u2018\u00ab\u300c\u300e\u300a])"  # between two quoted
)
AND = re.compile(r"^(?:and|or|&)\s+", re.IGNORECASE)
DASH = re.compile(r"\s+[-\u2013\u2014]+\s+|\s*\u2014\s*")
COLON = re.compile(r"\s*[:\uff1a]\s*(?!//)")
QUOTES = "\"'`\u201c\u201d\u2018\u2019\u00ab\u00bb\u2039\u203a\u300c\u300d\u300e\u300f\u300a\u300b"
AROUND = QUOTES + " \t*_.!\u3002\uff01<>{}[]()"
SENTENCE_END = (".", "!", "?", "\u3002", "\uff01", "\uff1f")
LABEL = re.compile(
    r"noun|entit|object|item|thing|subject|answer|list|tag|output|result|here|caption|foreground|background"
    r"|\u540d\u8bcd|\u540d\u8a5e|\u5b9e\u4f53|\u5be6\u9ad4|\u7269\u4f53|\u7269\u9ad4|\u5bf9\u8c61|\u5217\u8868",
    re.IGNORECASE,
)
# "The nouns are dog and hat.": what stands before the list
LEAD = re.compile(
    r"^(?:the|these|here)\b[^,:]*?\b(?:nouns?|entit(?:y|ies)|objects?|things?|items?)\b[^,:]*?\b(?:are|is|includes?)\s+",
    re.IGNORECASE,
)
NAME_KEYS = ("name", "noun", "entity", "object", "text", "tag", "label", "word", "item")


def parse_list(answer: str) -> list[str] | None:
    """The items of a language model's list; None where the answer is prose.

    Text from "###" on, where a model goes on with a new task, is not read.
    """
    answer = THINKING.sub("", answer.lstrip("\ufeff"), count=1).strip()
    if answer.startswith("<think"):
        return None  # cut off before it came to the answer
    answer = LINK.sub(r"\1", FENCE.sub("", answer)).strip()
    heading, _, below = answer.partition("\n")
    if heading.startswith("#"):
        answer = below if below.strip() else heading.lstrip("#")
    answer = answer.split("###")[0].strip()
    if re.fullmatch(r"\([^()]*\)", answer):
        answer = answer[1:-1]
    written = _from_json(answer)
    if written is not None:
        return _cleaned(written)
    if "\n" not in answer:
        answer = answer.replace("\\n", "\n")  # written out
    lines = [line.strip() for line in answer.splitlines() if line.strip()]
    if len(lines) > 1:
        lines = [ARROW.sub("", line) for line in lines]
        if all(map(LETTER.match, lines)) and lines[0].lstrip("(")[0] in "aAiI":
            lines = [LETTER.sub("", line) for line in lines]
    if sum(line.startswith("|") for line in lines) > 1:
        return _cleaned(_from_table(lines))
    bulleted = [BULLET.sub("", line, count=1) for line in lines if BULLET.match(line)]
    if bulleted:
        return _cleaned(item for line in bulleted for item in _explained(line))
    return _from_lines(lines)


def _cleaned(items: Iterable[str]) -> list[str] | None:
    """Items without notes, quotes and marks; without those that are clauses, if not all are."""
    bare = [AND.sub("", _without_notes(BULLET.sub("", item, count=1)).strip(AROUND)).strip(AROUND) for item in items]
    return [item for item in bare if item and word_count(item) <= MOST_WORDS] or None


def _without_notes(text: str) -> str:
    """The text without what stands in brackets, unless all of it does."""
    bare = NOTE.sub("", text)
    return bare if any(map(str.isalnum, bare)) else text


def _from_json(answer: str) -> list[str] | None:
    """The names in the JSON, or in the brackets, that the answer consists of or announces; None where there is none."""
    start = re.search(r"[\[{]", answer)
    if not start or not re.fullmatch(r"|.*[:=\uff1a\n]\s*|\s*json\s*", answer[: start.start()], re.DOTALL):
        return None
    written = answer[start.start() :]
    try:
        value, _ = json.JSONDecoder().raw_decode(written)
    except (ValueError, RecursionError):
        inside = re.match(r"\[([^\[\]]*)\]", written)
        return SEPARATOR.split(inside[1]) if inside else None
    names = list(_names(value))
    return names if names or isinstance(value, list) else None


def _names(value: Any) -> Iterable[str]:
    """Names in a list of words or of objects, or in an object that holds lists, or is a list by its keys."""
    if isinstance(value, str):
        yield from SEPARATOR.split(value)
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, dict):
                named = [item[key] for key in NAME_KEYS if isinstance(item.get(key), str)]
                yield from named[:1] or [word for word in item.values() if isinstance(word, str)][:1]
            elif isinstance(item, str):
                yield item
            else:
                yield from _names(item) if isinstance(item, list) else ()
    elif isinstance(value, dict):
        lists = [item for key, item in value.items() if isinstance(item, list) and "background" not in key.lower()]
        words = ((key, item) for key, item in value.items() if isinstance(item, str))
        labelled = [item for key, item in words if key.isdigit() or LABEL.search(key)]
        if lists:
            yield from _names([name for item in lists for name in item])
        elif labelled:
            for item in labelled:
                yield from _names(item)
        else:
            yield from value


def _from_table(lines: list[str]) -> Iterable[str]:
    """The first column that holds words, without its heading."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    ruled = [number for number, row in enumerate(rows) if all(re.fullmatch(r"[:\s-]*", cell) for cell in row)]
    for row in rows[ruled[0] + 1 :] if ruled else rows:
        yield next((cell for cell in row if cell and not cell.strip(".").isdigit()), "")


def _explained(line: str) -> Iterable[str]:
    """The items of a bulleted line: what stands before a colon or dash, or behind it where that is a label."""
    line = _without_notes(line)
    name, colon, rest = _parted(line, COLON)
    if colon:
        if "background" in name.lower():
            return []
        line = rest if LABEL.search(name) and rest else name
    name, dash, rest = _parted(line, DASH)
    return [item for part in SEPARATOR.split(name if dash and rest else line) for item in INLINE_NUMBER.split(part)]


def _parted(line: str, mark: re.Pattern[str]) -> tuple[str, bool, str]:
    parts = mark.split(line, maxsplit=1)
    return (parts[0], True, parts[1]) if len(parts) == 2 and parts[0].strip(AROUND) else (line, False, "")


def _from_lines(lines: list[str]) -> list[str] | None:
    """Items of lines without bullets, up to where the model's next thought begins."""
    explained = len(lines) > 1 and all(_parted(line, COLON)[1] and _parted(line, COLON)[2] for line in lines)
    if explained and not LABEL.search(_parted(lines[0], COLON)[0]):  # "dog: an animal", line after line
        return _cleaned(_parted(line, COLON)[0] for line in lines)
    items: list[str] = []
    ended = False
    for line in map(_without_a_second_thought, lines):
        _, colon, rest = _parted(line, COLON)
        if colon and items:
            break  # "Background: beach", or the next caption of an invented task
        found = _split(rest if colon else LEAD.sub("", line))
        if not found and not items:
            continue  # an introduction alone on its line
        clause = any(word_count(item) > MOST_WORDS for item in found)
        ends = line.endswith(SENTENCE_END)
        if items and (clause or (ends and not ended)):
            break  # what follows the list is another thought
        if clause:
            return None
        items += found
        ended = ends
    return items or None


def _without_a_second_thought(line: str) -> str:
    """Of a line whose first sentence is a list, that sentence; every other line whole, for its list may come last."""
    first, *others = re.split(r"(?<=[.!?])\s+(?=[A-Z])|(?<=[\u3002\uff01\uff1f])", line)
    return first if SEPARATOR.search(first) and not COLON.search(" ".join(others)) else line


def _split(text: str) -> list[str]:
    """The items of one line without bullets."""
    text = _without_notes(text)
    pieces = [piece for part in SEPARATOR.split(text) for piece in INLINE_NUMBER.split(part)]
    dashed = [piece for part in pieces for piece in DASH.split(part)]
    return [item for piece in dashed if (item := (_cleaned([piece]) or [_long(piece)])[0])]


def _long(piece: str) -> str:
    """A piece that is no item: nothing, or a clause as it is."""
    return piece.strip(AROUND)
