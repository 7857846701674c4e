"""A reference picture of a subject, before and after encoding, and its files.

A Reference is a source with a weight and a noun. Its source is a View (a cut-out picture, encoded when it is used), an
Encoded (image embeddings from a file) or a Mean of such sources. Nothing here is changed in place.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import safetensors
import torch
from torch import Tensor

from .crops import Crop
from .images import CLIP_MEAN, CLIP_STD, AnyImage, normalise
from .prompt import MAX_WEIGHT as MOST_TOGETHER
from .prompt import WEIGHT_RANGE, ImageMark, Prompt, Segment, Text, check_text
from .resized import resized
from .safetensors_file import WeightsError, read_header, write
from .saved_clip import read_kosmos_header

FORMAT = "kosmos-g-reference"
FORMAT_VERSION = "1"
EMBEDDINGS = "picture_tokens"  # the tensor's name in a file
MAX_WEIGHT = 2.0
LONGEST_NOUN = 200  # characters
LARGEST_SIDE = 65536  # of the embeddings in a file
LARGEST_EMBEDDING = 1e6  # in magnitude; what models make stays below 100
PICTURE_PARTS = ("vision.", "resampler.")  # beginnings of the names of what turns pictures into embeddings
# Of what makes the condition of them: all but AlignerNet's half that only training uses, which a file may lack.
PROMPT_PARTS = ("decoder.", "aligner.source_encoder.", "aligner.query_decoder.")

# What a view goes through before the vision tower: image embeddings made in another way are not comparable.
PREPARATION = hashlib.blake2b(
    json.dumps(["resize shorter side, bicubic, 8 bits", "centre crop", CLIP_MEAN, CLIP_STD]).encode(), digest_size=8
).hexdigest()


@dataclass(frozen=True)
class View:
    """A picture (h, w, channels) as `to_rgb` takes it; `squash` brings its sides to one length instead of cropping."""

    pixels: AnyImage
    squash: bool = False

    def seen(self, size: int = 224) -> Tensor:
        """What a model with pictures of `size` sees, (size, size, 3) uint8."""
        image = resized(self.pixels, size, self.squash)
        return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(size, size, 3)

    def prepared(self, size: int = 224) -> Tensor:
        """Input of the vision tower, (3, size, size) float32, CLIP-normalised."""
        return normalise(resized(self.pixels, size, self.squash))


@dataclass(frozen=True)
class Encoded:
    """Image embeddings (latents, width) float32, the fingerprint of the model that made them, their file's name.

    `tuned` ones were improved through language model and AlignerNet as well (`training.personalize`), so that the
    fingerprint is that of the whole model.
    """

    image_embeddings: Tensor
    model: str
    name: str
    tuned: bool = False


@dataclass(frozen=True)
class Mean:
    """The mean of several pictures' embeddings, with `shares` that sum to 1.

    `keep_norm` scales it to the mean of their norms, which a plain mean of unlike embeddings falls short of.
    """

    sources: tuple[Source | Tensor, ...]
    shares: tuple[float, ...]
    keep_norm: bool = False


Source = View | Encoded | Mean


@dataclass(frozen=True)
class Reference:
    """A subject for a mark in a prompt; `weight` multiplies with the prompt's, `noun` names the subject."""

    source: Source
    weight: float = 1.0
    noun: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= MAX_WEIGHT:
            raise ValueError(f"The weight of a reference is {self.weight}; expected 0 to {MAX_WEIGHT:g}.")
        if len(self.noun) > LONGEST_NOUN:
            raise ValueError(
                f"The noun of a reference has {len(self.noun):,} characters; expected a word or two, such as dog "
                f"(at most {LONGEST_NOUN})."
            )
        check_text(self.noun)

    @classmethod
    def of_crop(cls, crop: Crop, *, squash: bool = False, weight: float = 1.0, noun: str = "") -> Reference:
        """Reference from a cut-out picture."""
        return cls(View(torch.from_numpy(crop.pixels), squash), weight, noun.strip())

    @classmethod
    def load(cls, path: str | os.PathLike) -> Reference:
        """The reference of a file, see `load_reference`."""
        return load_reference(path)

    @property
    def tuned(self) -> bool:
        """Whether any part of it was tuned, and so belongs to one whole model."""
        return _tuned(self.source)

    @property
    def views(self) -> tuple[View, ...]:
        """The pictures in it, in order; of what comes from a file, the picture is no longer known."""
        return tuple(_views(self.source))


def average(references: Sequence[Reference], keep_norm: bool = False) -> Reference:
    """Several pictures of one subject as one reference of weight 1, each with a share in proportion to its weight.

    The noun is the first one given. Raises ValueError for no reference, or where all weights are 0.
    """
    total = sum(reference.weight for reference in references)
    if not references or not total:
        what = "all references have the weight 0" if references else "there is no reference"
        raise ValueError(f"Nothing to average: {what}; give at least one with a weight above 0.")
    weighted = [reference for reference in references if reference.weight]
    noun = next((reference.noun for reference in references if reference.noun), "")
    if len(weighted) == 1:
        return Reference(weighted[0].source, noun=noun)
    shares = tuple(reference.weight / total for reference in weighted)
    return Reference(Mean(tuple(reference.source for reference in weighted), shares, keep_norm), noun=noun)


def image_embeddings(
    source: Source | Tensor,
    size: int,
    embed: Callable[[Tensor], Tensor],
    model: Callable[..., str],
    shape: tuple[int, int] | None = None,
) -> Tensor:
    """Image embeddings (latents, width) of a source, or of a picture (3, size, size) that is prepared already.

    `embed` encodes a prepared picture; `model` gives the fingerprint of the model that does, and with `whole=True` that
    of all that turns a prompt into a condition; `shape` is (latents, width) of what it makes. Raises ValueError for a
    reference from a file that another model made.
    """
    if isinstance(source, View):
        source = source.prepared(size)
    if isinstance(source, Tensor):
        return embed(source)
    if isinstance(source, Encoded):
        loaded = model(whole=True) if source.tuned else model()
        if source.model != loaded:
            again = "tune the subject again with this one" if source.tuned else "encode the picture again and save it"
            raise ValueError(
                f"The reference {source.name} was encoded by another Kosmos-G file ({source.model[:8]}, loaded is "
                f"{loaded[:8]}), whose embeddings mean nothing to this one: load that file, or {again}."
            )
        held = tuple(source.image_embeddings.shape)
        if shape is not None and held != shape:
            raise ValueError(
                f"The reference {source.name} holds {held[0]} x {held[1]} numbers, but this model reads {shape[0]} x "
                f"{shape[1]} for a picture: the file is damaged; encode the picture again and save it."
            )
        return source.image_embeddings
    parts = torch.stack([image_embeddings(part, size, embed, model, shape) for part in source.sources])
    shares = torch.tensor(source.shares)[:, None, None]
    mean = (parts * shares).sum(0)
    if not source.keep_norm:
        return mean
    norms = (parts.norm(dim=-1, keepdim=True) * shares).sum(0)
    return mean * norms / mean.norm(dim=-1, keepdim=True).clamp(min=1e-12)


def with_references(prompt: Prompt, references: Sequence[Reference | None]) -> Prompt:
    """The prompt with the references' weights and nouns; `references` is indexed like the prompt's pictures.

    A noun is put before its mark unless the text since the previous mark already has it. Raises ValueError where the
    weights in the prompt and of a reference multiply to more than a prompt may have.
    """
    segments: list[Segment] = []
    before: list[Text] = []  # texts since the previous mark
    for segment in prompt.segments:
        if isinstance(segment, ImageMark):
            reference = references[segment.index]
            if reference is not None:
                words = "".join(text.text for text in before)
                if reference.noun and not re.search(rf"(?<!\w){re.escape(reference.noun)}(?!\w)", words, re.IGNORECASE):
                    gap = "" if not words or words[-1].isspace() else " "
                    if not words and segments:
                        gap = " "
                    segments.append(Text(f"{gap}{reference.noun} ", before[-1].weight if before else 1.0))
                weight = segment.weight * reference.weight
                if weight > MOST_TOGETHER:
                    raise ValueError(
                        f"<i{segment.slot}> has the weight {segment.weight:g} in the prompt and {reference.weight:g} "
                        f"in its reference: their product, {weight:g}, {WEIGHT_RANGE}."
                    )
                segment = replace(segment, weight=weight)
            before = []
        else:
            before.append(segment)
        segments.append(segment)
    return Prompt(tuple(segments))


def model_fingerprint(path: str | os.PathLike, whole: bool = False) -> str:
    """Hash of the parts of a Kosmos-G file that turn a picture into embeddings; equal files agree whatever their names.

    `whole` takes all parts that turn a prompt with pictures into a condition. It is taken from the file, so the type
    that the weights were loaded in does not matter. Cached until the file changes.
    """
    status = os.stat(path)
    return _fingerprint(os.fspath(path), status.st_mtime_ns, status.st_size, whole)


@lru_cache(maxsize=16)
def _fingerprint(path: str, modified: int, size: int, whole: bool) -> str:
    digest = hashlib.blake2b(digest_size=16)
    header, prefix = read_kosmos_header(path)
    parts = (*PICTURE_PARTS, *PROMPT_PARTS) if whole else PICTURE_PARTS
    with safetensors.safe_open(path, framework="pt") as file:
        for name in sorted(header.shapes):
            if name.startswith(parts):
                tensor = file.get_tensor(prefix + name).contiguous()
                digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
                digest.update(memoryview(tensor.flatten().view(torch.uint8).numpy()))
    return digest.hexdigest()


def save_reference(
    path: str | os.PathLike,
    embeddings: Tensor,
    reference: Reference,
    model: str,
    *,
    new: bool = False,
    tuned: str | None = None,
) -> None:
    """Write image embeddings (latents, width) with weight, noun and the hashes of model and preparation, atomically.

    tuned: how they were tuned, a JSON text, for those whose `model` is the fingerprint of the whole model; a
    `reference` with a tuned part is one. FileExistsError where the file has to be `new` and is not.
    """
    metadata = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "model": model,
        "preparation": PREPARATION,
        "weight": repr(float(reference.weight)),
        "noun": reference.noun,
    }
    if tuned is not None or reference.tuned:
        metadata["tuned"] = tuned or "{}"
    write(path, [(EMBEDDINGS, embeddings.float(), torch.float32)], metadata, new=new)


def load_reference(path: str | os.PathLike) -> Reference:
    """Read what `save_reference` wrote; WeightsError for anything else. The model is checked where it is used."""
    name = os.path.basename(path)
    again = "encode the picture again and save it"
    try:
        header = read_header(path)
    except WeightsError as error:
        # The sentence reaches whoever uses the server: its folders are not for them.
        raise WeightsError(str(error).replace(os.fspath(path), name)) from None
    metadata: Mapping[str, str] = header.metadata
    if metadata.get("format") != FORMAT or EMBEDDINGS not in header.shapes:
        raise WeightsError(f"{name} is not a saved Kosmos-G reference; choose a file that was saved as one")
    for key, expected in (("format_version", FORMAT_VERSION), ("preparation", PREPARATION)):
        if metadata.get(key) != expected:
            raise WeightsError(
                f"{name} was saved by a release that prepared pictures differently ({key} "
                f"{str(metadata.get(key))[:40]!r}, expected {expected}); {again}"
            )
    shape, kind = header.shapes[EMBEDDINGS], header.dtypes[EMBEDDINGS]
    if kind != "F32" or len(shape) != 2 or not all(0 < side <= LARGEST_SIDE for side in shape):
        raise WeightsError(
            f"{name} holds {str(kind)[:20]} numbers of shape {str(shape)[:60]}; "
            f"expected F32 of (latents, width): {again}"
        )
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            embeddings = file.get_tensor(EMBEDDINGS)
    except (safetensors.SafetensorError, OSError):
        raise WeightsError(f"{name} is damaged or cannot be read; {again}") from None
    if not (embeddings.abs() <= LARGEST_EMBEDDING).all():  # NaN compares as false
        raise WeightsError(
            f"{name} is damaged: it holds NaN, infinity or numbers above {LARGEST_EMBEDDING:g}, which would become NaN "
            f"on their way; {again}"
        )
    try:
        source = Encoded(embeddings, metadata["model"], name, "tuned" in metadata)
        return Reference(source, float(metadata["weight"]), metadata["noun"])
    except (KeyError, ValueError) as error:
        raise WeightsError(f"{name} is damaged ({error}); {again}") from error


def _views(source: Source) -> Iterator[View]:
    if isinstance(source, View):
        yield source
    elif isinstance(source, Mean):
        for part in source.sources:
            yield from _views(part)


def _tuned(source: Source) -> bool:
    if isinstance(source, Mean):
        return any(_tuned(part) for part in source.sources if not isinstance(part, Tensor))
    return isinstance(source, Encoded) and source.tuned
