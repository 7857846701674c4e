"""What in a prompt is read as text here but means something in other tools, a sentence each. Standard library only.

Nothing is refused and nothing changed: a text may mean what it says. Where it does, parentheses and marks take a
backslash, `\\(so\\)`, and are not remarked on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from .near_marks import MARK, near_marks
from .prompt import ImageMark, Prompt, printable

HEAVY = 3.0  # a weight above this leaves less than a third to all else
_SHOWN = 48  # characters of what is quoted

Span = tuple[int, int]
_LINE = r"[^\[\]{}<>\n]"  # inside brackets
_NUMBER = r"[0-9]{0,3}(?:\.[0-9]{1,4}|[0-9])"


def _pattern(expression: str) -> Callable[[str], list[Span]]:
    compiled = re.compile(expression, re.MULTILINE | re.VERBOSE)
    return lambda text: [match.span() for match in compiled.finditer(text)]


def _groups(weight_inside: bool) -> Callable[[str], list[Span]]:
    """The outermost parentheses without a weight, those with or those without one further inside."""

    def find(text: str) -> list[Span]:
        found: list[Span] = []
        open_groups: list[list[int]] = []  # start, colons directly inside
        for match in re.finditer(r"[():]", text):
            if match[0] == "(":
                open_groups.append([match.start(), 0])
            elif match[0] == ":" and open_groups:
                open_groups[-1][1] += 1
            elif match[0] == ")" and open_groups:
                start, colons = open_groups.pop()
                if not colons:
                    while found and found[-1][0] > start:
                        found.pop()
                    found.append((start, match.end()))
        return [span for span in found if (":" in text[slice(*span)]) == weight_inside]

    return find


# Each kind: where it is, and what to do instead. {0} is what was found, {inner} that without its brackets, {name} the
# part before its colon. The first kinds are the special ones; what they have taken, the later ones do not see.
_HABITS: tuple[tuple[Callable[[str], list[Span]], str], ...] = (
    (
        _pattern(r"<(?:lora|lyco|lycoris|loha|locon|hypernet|hypernetwork|wlr)\s{0,3}:[^<>\n]{0,200}>"),
        "{0} loads nothing here and is read as text: put a Load LoRA node before the sampler.",
    ),
    (
        _pattern(r"(?i:<?\b(?:embedding|textual_inversion|ti)\s{0,3}:\s{0,3}[\w.\-/\\]{1,200}>?)"),
        "{0} is read as text: textual inversions are made for CLIP. Connect a picture of what it shows, or let "
        "Kosmos-G Blend mix in a conditioning of CLIP.",
    ),
    (
        _pattern(rf"\[{_LINE}{{0,200}}:\s{{0,3}}{_NUMBER}\s{{0,3}}\]"),
        "{0} is read as text, the prompt stays the same for all steps: encode both texts, give each its steps with "
        "ConditioningSetTimestepRange, and join them with Conditioning (Combine).",
    ),
    (
        _pattern(r"[\[{][^\[\]{}<>\n|]{0,200}\|[^\[\]{}<>\n]{0,400}[\]}]"),
        "{0} chooses nothing here, all of it is read as text: write what is meant, or connect a node that chooses to "
        "text.",
    ),
    (
        _pattern(
            r"(?<!\w)__[\w/*\-. ]{1,100}?__(?!\w) | (?<!\w)%[A-Za-z][\w.:]{1,60}% | \$\{[^{}\n]{1,100}\}"
            r" | \$[A-Za-z_]\w{1,60}"
        ),
        "{0} is replaced by nothing here and read as text: connect a node that fills it in to text.",
    ),
    (
        _pattern(
            r"(?<![\w-])(?:BREAK | ADDCOMM | ADDBASE | ADDROW | ADDCOL | COUPLE | AND(?!\s{1,3}[A-Z]{2}))(?![\w-])"
        ),
        "{0} is read as a word, for the prompt is one sequence here: encode the parts with a Kosmos-G Prompt each, and "
        "join them with Conditioning (Combine).",
    ),
    (
        _pattern(
            r"(?<!\w)(?:AREA|MASK|IMASK|FEATHER|FILL|AVG|CAT|SHIFT|SHUFFLE|STYLE|SDXL|NOISE|ATTN|TE_WEIGHT|HOOK)"
            r"\([^()\n]{0,200}\)"
        ),
        "{0} is read as text: areas, masks and means of conditionings have nodes of their own.",
    ),
    (
        _pattern(
            rf"\([^()\n]{{0,200}}：\s{{0,3}}{_NUMBER}\s{{0,3}}\) | （[^（）\n]{{0,200}}[）)] | \([^()（\n]{{0,200}}）"
            rf" | ［[^［］\n]{{0,200}}］ | ｛[^｛｝\n]{{0,200}}｝ | 【[^【】\n]{{0,200}}】 | [（）［］｛｝【】﹙﹚]"
        ),
        "{0} is written with another keyboard's brackets and read as text: weights are written ( : ), as in (dog:1.3).",
    ),
    (
        _groups(weight_inside=True),
        "The outer parentheses of {0} weigh nothing here and are read as text: one pair and one number are enough.",
    ),
    (
        _groups(weight_inside=False),
        r"{0} weighs nothing here, its parentheses are read as text: write ({inner}:1.1) to stress it, or \({inner}\) "
        "where parentheses are meant.",
    ),
    (
        _pattern(rf"\[{{1,4}}{_LINE}{{1,400}}\]{{1,4}}"),
        "{0} weighs nothing here, its brackets are read as text: write ({inner}:0.9) to weaken it.",
    ),
    (
        _pattern(rf"\{{{{1,4}}{_LINE}{{1,400}}\}}{{1,4}}"),
        "{0} weighs nothing here, its braces are read as text: write ({inner}:1.1) to stress it.",
    ),
    (
        _pattern(rf"(?<![\w:])[A-Za-z][\w-]{{0,40}}(?:::-?{_NUMBER} | :[0-9]?\.[0-9]{{1,4}})(?![\w.:])"),
        "{0} weighs nothing here: a weight wants parentheses, as in ({name}:1.3).",
    ),
    (
        _pattern(
            rf"(?<=[A-Za-z]{{2}})(?:\+{{2,6}}|-{{2,6}})(?=[\s,.)]|$) | (?<=\))(?:[+-]{{1,6}}|{_NUMBER})(?=[\s,.)]|$)"
        ),
        "{0} weighs nothing here: a weight stands inside parentheses, as in (dog:1.3).",
    ),
    (
        _pattern(
            r"(?<![\w-])--(?:no|ar|aspect|seed|steps|cfg|style|stylize|s|v|niji|iw|cw|sref|cref|oref|chaos|quality|q|neg"
            r"|negative)(?!\w)"
        ),
        "{0} sets nothing here and is read as text: what the picture should not show belongs into negative, sizes and "
        "numbers into their nodes.",
    ),
    (
        _pattern(r"^[ \t]{0,9}(?://|\#\s)[^\n]{0,200} | /\*[^*]{0,400}\*/"),
        "{0} is read as text like the rest: a prompt has no comments here.",
    ),
)


def remarks(text: str, prompt: Prompt | None = None) -> list[str]:
    """Sentences on what in a text does not do what other tools make of it, one for each kind; none as a rule.

    `prompt` is what was read from the text: its weights, with those of references, are looked at as well.
    """
    found = [*_near_marks(text), *_habits(text)]
    return found if prompt is None else [*found, *_heavy(prompt)]


def _near_marks(text: str) -> Iterator[str]:
    near = list(near_marks(text))
    if near:
        spelled = printable(text[near[0].start : near[0].end])
        escaped = rf", or \{spelled} where text is meant" if spelled[0] == "<" else ""
        yield _counted(f"{spelled} is not a mark{near[0].fault}: write <i{near[0].slot or ''}>{escaped}.", near)


def _habits(text: str) -> Iterator[str]:
    """What a kind has taken is blanked for the next ones; so are escapes, marks and the weights of groups."""
    rest = _blanked(text, (match.span() for match in re.finditer(rf"\\[\\<():]|{MARK}", text)))
    rest = _blanked(rest, ((near.start, near.end) for near in near_marks(text)))
    rest = _blanked(rest, (match.span(1) for match in re.finditer(rf"(:\s*[+-]?{_NUMBER}[eE0-9+-]*\s*)\)", rest)), ":")
    for find, advice in _HABITS:
        spans = [span for span in find(rest) if rest[span[0] : span[1]].strip("\0")]
        if spans:
            spelled = text[slice(*spans[0])].strip()
            inner = _without_brackets(spelled)
            sentence = advice.format(f"“{_short(spelled)}”", inner=_short(inner), name=_short(spelled.split(":")[0]))
            yield _counted(sentence, spans)
        rest = _blanked(rest, spans)


def _without_brackets(text: str) -> str:
    """`((x))` as x, and `((x) y)` as (x) y."""
    core = text.strip("()[]{} ")
    if core and not set("()[]{}") & set(core):
        return core
    return text[1:-1].strip() if text[0] in "([{" and text[-1] in ")]}" else text


def _blanked(text: str, spans: Iterable[Span], by: str = "\0") -> str:
    characters = list(text)
    for start, end in spans:
        characters[start:end] = by + "\0" * (end - start - 1)
    return "".join(characters)


def _heavy(prompt: Prompt) -> Iterator[str]:
    heavy = [segment for segment in prompt.segments if segment.weight > HEAVY]
    if heavy:
        first = max(heavy, key=lambda segment: segment.weight)
        what = f"<i{first.slot}>" if isinstance(first, ImageMark) else f"“{_short(first.text.strip())}”"
        yield _counted(
            f"The weight {first.weight:g} of {what} is above {HEAVY:g}: little of the rest is left. Begin with 1.5.",
            heavy,
        )


def _counted(sentence: str, found: list) -> str:
    return sentence if len(found) == 1 else f"{sentence} ({len(found)} places)"


def _short(text: str) -> str:
    text = printable(text)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
