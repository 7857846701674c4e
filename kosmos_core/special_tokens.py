"""The ids of a vocabulary that stand for no text, and how an image stands among the tokens.

A sequence begins with bos. An image in it is image_start, one place for each of its embeddings, and image_end
(arXiv 2310.02992, section 3.1). Tokenizer, training data and model all read this table and no other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

# As the dictionary names them: these open every vocabulary, then come the pieces of text, then these close it.
OPENING = ("<s>", "<pad>", "</s>", "<unk>")
CLOSING = ("<mask>", "</doc>", "<image>", "</image>", "</chunk>", "</line>")


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the tokens that are no text; the closing six depend on the size of the vocabulary."""

    bos: ClassVar[int] = 0
    pad: ClassVar[int] = 1
    eos: ClassVar[int] = 2
    unknown: ClassVar[int] = 3
    mask: int
    document_end: int
    image_start: int
    image_end: int
    chunk_end: int
    line_end: int

    @classmethod
    def of_vocabulary(cls, size: int) -> SpecialTokens:
        """Special ids of a vocabulary of `size` entries."""
        return cls(*range(size - len(CLOSING), size))

    def image(self, latents: int) -> tuple[list[int], list[bool]]:
        """The ids of one image, and True at the `latents` places where its embeddings replace the ids' own.

        The original writes image_start at these places; the model never looks at it.
        """
        token_ids = [self.image_start, *[self.image_start] * latents, self.image_end]
        return token_ids, [False, *[True] * latents, False]
