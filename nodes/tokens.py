"""Prompts as ComfyUI's tokens, and what is said to packs that expect CLIP's.

A prompt's tokens are {"kosmos_g": [section, ...]}, a section being a list of (entry, weight). An entry is a token id
or, where a picture's embeddings go, {"type": "image", "data": source}, as in ComfyUI's own encoders that read pictures.
The source is a prepared picture (3, S, S) or the source of a reference.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from torch import Tensor

from ..kosmos_core import KosmosG, Prompt
from ..kosmos_core.prompt_remarks import remarks
from ..kosmos_core.reference import Source
from ..kosmos_core.saved_clip import DESCRIPTION, description_tensor
from ..kosmos_core.weights import tokenizer_tensors
from .connections import tell
from .saving import into_checkpoint

KEY = "kosmos_g"
WAY_OUT = (
    "Use Kosmos-G Prompt or CLIP Text Encode with this CLIP (weights such as (word:1.3) work there), or give this node "
    "the CLIP of a checkpoint."
)
SAVED = (
    "This CLIP is saved as a Kosmos-G file, with its tokenizer: press R, and choose the file in Load Kosmos-G. Load "
    "CLIP does not read it."
)
Section = list[tuple[Any, ...]]


class NotClipError(KeyError, AttributeError, ValueError):
    """A node asks a Kosmos-G encoder for a part of CLIP; it is each error that such nodes know to expect."""

    def __init__(self, asked: str) -> None:
        super().__init__(asked)
        self.sentence = f"This node asks for {asked}, which belong to CLIP: Kosmos-G's encoder has none. {WAY_OUT}"

    def __str__(self) -> str:
        return self.sentence


class Tokens(dict[str, list[Section]]):
    """Tokens by tokenizer, of which there is one here."""

    def __missing__(self, key: str) -> Any:
        raise NotClipError(f"the tokens {key!r}")


@lru_cache(maxsize=256)
def warn_once(sentence: str) -> None:
    """A warning that need not be repeated for every prompt."""
    logging.warning(sentence)


def check_tokens(tokens: dict[str, list[Section]], vocabulary: int) -> list[Section]:
    """The sections of tokens that may have gone through another pack's hands.

    Raises ValueError for those of another tokenizer, and for entries or weights that mean nothing here.
    """
    if set(tokens) != {KEY}:
        raise ValueError(
            f"These tokens are for {', '.join(sorted(set(tokens) - {KEY})) or 'nothing'}, not for Kosmos-G: tokenize "
            f"with its own CLIP. {WAY_OUT}"
        )
    if not tokens[KEY] or not all(tokens[KEY]):
        raise ValueError(f"There are no tokens to encode: another node has removed them all. {WAY_OUT}")
    for entry, weight, *_ in (entry for section in tokens[KEY] for entry in section):
        if isinstance(entry, Tensor):
            raise ValueError(
                "Among the tokens is a vector, such as a textual inversion: these are made for CLIP and mean nothing "
                f"to Kosmos-G. {WAY_OUT}"
            )
        if not isinstance(entry, dict) and not 0 <= entry < vocabulary:
            raise ValueError(
                f"Among the tokens is number {entry}, but Kosmos-G's end at {vocabulary - 1}: a node put in one of "
                f"CLIP's. {WAY_OUT}"
            )
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(
                f"A token has the weight {weight}; expected a number from 0 up: 1 is neutral, 0 hides a word. What the "
                "picture should not show belongs into the negative prompt."
            )
    return tokens[KEY]


class PromptTokenizer:
    """The `tokenizer` of the CLIP: prompts in the node grammar to sections of entries."""

    def __init__(self, model: KosmosG, description: dict[str, str]) -> None:
        self.model = model
        self.description = description

    def tokenize_with_weights(
        self, text: str | Prompt, return_word_ids: bool = False, images: Sequence[Tensor | Source] = (), **others: Any
    ) -> Tokens:
        """Tokens of `text`; `images` are prepared pictures (3, S, S) or sources, one for each slot of the prompt.

        Raises PromptError for a prompt that cannot be read or has marks without pictures, ValueError for pictures in
        another form.
        """
        if not isinstance(text, str | Prompt):
            raise ValueError(f"The prompt is a {type(text).__name__}, expected one text: {text!r:.60}")
        for option in sorted(name for name, value in others.items() if value):
            warn_once(f"Kosmos-G's tokenizer has no {option}: what a node or pack sets there has no effect on it.")
        side = self.model.config.vision.image_size
        for image in images:
            if isinstance(image, Tensor) and tuple(image.shape) != (3, side, side):
                raise ValueError(
                    f"This node hands pictures to its CLIP in a form for other encoders, {tuple(image.shape)}: use "
                    "Kosmos-G Prompt, and connect them to its image inputs."
                )
        prompt = Prompt.parse(text, images=len(images)) if isinstance(text, str) else text
        # Of ComfyUI's own text nodes and of other packs; Kosmos-G Prompt has its own place for them.
        if isinstance(text, str) and (said := remarks(text, prompt)):
            tell("\n".join(said))  # at once: each replaces the one before on the node
        tokenizer = self.model.required_tokenizer()
        layout = tokenizer.layout(prompt)
        longest = self.model.aligner.source_encoder.longest
        if len(layout.token_ids) > longest:  # known here, long before the layer that would refuse it
            raise ValueError(
                f"The prompt has {len(layout.token_ids):,} tokens (pieces of words and pictures), but this model reads "
                f"at most {longest:,}: shorten the text or give fewer pictures."
            )
        weights = layout.key_weights or [1.0] * len(layout.token_ids)
        section: Section = []
        slots = iter(layout.image_slots)
        word = 0
        inside_image = False
        for token, is_image, weight in zip(layout.token_ids, layout.image_mask, weights, strict=True):
            if is_image and inside_image:  # one entry stands for all embeddings of a picture
                continue
            inside_image = is_image
            if not is_image and (token == tokenizer.ids.image_start or tokenizer.piece(token).startswith("▁")):
                word += 1
            entry = {"type": "image", "data": images[next(slots)]} if is_image else token
            section.append((entry, weight, word) if return_word_ids else (entry, weight))
        return Tokens({KEY: [section]})

    def untokenize(self, section: Section) -> list[tuple[Any, str]]:
        """Each entry with the piece of text it stands for."""
        tokenizer = self.model.required_tokenizer()
        pieces = ("<i>" if isinstance(entry[0], dict) else tokenizer.piece(entry[0]) for entry in section)
        return list(zip(section, pieces, strict=True))

    def state_dict(self) -> dict[str, Tensor]:
        """What makes a file of the weights that ComfyUI saves readable: the tokenizer and the file's description."""
        if into_checkpoint():
            return {}
        # The node that saves knows nothing of Kosmos-G, and its file is none for the node that loads CLIPs.
        tell(SAVED, logging.INFO)
        return {**tokenizer_tensors(self.model.tokenizer), DESCRIPTION: description_tensor(self.description)}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # Python's own questions, when it copies an object
            raise AttributeError(name)
        raise NotClipError(f"its tokenizer's {name!r}")
