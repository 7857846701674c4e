"""Small Kosmos-G files made on the fly: random weights, a SentencePiece vocabulary trained on a few lines."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import sentencepiece

from kosmos_core import KosmosG, KosmosGConfig, Tokenizer, save_model
from kosmos_core.tokenizer import dictionary_of

SENTENCES = [
    "a red apple on a table",
    "a dog at the beach wearing a hat",
    "a cat and a dog in the snow",
    "the small house under a tree",
    "two green boats at the beach",
    "an old car made of glass",
    "a cup and a book on a chair",
    "a bird with a flower under the moon",
]


def tiny_tokenizer(latents: int) -> Tokenizer:
    """A tokenizer with a small vocabulary: a few words, and letters for the rest."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 10),
        model_writer=model,
        vocab_size=160,
        character_coverage=1.0,
        hard_vocab_limit=False,
        minloglevel=2,
        pad_id=-1,
        unk_id=0,
        bos_id=1,
        eos_id=2,
    )
    content = model.getvalue()
    return Tokenizer.from_bytes(content, dictionary_of(content), latents)


def save_tiny_kosmos(path: Path, seed: int = 5, **vision: int) -> Path:
    """Write a Kosmos-G file of a few hundred thousand random weights; `vision` changes sizes of the vision tower."""
    config = KosmosGConfig.tiny()
    tokenizer = tiny_tokenizer(config.resampler.latents)
    config = dataclasses.replace(
        config,
        vision=dataclasses.replace(config.vision, **vision),
        decoder=dataclasses.replace(config.decoder, vocabulary=tokenizer.vocabulary),
    )
    model = KosmosG(config, tokenizer=tokenizer).initialize(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_model(model, path, stage="instruct", provenance={"origin": "random weights made for a test"})
    return path
