"""From encoded picture bytes to the tensors that stages read."""

from __future__ import annotations

import warnings

import torch
from PIL import Image
from torch import Tensor

from kosmos_core.images import MAX_PIXELS, ImageError, open_image, open_undecoded, planes, resize_and_crop

from .sample_types import BadSample

_PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # kinds of a JPEG's segments: SOF0 ... SOF15
_OTHERS = frozenset((0xC4, 0xC8, 0xCC, *range(0xDB, 0xFF)))  # with a length as well: tables, comments, EXIF
_SCAN = 0xDA


def check_size(content: bytes, max_pixels: int) -> None:
    """Raise BadSample where a picture's header says that it has more pixels; a broken one fails in `decode`."""
    if (stated := _stated_pixels(content)) is not None and stated <= max_pixels:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large sizes, which are judged here
            with open_undecoded(content) as image:
                pixels = image.width * image.height
    except Exception:  # Pillow's plugins raise a dozen kinds on damaged data
        return
    if pixels > max_pixels:
        raise BadSample("picture too large")


def _stated_pixels(content: bytes) -> int | None:
    """The pixels that a JPEG or PNG states, in a tenth of the time of opening it; None where Pillow has to look.

    Segments of a JPEG as in ITU-T T.81, B.1.1.4: FF, the kind, two bytes of length with themselves, content.
    """
    if content.startswith(_PNG):
        return int.from_bytes(content[16:20], "big") * int.from_bytes(content[20:24], "big")
    if not content.startswith(b"\xff\xd8\xff"):
        return None
    place, pixels = 2, None
    while place + 9 <= len(content) and content[place] == 0xFF:
        kind, length = content[place + 1], int.from_bytes(content[place + 2 : place + 4], "big")
        if kind == _SCAN:
            return pixels
        if kind in _FRAMES:
            if pixels is not None:
                return None
            height, width = (int.from_bytes(content[place + n : place + n + 2], "big") for n in (5, 7))
            pixels = height * width
        elif kind not in _OTHERS or length < 2:
            return None
        place += 2 + length
    return None


def decode(content: bytes) -> Image.Image:
    """An encoded picture as `open_image` reads it. Raises BadSample where it is too large or not decoded whole."""
    try:
        return open_image(content)
    except ImageError as error:
        raise BadSample("picture too large" if error.reason == "too large" else "corrupt picture") from error


def image_size(content: bytes) -> tuple[int, int]:
    """The two sides of an encoded picture by its header, before it is turned. Raises BadSample where it has none."""
    try:
        with open_undecoded(content) as image:
            return image.size
    except Exception as error:  # as in `check_size`
        raise BadSample("corrupt picture") from error


def decode_mask(content: bytes) -> Image.Image:
    """An encoded mask as a picture of mode 1, set inside. Raises BadSample where it cannot be decoded."""
    try:
        mask = _one_bit(content)
        if mask is None:
            mask = open_image(content).convert("L").point(lambda level: 255 * (level > 127), "1")
    except ImageError as error:
        raise BadSample("corrupt mask") from error
    return mask


def _one_bit(content: bytes) -> Image.Image | None:
    """A mask stored with 1 bit per pixel, as `training.construct` does; None for any other, and for a damaged one."""
    try:
        with open_undecoded(content) as image:
            if image.mode != "1" or image.format != "PNG" or image.width * image.height > MAX_PIXELS:
                return None
            image.load()
            return None if image.info.keys() & {"transparency", "exif"} else image
    except Exception:  # as in `check_size`; `open_image` then tells why
        return None


def target_pixels(image: Image.Image, resolution: int) -> Tensor:
    """The picture to generate: shorter side resized to `resolution`, bilinear, centre crop; (3, r, r) uint8."""
    return planes(resize_and_crop(image, resolution, "bilinear"))


def centred(targets: Tensor | list[Tensor]) -> Tensor:
    """Bytes 0 ... 255, one or more tensors of one shape, as one float32 tensor in -1 ... 1."""
    result = torch.empty(len(targets), *targets[0].shape)
    for target, place in zip(targets, result, strict=True):  # one by one they stay in the processor's cache
        place.copy_(target).div_(127.5).sub_(1)
    return result


def on_white(crop: Image.Image, mask: Image.Image) -> Image.Image:
    """The crop with everything outside the mask white; a mask of another size is resized to the crop's."""
    if mask.size != crop.size:
        mask = mask.resize(crop.size, Image.Resampling.NEAREST)
    white = Image.new("RGB", crop.size, "white")
    white.paste(crop, mask=mask)
    return white
