"""From encoded picture bytes to the tensors that stages read."""

from __future__ import annotations

import io
import warnings

from PIL import Image
from torch import Tensor

from kosmos_core.images import planes, resize_and_crop, to_rgb

from .sample_types import BadSample

MAX_PIXELS = 120_000_000


def decode(content: bytes) -> Image.Image:
    """The first frame of an encoded picture as RGB, see `to_rgb`. Raises BadSample where it cannot be decoded whole."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata and large sizes: judged below, not printed per picture
            image = Image.open(io.BytesIO(content))
            if image.width * image.height > MAX_PIXELS:
                raise BadSample("picture too large")
            image.load()
            plain = image.mode == "RGB" and not {"exif", "transparency"} & image.info.keys()
            return image if plain else to_rgb(image)  # the common case without the copy that conversions make
    except BadSample:
        raise
    except Exception as error:  # Pillow's plugins raise a dozen kinds on damaged data, SyntaxError among them
        raise BadSample("corrupt picture") from error


def decode_mask(content: bytes) -> Image.Image:
    """An encoded 1-bit mask as a picture of mode L, 255 inside. Raises BadSample where it cannot be decoded."""
    try:
        mask = Image.open(io.BytesIO(content))
        return mask.convert("L") if mask.mode == "1" else mask.convert("L").point(lambda level: 255 * (level > 127))
    except Exception as error:
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
