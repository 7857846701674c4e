"""Text of other people's files: UTF-8, or what a byte-order mark says; nothing is guessed."""

from __future__ import annotations

import codecs

# The marks of UTF-32 begin with those of UTF-16, so they come first.
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def decode_text(content: bytes) -> str:
    """The text of a file, without its byte-order mark. Raises UnicodeDecodeError where it is in another encoding."""
    for mark, encoding in MARKS:
        if content.startswith(mark):
            return content[len(mark) :].decode(encoding)
    return content.decode("utf-8")
