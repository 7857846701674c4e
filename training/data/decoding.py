"""From encoded picture bytes to the tensors that stages read."""

from __future__ import annotations

from PIL import Image
from torch import Tensor

from kosmos_core.images import ImageError, open_image, planes, resize_and_crop

from .sample_types import BadSample


def decode(content: bytes) -> Image.Image:
    """An encoded picture as `open_image` reads it. Raises BadSample where it is too large or not decoded whole."""
    try:
        return open_image(content)
    except ImageError as error:
        raise BadSample("picture too large" if error.reason == "too large" else "corrupt picture") from error


def decode_mask(content: bytes) -> Image.Image:
    """An encoded 1-bit mask as a picture of mode L, 255 inside. Raises BadSample where it cannot be decoded."""
    try:
        return open_image(content).convert("L").point(lambda level: 255 * (level > 127))
    except ImageError as error:
        raise BadSample("corrupt mask") from error


def target_pixels(image: Image.Image, resolution: int) -> Tensor:
    """The picture to generate: shorter side resized to `resolution`, bilinear, centre crop; (3, r, r) uint8."""
    return planes(resize_and_crop(image, resolution, "bilinear"))


def centred(target: Tensor) -> Tensor:
    """Bytes 0 ... 255 as float32 in -1 ... 1."""
    return target.float().div_(127.5).sub_(1)


def on_white(crop: Image.Image, mask: Image.Image) -> Image.Image:
    """The crop with everything outside the mask white; a mask of another size is resized to the crop's."""
    if mask.size != crop.size:
        mask = mask.resize(crop.size, Image.Resampling.NEAREST)
    white = Image.new("RGB", crop.size, "white")
    white.paste(crop, mask=mask)
    return white
