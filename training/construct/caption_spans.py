"""Which words of a caption are an entity: from tags that somebody named to character spans that do not overlap.

A tag counts where it stands in the caption as whole words, in any case, singular or plural. Tags of colour words alone
are left out. Where tags overlap ("hot dog", "dog") the longer one wins, and the shorter one may still stand elsewhere.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from .caption_words import UNSPACED, whole_words

COLOURS = {
    "beige", "black", "blue", "brown", "colorful", "colourful", "cyan", "gold", "golden", "gray", "green",
    "grey", "magenta", "maroon", "orange", "pink", "purple", "red", "silver", "tan", "teal", "turquoise",
    "violet", "white", "yellow",
}  # fmt: skip
IRREGULAR = {
    "cactus": "cacti",
    "child": "children",
    "die": "dice",
    "foot": "feet",
    "goose": "geese",
    "man": "men",
    "mouse": "mice",
    "octopus": "octopi",
    "ox": "oxen",
    "person": "people",
    "quiz": "quizzes",
    "tooth": "teeth",
    "woman": "women",
}
# "and", a middle dot or a space between two words without spaces; parts of other words too, so only where the whole is
# not found.
CHINESE_AND = re.compile(rf"[\u548c\u4e0e\u8207\u53ca\u30fb]|(?<=[{UNSPACED}])\s+(?=[{UNSPACED}])")
ARTICLE = re.compile(r"^(?:an?|the|some|his|her|its|their|my|your|our)\s+", re.IGNORECASE)


@dataclass(frozen=True)
class CaptionSpan:
    """caption[start:end], the words of one entity."""

    start: int
    end: int

    def of(self, caption: str) -> str:
        return caption[self.start : self.end]


def forms(word: str) -> set[str]:
    """The word with its possible singulars and plurals, lower case. Too many forms do no harm: the caption decides.

    Own rules, because inflect gives one form for a word that has two ("mangos"), misses "thieves" and "grandchildren",
    and is slower by far; spaCy's lemmas would need its pipeline beside a language model that names the entities.
    """
    word = word.lower()
    found = {word, word + "s", word + "es"}
    if word.endswith("s"):
        found.add(word[:-1])
    if word.endswith("es"):
        found.add(word[:-2])
    if word.endswith("y"):
        found.add(word[:-1] + "ies")
    if word.endswith("ies"):
        found.add(word[:-3] + "y")
    if word.endswith("f"):
        found.add(word[:-1] + "ves")
    if word.endswith("fe"):
        found.add(word[:-2] + "ves")
    if word.endswith("ves"):
        found |= {word[:-3] + "f", word[:-3] + "fe"}
    for one, many in IRREGULAR.items():
        if word in (one, many):
            found |= {one, many}
        elif word.endswith(one):  # fireman, grandchild
            found.add(word.removesuffix(one) + many)
        elif word.endswith(many):
            found.add(word.removesuffix(many) + one)
    return found


def find_tag(caption: str, tag: str) -> Iterable[CaptionSpan]:
    """Places where the tag stands as whole words, its exact form first; only the last word may differ in number."""
    words = tag.split()
    lead = "".join(re.escape(word) + r"\s+" for word in words[:-1])
    last = words[-1].lower()
    for endings in ([last], sorted(forms(last) - {last}, key=lambda form: (-len(form), form))):
        if endings:
            pattern = whole_words(rf"{lead}(?:{'|'.join(map(re.escape, endings))})", tag[0], last[-1])
            for match in re.finditer(pattern, caption, re.IGNORECASE):
                yield CaptionSpan(*match.span())


def _places(caption: str, tag: str) -> list[CaptionSpan]:
    """`find_tag`, however letters with accents and apostrophes are written."""
    ways = (tag, unicodedata.normalize("NFC", tag), unicodedata.normalize("NFD", tag), tag.replace("\u2019", "'"))
    ways = dict.fromkeys((*ways, tag.replace("'", "\u2019")))
    return next((found for way in ways if (found := list(find_tag(caption, way)))), [])


def _same_thing(first: str, second: str) -> bool:
    """Whether two tags differ in the number of their last word at most."""
    (*lead, last), (*other_lead, other_last) = first.split(), second.split()
    return lead == other_lead and not forms(last).isdisjoint(forms(other_last))


def _parts(caption: str, tag: str) -> list[str]:
    parts = CHINESE_AND.split(tag)
    return parts if len(parts) > 1 and all(parts) and not _places(caption, tag) else [tag]


def place(caption: str, tags: Iterable[str]) -> tuple[list[CaptionSpan], int]:
    """Spans of the tags in the caption's order, none overlapping, and how many tags are not in the caption.

    Articles before a tag are not part of it; repeated tags count once; colours are left out without being counted.
    """
    wanted: list[str] = []
    for part in (part for tag in tags for part in _parts(caption, tag)):
        bare = " ".join(ARTICLE.sub("", part.strip().strip(".,;:!?\"'")).split()).lower()
        coloured = all(word in COLOURS for word in bare.split())
        if not coloured and not any(_same_thing(bare, other) for other in wanted):
            wanted.append(bare)
    taken: list[CaptionSpan] = []
    missing = 0
    for tag in sorted(wanted, key=lambda tag: (-len(tag), tag)):
        places = _places(caption, tag)
        missing += not places
        free = (p for p in places if all(p.end <= t.start or t.end <= p.start for t in taken))
        span = next(free, None)
        if span:
            taken.append(span)
    return sorted(taken, key=lambda span: span.start), missing
