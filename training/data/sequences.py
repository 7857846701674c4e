"""From a sample to the token sequence that stages 2 and 3 read, and its pictures.

Layouts, as the first implementation's loaders and the paper (arXiv 2310.02992, section 2.3) have them:

    caption        <s> caption </s>
    edit           <s> caption <image> before </image> instruction </s>        target: after
    compositional  <s> words words <image> entity </image> words ... </s>      target: the whole picture

`<image>` is the begin-of-image id and one position for each latent, where the picture's embeddings go; every stretch of
text is tokenised on its own. Stages 2 and 3 feed the sequence without its `</s>`.

All random choices come from the `random.Random` that is passed in, in the order in which the first implementation drew
them.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from PIL import Image

from kosmos_core.prompt import PromptError
from kosmos_core.special_tokens import SpecialTokens
from kosmos_core.tokenizer import Tokenizer

from .decoding import decode, decode_mask, on_white
from .sample_types import BadSample, CaptionSample, CompositionalSample, EditSample, Entity


def encode(text: str, tokenizer: Tokenizer) -> list[int]:
    """The ids of a text. Raises BadSample where it is no Unicode, such as half a surrogate pair from a JSON escape."""
    try:
        return tokenizer.encode(text)
    except PromptError as error:
        raise BadSample("text is not Unicode") from error


@dataclass
class TokenSequence:
    """Token ids from <s> to </s>, which of them image embeddings replace, the pictures in order, and the target.

    The target is what the functions below were told to make of its encoded bytes: by default the decoded image.
    """

    token_ids: list[int] = field(default_factory=lambda: [SpecialTokens.bos])
    image_mask: list[bool] = field(default_factory=lambda: [False])
    images: list[Image.Image] = field(default_factory=list)
    target: Any = None

    def add_ids(self, ids: list[int]) -> None:
        self.token_ids += ids
        self.image_mask += [False] * len(ids)

    def add_image(self, image: Image.Image, tokenizer: Tokenizer) -> None:
        ids, mask = tokenizer.ids.image(tokenizer.latents)
        self.token_ids += ids
        self.image_mask += mask
        self.images.append(image)


def caption_sequence(
    sample: CaptionSample, tokenizer: Tokenizer, target: Callable[[bytes], Any] = decode
) -> TokenSequence:
    """<s> caption </s>; the picture, if it was read, is the target."""
    sequence = TokenSequence(target=target(sample.image) if sample.image is not None else None)
    sequence.add_ids(encode(sample.caption, tokenizer))
    sequence.add_ids([SpecialTokens.eos])
    return sequence


def edit_sequence(
    sample: EditSample,
    tokenizer: Tokenizer,
    rng: random.Random,
    drop_caption: float,
    target: Callable[[bytes], Any] = decode,
) -> TokenSequence:
    """<s> [caption] <image> before </image> instruction </s>, with one of the pairs.

    drop_caption: probability of leaving the caption out. Drawn first that, then the pair.
    """
    sequence = TokenSequence()
    dropped = rng.random() < drop_caption
    before, after = rng.choice(sample.pairs)
    if not dropped:
        sequence.add_ids(encode(sample.caption, tokenizer))
    sequence.add_image(decode(before), tokenizer)
    sequence.add_ids(encode(sample.instruction, tokenizer))
    sequence.add_ids([SpecialTokens.eos])
    sequence.target = target(after)
    return sequence


def compositional_sequence(
    sample: CompositionalSample,
    tokenizer: Tokenizer,
    rng: random.Random,
    drop_entity: float,
    keep_background: float,
    drop_scope: Literal["sample", "entity"] = "sample",
    empty_start: Literal["keep", "skip"] = "keep",
    target: Callable[[bytes], Any] = decode,
) -> TokenSequence:
    """The caption with every entity's picture behind its words, or in their place where they are dropped.

    drop_entity, keep_background: probabilities; whether words are dropped is drawn once for the sample or for each
    entity (`drop_scope`), whether a background stays for each entity. empty_start: a sequence that would begin with a
    picture, because the caption's first words are dropped, is kept, or skipped (BadSample) as the first implementation
    did.
    """
    sequence, position = TokenSequence(), 0
    dropped = rng.random() < drop_entity if drop_scope == "sample" else False
    for entity in sample.entities:
        if drop_scope == "entity":
            dropped = rng.random() < drop_entity
        words = sample.caption[position : entity.start if dropped else entity.end]
        if not words and empty_start == "skip":
            raise BadSample("entity without words before it")
        sequence.add_ids(encode(words, tokenizer))
        with_background = rng.random() > 1 - keep_background
        sequence.add_image(_entity_image(entity, with_background), tokenizer)
        position = entity.end
    sequence.add_ids(encode(sample.caption[position:], tokenizer))
    sequence.add_ids([SpecialTokens.eos])
    sequence.target = target(sample.target)
    return sequence


def _entity_image(entity: Entity, with_background: bool) -> Image.Image:
    if not with_background and entity.on_white is not None:
        return decode(entity.on_white)
    if with_background or entity.mask is None:
        return decode(entity.crop)
    return on_white(decode(entity.crop), decode_mask(entity.mask))
