"""Texts in files from outside, decoded in one way wherever data is read: in training, checking and construction."""

from __future__ import annotations

import codecs

TEXT_ENDINGS = ("txt", "caption", "text")  # of a picture's caption: the first of them that is there
# The longer mark first: UTF-32's begins with UTF-16's.
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def encoding_of(content: bytes) -> str:
    """The encoding that a byte-order mark tells; UTF-8 without one."""
    return next((encoding for mark, encoding in MARKS if content.startswith(mark)), "utf-8")


def decode_text(content: bytes) -> str:
    """Bytes as text by their byte-order mark, which is taken off, or as UTF-8.

    Other encodings are not guessed: the wrong guess would train on wrong letters. Raises ValueError for them, and for
    zero bytes, which UTF-16 without a mark is full of.
    """
    text = content.decode(encoding_of(content))
    if "\0" in text:
        raise ValueError("zero bytes in a text")
    return text
