"""The photographs of a subject: read, checked, and which of them is held out to tell when to stop.

A folder holds them as `NAME.jpg` or another picture file; beside one may lie its mask, `NAME.mask.png` (white where the
subject is), and its caption, `NAME.txt`, with names and endings in any case.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kosmos_core.crops import crop_subject
from kosmos_core.images import (
    IMAGE_ENDINGS,
    ImageError,
    is_image_name,
    open_image,
    open_undecoded,
    preprocess_image,
    resize_and_crop,
)
from kosmos_core.mask_boxes import at_size, largest_box

from ..base.errors import ConfigError
from ..base.text import TEXT_ENDINGS, decode_text
from ..data.decoding import target_pixels
from ..evaluate.subjects import MASK

SMALLEST = 0.5  # of the size that is painted: a photograph enlarged more than twice teaches its blur
HELD_OUT = 5  # one of so many
LONGEST_CAPTION = 8_000  # bytes; far beyond what a prompt has places for
LISTED = 5  # names shown of a long list
OTHER_MARK = re.compile(r"<i\d+>")  # of a numbered image in a prompt

Note = Callable[[str], None]


@dataclass(frozen=True)
class Sizes:
    """Sides in pixels of the picture that is painted and of the one that the encoder sees."""

    painted: int
    seen: int


@dataclass(frozen=True)
class Photograph:
    """One photograph, as what it is used for.

    view: what the encoder is shown, (3, S, S) float32, CLIP-normalised: the subject on white, cut out as in training,
    where there is a mask. target: what is to be painted, (3, r, r) uint8. inside: the mask there, (r, r) float32 from 0
    to 1, or None. digest: of the whole picture.
    """

    name: str
    view: Tensor
    target: Tensor
    inside: Tensor | None
    caption: str
    digest: str


def read_photographs(folder: str | Path, sizes: Sizes, note: Note, option: str = "--images") -> list[Photograph]:
    """The usable photographs of a folder by name; `note` is told of each that is left out.

    ConfigError, which begins with `option`, where none is left.
    """
    folder = Path(folder)
    try:
        names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise ConfigError(
            f"{option}: {folder} is no folder that can be read ({error.strerror}); give the folder of the photographs."
        ) from None
    pictures = [name for name in names if is_image_name(name) and not name.lower().endswith(MASK)]
    beside = {name.lower(): name for name in reversed(names)}  # of two that differ in case alone the first
    expected = f"give a folder with a few photographs of one subject ({', '.join(IMAGE_ENDINGS[:4])} and others)"
    if not pictures:
        raise ConfigError(f"{option}: {folder} holds no photograph, but {_listed(names)}; {expected}.")
    known = {*pictures, *(companion for name in pictures for companion in _companions(name, beside))}
    if others := [name for name in names if name not in known]:
        note(f"{folder}: not read: {_listed(others)}.")
    found: list[Photograph] = []
    for number, name in enumerate(pictures):
        try:
            namesake = next((other for other in pictures[:number] if _stem(other) == _stem(name)), None)
            if namesake is not None and (shared := [x for x in _companions(name, beside) if x]):
                raise ValueError(f"{namesake} has the same name, so that {shared[0]} would be of both; rename one")
            photograph = _read(folder / name, beside, sizes)
            same = next((other.name for other in found if other.digest == photograph.digest), None)
            if same is not None:  # held out, it would tell nothing
                raise ValueError(f"it is the same picture as {same}")
            found.append(photograph)
        except ValueError as error:
            note(f"{folder / name} is left out: {str(error).rstrip('.')}.")
    if not found:
        raise ConfigError(f"{option}: none of the {len(pictures)} photographs in {folder} can be used; {expected}.")
    return found


def held_out(photographs: Sequence[Photograph]) -> tuple[list[Photograph], list[Photograph]]:
    """Those to tune on, and those held out: the last of every five by name, of fewer the last, of a single one none."""
    if len(photographs) == 1:
        return list(photographs), []
    places = set(range(HELD_OUT - 1, len(photographs), HELD_OUT)) or {len(photographs) - 1}
    return (
        [photograph for place, photograph in enumerate(photographs) if place not in places],
        [photograph for place, photograph in enumerate(photographs) if place in places],
    )


def _stem(name: str) -> str:
    return name.rpartition(".")[0].lower()


def _companions(name: str, beside: Mapping[str, str]) -> tuple[str | None, str | None]:
    """The files of a photograph's mask and caption, as far as they are `beside` it: lower-case names and names."""
    stem = _stem(name)
    captions = (beside.get(f"{stem}.{ending}") for ending in TEXT_ENDINGS)
    return beside.get(f"{stem}{MASK}"), next((caption for caption in captions if caption), None)


def _read(path: Path, beside: Mapping[str, str], sizes: Sizes) -> Photograph:
    """ValueError, in words that follow the photograph's name, where it cannot be used."""
    if _stem(path.name).endswith(MASK.removesuffix(".png")):
        raise ValueError(f"a mask is a PNG file; save it as {path.stem}.png")
    image = _opened(path)
    least = int(SMALLEST * sizes.painted)
    if min(image.size) < least:
        raise ValueError(
            f"it is {image.width} x {image.height} pixels, expected at least {least} of each side, half of --size "
            f"{sizes.painted}"
        )
    digest = hashlib.blake2b(f"{image.size}".encode() + image.tobytes(), digest_size=16)
    mask_name, caption_name = _companions(path.name, beside)
    mask, seen = None, image
    if mask_name:
        mask = _mask(path.with_name(mask_name), image)
        seen = Image.fromarray(crop_subject(np.asarray(image), mask).pixels)
    square, inside = _target(image, mask, sizes.painted)
    caption = _caption(path.with_name(caption_name)) if caption_name else ""
    return Photograph(path.name, preprocess_image(seen, sizes.seen), square, inside, caption, digest.hexdigest())


def _mask(path: Path, image: Image.Image) -> np.ndarray:
    """The mask of a photograph, (h, w) bool at its size."""
    drawn = _opened(path, "its mask ")
    with open_undecoded(path) as file:
        if file.has_transparency_data and file.convert("RGBA").getchannel("A").getextrema()[0] < 255:
            raise ValueError(
                f"its mask {path.name} is transparent in parts, of which it does not say what they are; save it white "
                "where the subject is and black elsewhere, without transparency"
            )
    if abs(drawn.width * image.height - drawn.height * image.width) > max(*drawn.size, *image.size):
        raise ValueError(
            f"its mask {path.name} has {drawn.width} x {drawn.height} pixels, another shape than its "
            f"{image.width} x {image.height}; draw it on the same picture, turned the same way"
        )
    mask = at_size(np.asarray(drawn.convert("L")) > 127, (image.height, image.width))
    if not mask.any():
        raise ValueError(f"its mask {path.name} marks no pixel; make it white where the subject is")
    return mask


def _target(image: Image.Image, mask: np.ndarray | None, size: int) -> tuple[Tensor, Tensor | None]:
    """The central square as stage 3 takes it, or with a mask the square about the subject, so that it is in it."""
    if mask is None:
        return target_pixels(image, size), None
    left, top, right, bottom = largest_box(mask)
    side = min(image.size)
    x = min(max((left + right - side) // 2, 0), image.width - side)
    y = min(max((top + bottom - side) // 2, 0), image.height - side)
    box = (x, y, x + side, y + side)
    inside = resize_and_crop(Image.fromarray(mask).convert("L").crop(box), size, "bilinear")
    return target_pixels(image.crop(box), size), torch.from_numpy(np.array(inside)).float() / 255


def _opened(path: Path, what: str = "it ") -> Image.Image:
    try:
        return open_image(path)
    except ImageError as error:
        why = str(error).partition(str(path))[2].strip(" .") or str(error)
        raise ValueError(f"{what}{why}") from error


def _caption(path: Path) -> str:
    try:
        if (size := path.stat().st_size) > LONGEST_CAPTION:
            raise ValueError(f"{size:,} bytes, expected at most {LONGEST_CAPTION:,}")
        caption = " ".join(decode_text(path.read_bytes()).split())
    except (OSError, ValueError) as error:
        raise ValueError(f"its caption {path.name} cannot be read ({error}); give a text in UTF-8") from error
    if marks := OTHER_MARK.findall(caption):
        raise ValueError(f"its caption {path.name} has {marks[0]}; the subject's mark in a caption is <i>")
    return caption


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:LISTED])
    return f"{shown} and {len(names) - LISTED} more" if len(names) > LISTED else shown or "nothing"
