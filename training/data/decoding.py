"""From encoded picture bytes to the tensors that stages read."""

from __future__ import annotations

import warnings

from PIL import Image
from torch import Tensor

from kosmos_core.images import ImageError, open_image, open_undecoded, planes, resize_and_crop

from .sample_types import BadSample


def check_size(content: bytes, max_pixels: int) -> None:
    """Raise BadSample where a picture's header says that it has more pixels; a broken one fails in `decode`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large sizes, which are judged here
            with open_undecoded(content) as image:
                pixels = image.width * image.height
    except Exception:  # Pillow's plugins raise a dozen kinds on damaged data
        return
    if pixels > max_pixels:
        raise BadSample("picture too large")


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
