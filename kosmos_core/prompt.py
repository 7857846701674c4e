r"""The prompt grammar: text interleaved with picture marks and weights. Standard library only.

    <i>   <image>               the next picture that no earlier mark has taken
    <i2>  <image2>  <image_2>   the picture in slot 2; slots may be named in any order and more than once
    (text or marks:1.3)         weight 1.3 for everything inside; nested weights multiply
    (red) dog                   parentheses without a weight are text, but every one needs its partner
    \<i>  \(  \)  \:  \\        the character after the backslash as text; any other backslash is itself text

The last colon directly inside parentheses begins their weight, so a colon that is text is written `\:` there.
The original implementation (arXiv 2310.02992) knows only the exact mark `<i>`: `Prompt.original` reads that.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .near_marks import MARK, near_marks

MAX_CHARACTERS = 200_000  # more than the model has places for, and still read in a moment
MAX_WEIGHT = 100.0  # 99 parts in 100 are the weighted part alone: beyond that nobody sees a difference
WEIGHT_RANGE = (
    f"must lie between 0 and {MAX_WEIGHT:g}: 0 hides a part, 1 is neutral, 1.5 stresses it, above 3 little else is left"
)

_LEXEME = re.compile(rf"\\[\\<():]|{MARK}|[():]|[^\\<():]+|[\\<]")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_NEEDS_ESCAPE = re.compile(rf"[\\()]|(?={MARK})<")
_BEFORE, _FROM = 28, 36  # characters of the prompt that an error quotes before the fault, and from it on


class PromptError(ValueError):
    """A prompt that cannot be read: the `reason`, the `prompt`, and the `position` (0-based) of the fault in it."""

    def __init__(self, reason: str, prompt: str, position: int) -> None:
        super().__init__(reason, prompt, position)
        self.reason, self.prompt, self.position = reason, prompt, position

    def __str__(self) -> str:
        """One line: ComfyUI's dialog centres what it shows, so that nothing can point at another line."""
        if self.position >= len(self.prompt):  # something is missing, and that has no place
            return self.reason
        first, last = max(0, self.position - _BEFORE), self.position + _FROM
        fault = printable(self.prompt[self.position : last]) + "…" * (last < len(self.prompt))
        before = "…" * (first > 0) + printable(self.prompt[first : self.position]).rstrip()
        where = f"at “{fault}”" + (f" after “{before}”" if before else "")
        return f"{self.reason} ({where}, character {self.position + 1})"


@dataclass(frozen=True)
class Text:
    """A stretch of text with one weight."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True)
class ImageMark:
    """The place of a picture in the prompt.

    `slot` is the number its user knows it by, counted from 1; `index` its place, counted from 0, in the list of the
    pictures given. They differ where slots are left empty: with pictures in slots 1 and 3, slot 3 is index 1.
    """

    slot: int
    index: int
    weight: float = 1.0


Segment = Text | ImageMark


@dataclass(frozen=True)
class Prompt:
    """A prompt as its segments in order; neighbouring texts of equal weight are always one segment."""

    segments: tuple[Segment, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "segments", tuple(_merged(self.segments)))

    @classmethod
    def parse(
        cls,
        text: str,
        images: int | None = None,
        slots: Sequence[int] | None = None,
        *,
        beside: Prompt | None = None,
        all_used: bool = True,
    ) -> Prompt:
        """Read the node grammar (see the module).

        `images` is the number of pictures given, in slots 1 to `images`; `slots` lists their slot numbers instead
        where some slots are empty. With neither, pictures are not counted. Pictures that the prompt `beside` it marks
        need no mark here, and `<i>` takes one that neither has marked. With `all_used` False, none need one; see
        `check_all_used`. Raises PromptError, which quotes the prompt from the fault on: unbalanced parentheses, a
        weight that is no number from 0 to MAX_WEIGHT, an unknown slot, more marks than pictures, unused pictures, or
        half of a surrogate pair.
        """
        check_text(text)
        _check_characters(text)
        available = _available_slots(images, slots)
        others = () if beside is None else beside.images
        segments = tuple(_resolve(_scan(text), text, available, {image.slot for image in others}))
        if available is not None and all_used:
            check_all_used((*others, *segments), available, text)
        return cls(segments)

    @classmethod
    def original(cls, text: str, images: int | None = None) -> Prompt:
        """Read the original's grammar: only the exact `<i>` is a mark, everything else is text, marks go in order.

        Raises PromptError where `images` is given and differs from the number of marks.
        """
        check_text(text)
        _check_characters(text)
        texts = text.split("<i>")
        marks = len(texts) - 1
        if images is not None and images != marks:
            position = len("<i>".join(texts[: images + 1])) if images < marks else len(text)
            reason = f"The prompt's <i> marks are {marks}, its pictures {images}: give one picture for each mark."
            raise PromptError(reason, text, position)
        segments: list[Segment] = [Text(texts[0])]
        for index, following in enumerate(texts[1:]):
            segments += [ImageMark(index + 1, index), Text(following)]
        return cls(tuple(segments))

    @property
    def images(self) -> tuple[ImageMark, ...]:
        """The picture marks in order."""
        return tuple(segment for segment in self.segments if isinstance(segment, ImageMark))

    def text_only(self) -> Prompt:
        """The prompt without its pictures, weights kept; the words on either side of a mark stay apart."""
        kept: list[Text] = []
        after_image = False
        for segment in self.segments:
            if isinstance(segment, ImageMark):
                after_image = True
                continue
            text = segment.text
            if after_image:
                text = text.lstrip(" ")
                if not text:
                    continue
                if kept:
                    kept[-1] = Text(kept[-1].text.rstrip(" "), kept[-1].weight)
                    text = " " + text
            kept.append(Text(text, segment.weight))
            after_image = False
        return Prompt(tuple(kept))

    def normalised(self) -> str:
        """The one spelling of this prompt: marks with slot numbers, parentheses only round weights.

        `Prompt.parse` with the same `images` or `slots` reads it back to an equal Prompt.
        """
        spelled = []
        for weight, run in itertools.groupby(self.segments, key=lambda segment: segment.weight):
            inside = "".join(_spell(segment) for segment in run)
            spelled.append(inside if weight == 1 else f"({inside}:{float(weight)!r})")
        return "".join(spelled)

    __str__ = normalised


@dataclass
class _Group:
    """A pair of parentheses while it is read; `weight` stays None for plain ones."""

    start: int
    colon: int = -1  # position of the last colon directly inside
    colon_event: int = -1  # the event that this colon begins
    weight: float | None = None


@dataclass(frozen=True)
class _Mark:
    position: int
    slot: int | None  # None: the next unused picture


@dataclass(frozen=True)
class _Edge:
    group: _Group
    opens: bool


_Event = str | _Mark | _Edge


def _scan(text: str) -> list[_Event]:
    """Split a prompt into text, marks and edges of groups; a group learns its weight where it ends."""
    events: list[_Event] = []
    open_groups: list[_Group] = []
    for lexeme in _LEXEME.finditer(text):
        word, position = lexeme[0], lexeme.start()
        if word == "(":
            open_groups.append(_Group(position))
            events.append(_Edge(open_groups[-1], opens=True))
        elif word == ")":
            if not open_groups:
                reason = r"This ) closes nothing: open it with ( as in (a dog:1.3), or write \) for a plain one."
                raise PromptError(reason, text, position)
            group = open_groups.pop()
            if group.colon >= 0:
                group.weight = _read_weight(text, group.colon + 1, position)
                del events[group.colon_event :]
            events.append(_Edge(group, opens=False))
        elif word == ":" and open_groups:
            open_groups[-1].colon, open_groups[-1].colon_event = position, len(events)
            events.append(word)
        elif word[0] == "<" and len(word) > 1:
            events.append(_Mark(position, _read_slot(word, text, position)))
        elif word[0] == "\\" and len(word) > 1:
            events.append(word[1:])
        else:
            events.append(word)
    if open_groups:
        reason = r"This ( is never closed: close it as in (a dog:1.3), or write \( for a plain one."
        raise PromptError(reason, text, open_groups[-1].start)
    return events


def _resolve(
    events: Iterable[_Event], text: str, available: Sequence[int] | None, taken: set[int]
) -> Iterable[Segment]:
    """Give every text and mark the product of the weights round it, and every mark its picture; adds to `taken`."""
    weights = [1.0]
    unused = iter(available) if available is not None else itertools.count(1)
    index_of = None if available is None else {slot: index for index, slot in enumerate(available)}
    for event in events:
        if isinstance(event, str):
            yield Text(event, weights[-1])
        elif isinstance(event, _Mark):
            slot = event.slot
            if slot is None:
                slot = next((slot for slot in unused if slot not in taken), None)
                if slot is None:
                    raise PromptError(_more_marks_than(available), text, event.position)
            elif index_of is not None and slot not in index_of:
                reason = f"There is no picture {slot}: {_are(available) if available else 'none is'} given."
                raise PromptError(reason, text, event.position)
            taken.add(slot)
            yield ImageMark(slot, slot - 1 if index_of is None else index_of[slot], weights[-1])
        elif event.group.weight is None:
            yield Text("(" if event.opens else ")", weights[-1])
        elif event.opens:
            weights.append(_product(weights[-1], event.group.weight))
            if weights[-1] > MAX_WEIGHT:
                reason = f"The weights round this place multiply to {weights[-1]:g}: their product {WEIGHT_RANGE}."
                raise PromptError(reason, text, event.group.colon)
        else:
            weights.pop()


def _merged(segments: Iterable[Segment]) -> Iterable[Segment]:
    """Drop empty texts and join neighbouring texts of equal weight."""
    kept = (segment for segment in segments if isinstance(segment, ImageMark) or segment.text)
    for (is_text, weight), run in itertools.groupby(kept, key=lambda item: (isinstance(item, Text), item.weight)):
        if not 0 <= weight <= MAX_WEIGHT:
            raise ValueError(f"The weight {weight:g} {WEIGHT_RANGE}.")
        if is_text:
            yield Text("".join(segment.text for segment in run), weight)
        else:
            yield from run


def _product(outer: float, inner: float) -> float:
    """1.2 * 1.5 as 1.8, not 1.7999999999999998: people read these numbers in the normalised prompt."""
    return inner if outer == 1 else float(f"{outer * inner:.12g}")


def _read_weight(text: str, start: int, end: int) -> float:
    spelled = text[start:end].strip()
    shown = printable(spelled[:20]) + "…" * (len(spelled) > 20)
    if not _NUMBER.fullmatch(spelled):
        reason = f"The weight '{shown}' is not a number such as 1.3; where the colon is text, write \\: for it."
        raise PromptError(reason, text, start)
    weight = float(spelled) + 0.0  # -0.0 becomes 0.0
    if not 0 <= weight <= MAX_WEIGHT:
        raise PromptError(f"The weight '{shown}' {WEIGHT_RANGE}.", text, start)
    return weight


def _read_slot(mark: str, text: str, position: int) -> int | None:
    digits = re.sub("[^0-9]", "", mark)
    if not digits:
        return None
    digits = digits.lstrip("0")
    if not 1 <= len(digits) <= 9:
        shown = f"{digits[:9]}…" if digits else "0"
        raise PromptError(f"There is no picture {shown}: pictures are counted from 1, as in <i1>.", text, position)
    return int(digits)


def _available_slots(images: int | None, slots: Sequence[int] | None) -> list[int] | None:
    if slots is None:
        if images is not None and images < 0:
            raise ValueError(f"images is {images}; expected the number of pictures, 0 or more.")
        return None if images is None else list(range(1, images + 1))
    if len(set(slots)) != len(slots) or any(slot < 1 for slot in slots):
        raise ValueError(f"slots is {list(slots)}; expected different slot numbers from 1.")
    if images is not None and images != len(slots):
        raise ValueError(f"images is {images} but slots lists {len(slots)}; give one of them.")
    return list(slots)


def check_text(text: str) -> None:
    """Raise TypeError for what is not a string, PromptError for a string that is not valid Unicode."""
    if not isinstance(text, str):
        raise TypeError(f"A prompt is a string, not {type(text).__name__}.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        reason = f"Half of a surrogate pair (U+{ord(text[error.start]):04X}) is not a character: remove it."
        raise PromptError(reason, text, error.start) from None


def _check_characters(text: str) -> None:
    if len(text) > MAX_CHARACTERS:
        reason = f"The prompt has {len(text):,} characters; at most {MAX_CHARACTERS:,} are read: shorten it."
        raise PromptError(reason, text, MAX_CHARACTERS)


def check_all_used(segments: Iterable[Segment], available: Sequence[int], text: str) -> None:
    """Raise PromptError, which quotes `text`, where a picture of the slots `available` has no mark in `segments`."""
    used = {segment.slot for segment in segments if isinstance(segment, ImageMark)}
    unused = [slot for slot in available if slot not in used]
    if not unused:
        return
    marks = _list(f"<i{slot}>" for slot in unused)
    reason = f"{_are(unused).capitalize()} not used in the prompt: write {marks}, or give no picture there."
    nearly = next(near_marks(text), None) or next(near_marks(text, faint=True), None)
    if nearly:
        spelled = printable(text[nearly.start : nearly.end])
        reason += f" ({spelled} is not a mark{nearly.fault}: a mark is <i> or <i{nearly.slot or unused[0]}>.)"
    raise PromptError(reason, text, nearly.start if nearly else len(text))


def _more_marks_than(available: Sequence[int]) -> str:
    if not available:
        return r"This mark has no picture, because none is given: give one, or write \<i> for plain text."
    way_out = rf"name one again as <i{available[0]}>, give another, or write \<i> for plain text."
    return f"More marks than pictures: {_are(available)} taken by earlier marks; {way_out}"


def _spell(segment: Segment) -> str:
    if isinstance(segment, ImageMark):
        return f"<i{segment.slot}>"
    escaped = _NEEDS_ESCAPE.sub(lambda match: "\\" + match[0], segment.text)
    return escaped if segment.weight == 1 else escaped.replace(":", r"\:")


def _are(slots: Sequence[int]) -> str:
    return f"picture {slots[0]} is" if len(slots) == 1 else f"pictures {_list(slots)} are"


def _list(items: Iterable[object]) -> str:
    *first, last = map(str, items)
    return f"{', '.join(first)} and {last}" if first else last


def printable(text: str) -> str:
    """The text with one visible character in place of each that would break the line or not be seen."""
    return "".join("⏎" if char == "\n" else char if char.isprintable() else "�" for char in text)
