"""Text and picture marks as token ids, exactly as the original lays them out (arXiv 2310.02992, section 3.1).

A sequence is bos, then the segments in order, and no eos:
    text      the SentencePiece pieces of all text between two marks, looked up in the dictionary
    picture   image_start, one place for each of its embeddings, image_end

The dictionary gives the ids, one for each of its lines, between the special tokens that open and close the vocabulary
(see `special_tokens`). Text never yields a special token other than unknown, whatever it spells.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .prompt import ImageMark, Prompt, Segment, Text, check_text
from .special_tokens import CLOSING, OPENING, SpecialTokens


class MissingTokenizerError(ValueError):
    """Text was to be encoded by a model whose weight file holds no tokenizer."""

    def __init__(self) -> None:
        super().__init__(
            "These weights hold no tokenizer, so they cannot read text: convert the checkpoint again with "
            "--dict dict.txt --spm sentencepiece.bpe.model, or pass token ids to encode_tokens."
        )


@dataclass(frozen=True)
class TokenSpan:
    """The tokens from `start` up to, not including, `stop` that a segment of the prompt became."""

    start: int
    stop: int
    segment: Segment


@dataclass(frozen=True)
class Layout:
    """One prompt as the model reads it; lists of equal length s.

    token_ids: dictionary ids. image_mask: True where a picture's embeddings replace the token's own. key_weights: the
    weight of each token (see `emphasis`), None if all are 1. image_slots: for each mark in order, the place of its
    picture in the list of pictures, from 0. spans: which tokens came from which segment, one for each segment; bos has
    none.
    """

    token_ids: list[int]
    image_mask: list[bool]
    key_weights: list[float] | None
    image_slots: list[int]
    spans: tuple[TokenSpan, ...]


class Tokenizer:
    """A SentencePiece model with the dictionary that numbers its pieces.

    `latents` is the number of embeddings that stand for one picture; the attribute `ids` holds the special tokens.
    Raises ValueError where the SentencePiece model cannot be read, a line of the dictionary is broken, or the two do
    not belong together.
    """

    def __init__(self, spm: bytes, dictionary: bytes, latents: int = 64, name: str = "the dictionary") -> None:
        self._spm_bytes, self._dictionary_bytes, self.latents = spm, dictionary, latents
        try:
            self._spm = _processor(spm)
        except RuntimeError as error:
            raise ValueError(f"These {len(spm)} bytes are not a SentencePiece model: {error}") from None
        pieces = _read_dictionary(dictionary, name)
        self._id_of_piece = {piece: number for number, piece in enumerate(pieces, len(OPENING))}
        self._pieces = [*OPENING, *pieces, *CLOSING]
        self.vocabulary = len(self._pieces)
        self.ids = SpecialTokens.of_vocabulary(self.vocabulary)
        self._check_pair(name)

    @classmethod
    def from_files(cls, spm: str | Path, dictionary: str | Path | None = None, latents: int = 64) -> Tokenizer:
        """Read a SentencePiece model and its dict.txt (one `piece count` a line).

        Without `dictionary` it is made from the model's own pieces, in their order: for a newly trained vocabulary.
        Raises ValueError, as the class does, where a file cannot be read as well.
        """
        spm_bytes = _read(spm, "a SentencePiece model such as sentencepiece.bpe.model")
        if dictionary is None:
            return cls(spm_bytes, dictionary_of(spm_bytes), latents, f"the dictionary of {spm}")
        return cls(spm_bytes, _read(dictionary, "its dict.txt"), latents, str(dictionary))

    @classmethod
    def from_bytes(cls, spm: bytes, dictionary: bytes, latents: int = 64) -> Tokenizer:
        """The inverse of `to_bytes`."""
        return cls(bytes(spm), bytes(dictionary), latents)

    def to_bytes(self) -> tuple[bytes, bytes]:
        """The SentencePiece model and the dictionary, byte for byte as they were read."""
        return self._spm_bytes, self._dictionary_bytes

    def __reduce__(self) -> tuple:
        return type(self).from_bytes, (*self.to_bytes(), self.latents)

    def encode(self, text: str) -> list[int]:
        """The ids of a text on its own: no bos, no eos, no marks. Raises PromptError on half a surrogate pair."""
        check_text(text)
        return [self._id_of_piece.get(piece, self.ids.unknown) for piece in self._spm.encode(text, out_type=str)]

    def negative(self, text: str = "") -> list[int]:
        """The ids of a negative prompt, which has neither marks nor weights: bos, then the text."""
        return [self.ids.bos, *self.encode(text)]

    def layout(self, prompt: str | Prompt, latents: int | None = None) -> Layout:
        """Lay out a prompt: a parsed Prompt, or a string in the original's grammar, where `<i>` is the only mark.

        Weights never change the token ids: text between two marks is cut into pieces as a whole, and a piece takes the
        mean weight of its characters. A picture's weight holds for its start, embeddings and end. Raises TypeError for
        what is neither, PromptError on half a surrogate pair.
        """
        if not isinstance(prompt, Prompt):
            prompt = Prompt.original(prompt)
        latents = self.latents if latents is None else latents
        token_ids, image_mask, weights, spans = [self.ids.bos], [False], [1.0], []
        image_ids, image_places = self.ids.image(latents)
        for is_image, run in itertools.groupby(prompt.segments, key=lambda segment: isinstance(segment, ImageMark)):
            for image in run if is_image else ():
                spans.append(TokenSpan(len(token_ids), len(token_ids) + len(image_ids), image))
                token_ids += image_ids
                image_mask += image_places
                weights += [image.weight] * len(image_ids)
            if not is_image:
                ids, text_weights, text_spans = self._lay_out_text(list(run), len(token_ids))
                token_ids += ids
                image_mask += [False] * len(ids)
                weights += text_weights
                spans += text_spans
        return Layout(
            token_ids,
            image_mask,
            None if all(weight == 1 for weight in weights) else weights,
            [image.index for image in prompt.images],
            tuple(spans),
        )

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids, for people to read: `<i>` for each picture, no bos, pad or eos."""
        special, words = self.ids, []
        inside_image = False
        for token in ids:
            if token == special.image_start and not inside_image:
                words.append(" <i>▁")
            inside_image = token == special.image_start
            if token not in (special.bos, special.pad, special.eos, special.image_start, special.image_end):
                words.append(self.piece(token))
        return " ".join("".join(words).replace("▁", " ").split())

    def piece(self, token: int) -> str:
        """The dictionary's name of an id, such as `▁dog` (`▁` stands for a space) or `<image>` for image_start."""
        if not 0 <= token < self.vocabulary:
            raise ValueError(f"Token id {token} is outside the vocabulary: expected 0 to {self.vocabulary - 1}.")
        return self._pieces[token]

    def _lay_out_text(self, texts: Sequence[Text], start: int) -> tuple[list[int], list[float], list[TokenSpan]]:
        """Ids, weights and spans of the texts between two marks, the first id being token number `start`."""
        if len(texts) == 1:
            ids = self.encode(texts[0].text)
            return ids, [texts[0].weight] * len(ids), [TokenSpan(start, start + len(ids), texts[0])]
        whole = "".join(text.text for text in texts)
        owner = [number for number, text in enumerate(texts) for _ in text.text]
        ids, weights, tokens_of = [], [], Counter()
        for piece, first, last in self._pieces_with_offsets(whole):
            # A space in front belongs to the word after it, and a piece that is only part of one character to that.
            characters = [at for at in range(first, last) if not whole[at].isspace()] or [min(first, len(whole) - 1)]
            owners = [owner[at] for at in characters]
            ids.append(self._id_of_piece.get(piece, self.ids.unknown))
            weights.append(_mean([texts[number].weight for number in owners]))
            tokens_of[owners[0]] += 1
        stops = itertools.accumulate((tokens_of[number] for number in range(len(texts))), initial=start)
        spans = [TokenSpan(*edges, text) for edges, text in zip(itertools.pairwise(stops), texts, strict=True)]
        return ids, weights, spans

    def _pieces_with_offsets(self, text: str) -> list[tuple[str, int, int]]:
        """Each piece with the characters of `text` that it covers."""
        if hasattr(self._spm, "EncodeAsOffsetMapping"):  # sentencepiece 0.2.2 and later
            mapping = self._spm.EncodeAsOffsetMapping(text)
            return [(piece, *offsets) for piece, offsets in zip(mapping["pieces"], mapping["offsets"], strict=True)]
        proto = self._spm.encode(text, out_type="immutable_proto")
        return [(piece.piece, piece.begin, piece.end) for piece in proto.pieces]

    def _check_pair(self, name: str) -> None:
        """Refuse a dictionary that numbers another model's pieces: all text would silently become unknown."""
        pieces = self._spm.id_to_piece(list(range(self._spm.get_piece_size())))
        missing = [piece for piece in pieces if piece not in self._id_of_piece]
        if len(missing) > len(pieces) / 2:
            raise ValueError(
                f"{name} lacks {len(missing)} of the SentencePiece model's {len(pieces)} pieces, such as "
                f"'{missing[-1]}': the two files do not belong together."
            )


def _read(path: str | Path, expected: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); give {expected}.") from None


def _processor(spm: bytes) -> Any:
    """The SentencePiece processor of a model; its package is imported here, so that ComfyUI's start does not wait."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor()
    processor.LoadFromSerializedProto(spm)
    return processor


def dictionary_of(spm: bytes) -> bytes:
    """A dict.txt for a SentencePiece model: its ordinary pieces in their order, each with the count 1."""
    model = _processor(spm)
    ordinary = (number for number in range(len(model)) if not (model.is_control(number) or model.is_unknown(number)))
    return "".join(f"{model.id_to_piece(number)} 1\n" for number in ordinary).encode()


def _read_dictionary(dictionary: bytes, name: str) -> list[str]:
    """The pieces of a dict.txt; raises ValueError with the number of the first line that is not `piece count`."""
    try:
        lines = dictionary.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        line = dictionary.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{name}, line {line}: not UTF-8 text ({error.reason}).") from None
    if not lines[-1].strip():
        lines.pop()
    pieces: dict[str, int] = dict.fromkeys((*OPENING, *CLOSING), 0)
    for number, line in enumerate(lines, 1):
        piece, _, count = line.rpartition(" ")
        if not piece or not count.rstrip("\r").isdecimal():
            shown = line if len(line) <= 40 else line[:40] + "…"
            raise ValueError(f"{name}, line {number}: {shown!r} is not a piece, a space and a count, such as '▁dog 1'.")
        first = pieces.setdefault(piece, number)
        if first != number:
            where = f"stands in line {first} already" if first else "is a name of the model's own"
            raise ValueError(f"{name}, line {number}: the piece {piece!r} {where}; every piece needs its own id.")
    return list(pieces)[len(OPENING) + len(CLOSING) :]


def _mean(weights: Sequence[float]) -> float:
    """The mean, and exactly the common weight where all are equal: (1.3 + 1.3 + 1.3) / 3 is not 1.3."""
    return weights[0] if len(set(weights)) == 1 else sum(weights) / len(weights)
