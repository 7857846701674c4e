"""The pictures of a prompt as nodes take them: the type KOSMOSG_IMAGE, the eight inputs, and what is connected.

KOSMOSG_PROMPT is a prompt as a Kosmos-G Prompt was given it, so that other nodes need not be given the same again.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..kosmos_core import Prompt
from ..kosmos_core.prompt import PromptError, check_all_used
from ..kosmos_core.prompt_remarks import remarks
from ..kosmos_core.reference import Mean, Reference, Source, View, average, with_references
from .schema import check_choice

SLOTS = 8
MOST_IMAGES = 1024  # each is kept prepared, in 0.6 MB for a model of 224 px
ONE_SUBJECT, ONE_EACH = "images are one subject", "one conditioning per picture"
BATCH_MODES = (ONE_SUBJECT, ONE_EACH)

KosmosGImage = io.Custom("KOSMOSG_IMAGE")
KosmosGPrompt = io.Custom("KOSMOSG_PROMPT")


def image_inputs() -> list[io.Input]:
    """The optional inputs image_1 to image_8, which take an IMAGE or a KOSMOSG_IMAGE."""
    return [
        io.MultiType.Input(
            f"image_{slot}",
            [io.Image, KosmosGImage],
            optional=True,
            tooltip=f"The picture that <i{slot}> names. The model sees the central square of an image; connect a "
            "Kosmos-G Reference to cut out the subject, to weigh it or to give it a noun.",
        )
        for slot in range(1, SLOTS + 1)
    ]


@dataclass(frozen=True)
class WrittenPrompt:
    """What a Kosmos-G Prompt was given: both texts, the pictures by the names of their inputs, what a batch means."""

    text: str
    negative: str = ""
    images: Mapping[str, Any] = field(default_factory=dict)
    batch: str = ONE_SUBJECT

    def gather(self, mode: str | None = None) -> PromptImages:
        """The connected pictures, in another batch mode where one is named. Raises as `PromptImages.gather` does."""
        return PromptImages.gather(self.images, mode or self.batch)


@dataclass(frozen=True)
class PromptImages:
    """The connected pictures: the slots that they fill, and for each conditioning to make one reference per slot."""

    slots: tuple[int, ...]
    batches: tuple[tuple[Reference, ...], ...]

    @classmethod
    def gather(cls, inputs: Mapping[str, Any], mode: str = ONE_SUBJECT) -> PromptImages:
        """Read image_1 to image_8, of which those not connected are absent or None.

        `images are one subject` averages a batch; `one conditioning per picture` makes as many conditionings as the
        batches have pictures. ValueError for an empty batch, too many pictures, or batches of different sizes.
        """
        check_choice("batch", mode, BATCH_MODES)
        _check_number(inputs)
        given = {
            slot: _references(inputs[f"image_{slot}"], slot)
            for slot in range(1, SLOTS + 1)
            if inputs.get(f"image_{slot}") is not None
        }
        if mode == ONE_SUBJECT:
            return cls(tuple(given), (tuple(average_of(references) for references in given.values()),))
        sizes = {len(references) for references in given.values()} - {1}
        if len(sizes) > 1:
            listed = ", ".join(f"image_{slot} has {len(references)}" for slot, references in given.items())
            raise ValueError(f"Batches of different sizes: {listed}. Give the same number of pictures, or one picture.")
        count = max(sizes, default=1)
        batches = tuple(
            tuple(references[index if len(references) > 1 else 0] for references in given.values())
            for index in range(count)
        )
        return cls(tuple(given), batches)

    def __bool__(self) -> bool:
        return bool(self.slots)

    def parse_both(self, text: str, negative: str) -> tuple[list[Prompt], list[Prompt]]:
        """The prompts and the negative prompts for each conditioning; every picture has a mark in either.

        In the negative, `<i>` takes the next picture that has no mark yet. It is one prompt where it has no pictures.
        PromptError where something is wrong.
        """
        prompt = Prompt.parse(text, slots=self.slots, all_used=False)
        unwanted = _parse_negative(negative, self.slots, prompt)
        check_all_used((*prompt.segments, *unwanted.segments), self.slots, text)
        batches = self.batches if unwanted.images else self.batches[:1]
        return (
            [with_references(prompt, references) for references in self.batches],
            [with_references(unwanted, references) for references in batches],
        )

    def remarks(self, text: str, negative: str) -> list[str]:
        """Sentences on what does not do what it may be meant to: in both texts, and the same picture on two inputs.

        Raises PromptError as `parse_both` does.
        """
        (prompt, *_), (unwanted, *_) = self.parse_both(text, negative)
        found = remarks(text, prompt)
        found += [f"In the negative prompt: {remark}" for remark in remarks(negative, unwanted)]
        return found + self._twins()

    def _twins(self) -> list[str]:
        pairs = itertools.combinations(zip(self.slots, self.batches[0], strict=True), 2)
        twins = [f"image_{first} and image_{second}" for (first, one), (second, other) in pairs if _same(one, other)]
        if not twins:
            return []
        return [
            f"{'; '.join(twins[:4])}{'; …' if len(twins) > 4 else ''} hold the same picture. A list, such as the "
            "references of Kosmos-G Entities, runs this node once for each of its items and gives that item to all "
            "inputs: for two items in one prompt, use two Kosmos-G Entities with a number each in only."
        ]

    def sources(self, size: int, index: int = 0) -> list[Tensor | Source]:
        """What CLIP.tokenize takes as images for one conditioning of a model with pictures of `size`.

        Raises ValueError that names the input for a picture that cannot be read (NaN and the like).
        """
        sources: list[Tensor | Source] = []
        for slot, reference in zip(self.slots, self.batches[index], strict=True):
            try:
                # Prepared here, so that a mistake is found before anything is computed and its input can be named.
                sources.append(_prepared(reference.source, size))
            except ValueError as error:
                raise ValueError(f"image_{slot}: {error}") from error
        return sources


def _check_number(inputs: Mapping[str, Any]) -> None:
    """Count before anything is made of the pictures: a whole film may be connected."""
    held = {name: len(value) for name, value in inputs.items() if isinstance(value, Tensor)}
    if sum(held.values()) > MOST_IMAGES:
        largest = max(held, key=held.__getitem__)
        raise ValueError(
            f"{largest} holds {held[largest]:,} pictures, but one node reads at most {MOST_IMAGES:,} in all: choose "
            "some of them with Get Image from Batch."
        )


def _parse_negative(text: str, slots: tuple[int, ...], beside: Prompt) -> Prompt:
    try:
        return Prompt.parse(text, slots=slots, beside=beside, all_used=False)
    except PromptError as error:
        raise PromptError(f"In the negative prompt: {error.reason}", error.prompt, error.position) from None


def _prepared(source: Source, size: int) -> Tensor | Source:
    if isinstance(source, View):
        return source.prepared(size)
    if isinstance(source, Mean):
        return replace(source, sources=tuple(_prepared(part, size) for part in source.sources))
    return source


def average_of(references: Sequence[Reference]) -> Reference:
    """One reference for a batch; a single one is itself."""
    return references[0] if len(references) == 1 else average(references)


def _same(one: Reference, other: Reference) -> bool:
    """Whether two references are of the same pictures."""
    views, others = one.views, other.views
    if not views or len(views) != len(others):
        return one.source is other.source
    return all(
        view.squash == seen.squash and (view.pixels is seen.pixels or torch.equal(view.pixels, seen.pixels))
        for view, seen in zip(views, others, strict=True)
    )


def _references(value: Tensor | Reference, slot: int) -> list[Reference]:
    """One reference per picture of the batch."""
    if isinstance(value, Reference):
        return [value]
    if not len(value):
        raise ValueError(f"image_{slot} holds an empty batch: connect at least one picture.")
    return [Reference(View(image)) for image in value]


def describe_source(reference: Reference) -> str:
    """A few words on what a reference was made of."""
    views = reference.views
    if not views:
        return "from a file"
    sizes = ", ".join(f"{view.pixels.shape[1]} x {view.pixels.shape[0]}" for view in views[:4])
    return sizes if len(views) == 1 else f"mean of {len(views)} pictures ({sizes}{', …' if len(views) > 4 else ''})"


def as_bytes(image: Tensor) -> Tensor:
    """One picture (h, w, c) in floats 0..1 as uint8; ValueError for NaN or infinity."""
    if not torch.isfinite(image).all():
        raise ValueError("The picture holds NaN or infinite values: expected numbers in 0..1.")
    return (image.float() * 255).round().clamp(0, 255).to(torch.uint8)
