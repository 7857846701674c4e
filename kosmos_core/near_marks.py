"""Spellings that people write for a picture mark, and that the grammar reads as text. Standard library only.

They come from keyboards (`＜i＞`, `〈i〉`, `<İ>`, a zero-width space), from web pages (`&lt;i&gt;`), from other models
(`<|image_1|>`, `[image 1]`, `{{image}}`) and from haste (`<i and`, `<1>`, `< i >`, `</i>`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass

MARK = r"<(?:i|image)(?:_?[0-9]+)?>"
_EXACT = re.compile(MARK)

_OPENING = dict.fromkeys("〈〈⟨⟪《‹«❮❰˂ᐸ≺⧼", "<")
_CLOSING = dict.fromkeys("〉〉⟩⟫》›»❯❱˃ᐳ≻⧽", ">")
_SQUARE = {"【": "[", "】": "]", "〔": "[", "〕": "]", "「": "[", "」": "]", "『": "[", "』": "]", "〖": "[", "〗": "]"}
_LETTERS = dict.fromkeys("ıіιɩɪⅰ", "i")  # dotless, Cyrillic, Greek and the like
_ALIKE = str.maketrans(_OPENING | _CLOSING | _SQUARE | _LETTERS)
_ESCAPED_BRACKET = re.compile(
    r"(?P<less>&(?:amp;)?(?:lt|#0*60|#x0*3c);?|%3c|\\u003c|\\x3c)|(?P<more>&(?:amp;)?(?:gt|#0*62|#x0*3e);?|%3e|\\u003e|\\x3e)",
    re.IGNORECASE,
)

_WORD = r"(?:i|l|im|ima|imag|image|img|pic|picture|photo|ref|reference|图|图片|图像|圖|圖片|画像|写真)s?"
_PLAIN_WORD = r"(?:i|img|image|pic|picture|图|图片|图像|圖片|画像)s?"
_GAP = r"[\s_#:.=|*'\"`/-]{0,9}"
_NEAR = re.compile(
    rf"""
    (?P<doubled>  <{{1,3}}\s{{0,3}}{MARK}\s{{0,3}}>{{1,3}} )                # <<i>>
    | (?P<several>  <\s{{0,3}}{_WORD}[\s_]{{0,3}}\d{{1,9}}
                    (?:[\s,;/&+|-]{{1,4}}(?:i|image)?[\s_]?\d{{1,9}}){{1,9}}\s{{0,3}}> )
    | (?P<weighted> <\s{{0,3}}{_WORD}_?(?P<n1>\d{{0,9}})\s{{0,3}}:\s{{0,3}}
                    (?P<weight>\d{{0,3}}\.\d{{1,9}})\s{{0,3}}> )
    | (?P<angle>    <{_GAP}{_WORD}{_GAP}(?P<n2>\d{{0,9}}){_GAP}> )
    | (?P<number>   <[\s_#|]{{0,4}}(?P<n3>\d{{1,2}})[\s|]{{0,4}}> )
    | (?P<open>     <\s{{0,3}}(?:i|img|image)s?_?(?P<n4>\d{{0,9}})(?=[\s,.;!?)\]<]|$) )
    | (?P<close>    (?<![\w<&/])(?:i|img|image)_?(?P<n5>\d{{0,9}})\s{{0,3}}> )
    | (?P<square>   [\[{{]{{1,2}}\s{{0,9}}{_PLAIN_WORD}[\s_\#:-]{{0,9}}(?P<n6>\d{{0,9}})\s{{0,9}}[\]}}]{{1,2}} )
    """,
    re.VERBOSE,
)
# What may well be meant as text, and is a mark only to somebody whose image is left over.
_FAINT = re.compile(
    rf"""
    (?P<escaped>  \\{MARK} )
    | (?P<square> \[\s?(?P<n1>\d)\s?\] | \{{\s?(?P<n2>\d?)\s?\}} | \(\s?(?:i|img|image)[\s_\#]?(?P<n3>\d{{0,9}})\s?\) )
    | (?P<word>   [@\#$%](?:i|img|image|pic|picture)[\s_]?(?P<n4>\d{{0,9}})(?!\w)
                  | (?<![\w<])(?:image|img|picture|pic)[\s_\#-]?(?P<n5>\d{{1,9}})(?!\w) | (?<![\w<])img(?!\w) )
    """,
    re.VERBOSE,
)


@dataclass(frozen=True)
class NearMark:
    """A spelling in a text, from `start` to `end`, the slot it seems to name (None: the next), and what is wrong."""

    start: int
    end: int
    slot: int | None
    fault: str


def near_marks(text: str, faint: bool = False) -> Iterator[NearMark]:
    """What in a text is nearly a mark, in order; with `faint`, also what can as well be meant as text.

    A backslash before it says that text is meant, except where an image is left over (`faint`).
    """
    folded, origin = _fold(text)
    for match in (_FAINT if faint else _NEAR).finditer(folded):
        start, end = origin[match.start()], origin[match.end()]
        spelled = text[start:end]
        kind = _kind(match)
        if _EXACT.fullmatch(spelled) or (kind != "escaped" and text[start - 1 : start] == "\\"):
            continue
        digits = next(
            (match[name] for name in match.groupdict() if name[0] == "n" and name[1:].isdigit() and match[name]), ""
        )
        yield NearMark(start, end, int(digits) or None if digits else None, _fault(kind, spelled, match))


_FAULTS = {
    "open": ", its > is missing",
    "close": ", its < is missing",
    "several": ", a mark names one image",
    "doubled": ", one pair of brackets is enough",
    "escaped": r", its \ makes it text",
    "number": ", its i is missing",
}


def _kind(match: re.Match) -> str:
    return next(
        name for name, found in match.groupdict().items() if found is not None and not re.fullmatch(r"n\d|weight", name)
    )


def _fault(kind: str, spelled: str, match: re.Match) -> str:
    """A few words behind "is not a mark", with their comma; empty where the spelling speaks for itself."""
    invisible = next((char for char in spelled if _is_invisible(char)), None)
    if invisible:
        return f", it holds the invisible character U+{ord(invisible):04X}"
    if kind == "weighted":
        return f", a weight stands outside as in (<i>:{match['weight']})"
    if kind in _FAULTS:
        return _FAULTS[kind]
    if _ESCAPED_BRACKET.search(spelled):
        return ", < and > are escaped in it"
    if kind == "angle" and (spelled[0], spelled[-1]) != ("<", ">"):
        return f", {spelled[0]} and {spelled[-1]} are not < and >"
    return ""


def _is_invisible(char: str) -> bool:
    return (
        unicodedata.category(char) == "Cf"
        or char in "\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0"
        or "\ufe00" <= char <= "\ufe0f"
    )


def _fold(text: str) -> tuple[str, list[int]]:
    """The text in the letters of a mark, and for each of its characters, and the end, the position in `text`.

    Invisible characters and accents are gone, capitals are small, and brackets and letters that look alike are one.
    """
    if text.isascii() and not _ESCAPED_BRACKET.search(text):
        return text.lower(), list(range(len(text) + 1))
    folded: list[str] = []
    origin: list[int] = []

    def add(characters: str, position: int) -> None:
        folded.append(characters)
        origin.extend([position] * len(characters))

    position = 0
    for escaped in _ESCAPED_BRACKET.finditer(text):
        _fold_plain(text, position, escaped.start(), add)
        add("<" if escaped["less"] else ">", escaped.start())
        position = escaped.end()
    _fold_plain(text, position, len(text), add)
    origin.append(len(text))
    return "".join(folded), origin


def _fold_plain(text: str, start: int, end: int, add: Callable[[str, int], None]) -> None:
    for position in range(start, end):
        char = text[position]
        if char.isascii():
            add(char.lower(), position)
        elif not _is_invisible(char):
            for part in unicodedata.normalize("NFKD", char.translate(_ALIKE)).casefold():
                if not unicodedata.combining(part):
                    add(part.translate(_ALIKE), position)
