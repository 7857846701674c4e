"""Small Kosmos-G files made on the fly: random weights, a SentencePiece vocabulary trained on made-up captions."""

from __future__ import annotations

import dataclasses
import functools
import io
from pathlib import Path

import sentencepiece

from kosmos_core import KosmosG, KosmosGConfig, Tokenizer, save_model
from kosmos_core.tokenizer import dictionary_of

CAPTIONS = [
    f"{opening} {look} {noun} {doing} the {place}"
    for opening in ("a photo of a", "a painting of the", "one tiny")
    for look in ("red", "blue", "golden", "wooden", "wonderful", "striped glass")
    for noun in ("dog", "cat", "horse", "ship", "kettle", "apple tree", "robot wearing a hat", "child with sunglasses")
    for doing in ("on", "swimming in", "asleep beside", "standing near")
    for place in ("beach.", "forest, highly detailed", "old street!", "kitchen table", "mountain")
]


@functools.cache
def sentencepiece_model() -> bytes:
    """A unigram model with about 250 pieces, trained as the original's was."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*CAPTIONS, "0123456789 ()<>:/\\-_'\""]),
        model_writer=model,
        model_type="unigram",
        vocab_size=250,
        character_coverage=1.0,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def tiny_tokenizer(latents: int = 4) -> Tokenizer:
    """A tokenizer with that vocabulary."""
    content = sentencepiece_model()
    return Tokenizer.from_bytes(content, dictionary_of(content), latents)


def save_vocabulary(folder: Path) -> tuple[Path, Path]:
    """Write the vocabulary as the two files that `Tokenizer.from_files` takes; returns their paths."""
    model, dictionary = folder / "tiny.model", folder / "dict.txt"
    model.write_bytes(sentencepiece_model())
    dictionary.write_bytes(dictionary_of(sentencepiece_model()))
    return model, dictionary


def save_tiny_kosmos(path: Path, seed: int = 5, **vision: int) -> Path:
    """Write a Kosmos-G file of a few hundred thousand random weights; `vision` changes sizes of the vision tower."""
    tokenizer = tiny_tokenizer()
    config = KosmosGConfig.tiny(vocabulary=tokenizer.vocabulary)
    config = dataclasses.replace(config, vision=dataclasses.replace(config.vision, **vision))
    model = KosmosG(config, tokenizer=tokenizer).initialize(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_model(model, path, stage="instruct", provenance={"origin": "random weights made for a test"})
    return path
