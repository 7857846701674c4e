"""Words of captions in any script: how many there are, and where one begins and ends."""

from __future__ import annotations

import math
import re

# Chinese, Japanese, Thai, Lao, Tibetan, Burmese and Khmer are written without spaces between words.
UNSPACED = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003134f"
)
UNSPACED_RUN = re.compile(f"[{UNSPACED}]+")
HANGUL = re.compile("[\uac00-\ud7a3]")  # particles follow a Korean noun without a space
LETTERS_A_WORD = 2  # of these scripts, on average


def word_count(text: str) -> int:
    """Words between spaces; where a script has no spaces, a word for every two of its letters."""
    unspaced = sum(math.ceil(len(run) / LETTERS_A_WORD) for run in UNSPACED_RUN.findall(text))
    return len([word for word in UNSPACED_RUN.sub(" ", text).split() if any(map(str.isalnum, word))]) + unspaced


def whole_words(pattern: str, first: str, last: str) -> str:
    """The expression `pattern` where no word goes on before `first` or after `last`, its first and last letter.

    A letter of a script without spaces neither needs nor makes such an edge.
    """
    spaced_letter = rf"(?![{UNSPACED}])[\w-]"
    before = "" if UNSPACED_RUN.match(first) else rf"(?<!{spaced_letter})"
    open_end = UNSPACED_RUN.match(last) or HANGUL.match(last)
    return f"{before}{pattern}" + ("" if open_end else rf"(?!{spaced_letter})")
