"""From encoded picture bytes to the tensors that stages read."""

from __future__ import annotations

import warnings

import torch
from PIL import Image
from torch import Tensor

from kosmos_core.images import MAX_PIXELS, ImageError, open_image, open_undecoded, planes, resize_and_crop

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
