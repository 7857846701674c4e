"""Which words of a caption are an entity: from tags that somebody named to character spans that do not overlap.

A tag counts where it stands in the caption as whole words, in any case, singular or plural. Tags of colour words alone
are left out. Where tags overlap ("hot dog", "dog") the longer one wins, and the shorter one may still stand elsewhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass

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
ARTICLE = re.compile(r"^(?:an?|the|some|his|her|its|their|my|your|our)\s+", re.IGNORECASE)
# What lists are written with: bullets, numbers, quotes and brackets around an item.
BULLET = re.compile(r"^\s*(?:[-*\u2022]|\(?\d+[.)])\s*")
MOST_WORDS = 5  # a longer "tag" is a clause


@dataclass(frozen=True)
class CaptionSpan:
    """caption[start:end], the words of one entity."""

    start: int
    end: int

    def of(self, caption: str) -> str:
        return caption[self.start : self.end]


def parse_list(answer: str) -> list[str] | None:
    """The items of a language model's list; None where the answer is prose.

    Reads JSON lists, comma-separated ones, numbered and bulleted lines, with or without an introduction that ends with
    a colon, quotes, brackets and "and". Text from "###" on, where a model goes on with a new task, is not read.
    """
    answer = answer.split("###")[0].strip()
    bracketed = re.search(r"\[[^\[\]]*\]", answer)
    if bracketed:
        try:
            listed = json.loads(bracketed[0])
        except ValueError:
            answer = bracketed[0].strip("[]")
        else:
            return [item.strip() for item in listed if isinstance(item, str) and item.strip()] or None
    lines = [line.strip() for line in answer.splitlines() if line.strip()]
    bulleted = [BULLET.sub("", line) for line in lines if BULLET.match(line)]
    if bulleted:
        items = bulleted
    else:
        # One paragraph: what follows it is another thought of the model.
        text = lines[0].rpartition(":")[2].strip() if lines else ""
        if not text and len(lines) > 1:
            text = lines[1]
        items = re.split(r"[,;]|\s+and\s+", text)
    items = [re.sub(r"^and\s+", "", item.strip().strip("\"'`.*").strip()) for item in items]
    items = [item for item in items if item]
    if not items or any(len(item.split()) > MOST_WORDS for item in items):
        return None
    return items


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
            pattern = rf"(?<![\w-]){lead}(?:{'|'.join(map(re.escape, endings))})(?![\w-])"
            for match in re.finditer(pattern, caption, re.IGNORECASE):
                yield CaptionSpan(*match.span())


def _same_thing(first: str, second: str) -> bool:
    """Whether two tags differ in the number of their last word at most."""
    (*lead, last), (*other_lead, other_last) = first.split(), second.split()
    return lead == other_lead and not forms(last).isdisjoint(forms(other_last))


def place(caption: str, tags: Iterable[str]) -> tuple[list[CaptionSpan], int]:
    """Spans of the tags in the caption's order, none overlapping, and how many tags are not in the caption.

    Articles before a tag are not part of it; repeated tags count once; colours are left out without being counted.
    """
    wanted: list[str] = []
    for tag in tags:
        bare = " ".join(ARTICLE.sub("", tag.strip().strip(".,;:!?\"'")).split()).lower()
        coloured = all(word in COLOURS for word in bare.split())
        if not coloured and not any(_same_thing(bare, other) for other in wanted):
            wanted.append(bare)
    taken: list[CaptionSpan] = []
    missing = 0
    for tag in sorted(wanted, key=lambda tag: (-len(tag), tag)):
        places = list(find_tag(caption, tag))
        missing += not places
        free = (p for p in places if all(p.end <= t.start or t.end <= p.start for t in taken))
        span = next(free, None)
        if span:
            taken.append(span)
    return sorted(taken, key=lambda span: span.start), missing
