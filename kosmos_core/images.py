"""Pictures as the vision tower reads them: 8-bit RGB, shorter side resized, centre cropped, CLIP-normalised.

`open_image` is the one way from an encoded picture to its pixels, `to_rgb` that from arrays and PIL images.
Resizing is Pillow's, so that every pixel equals the original's (arXiv 2310.02992, section 3.1: CLIP ViT-L/14 at 224).
"""

from __future__ import annotations

import io
import math
import os
import warnings
from functools import lru_cache
from typing import BinaryIO, Literal

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

AnyImage = Image.Image | np.ndarray | Tensor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
# Of picture files in data sets, in lower case and in the order in which one of several is chosen.
IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "avif", "jfif")
# What those endings hold, in Pillow's words. Content decides, not the ending, and Pillow knows formats whose decoders
# start programs (EPS: Ghostscript) or are hardly ever used: nothing else is opened that comes from outside.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "AVIF")

# The original resizes the whole picture and then crops. So do we as long as the resized picture has at most this many
# pixels: at 224, up to a ratio of 334 : 1. A strip of 1 x 4000 would become 224 x 896,000 pixels (800 MB) on the way;
# beyond the limit only the part that stays is resized, and rounding may move a value by 1 of 255.
LARGEST_RESIZED = 2**24  # pixels, 64 MB
MAX_PIXELS = 120_000_000  # of a file that `open_image` decodes: 360 MB as RGB
_ORIENTATION = 0x0112  # EXIF tag
ARRAY_TYPES = ("bool", "uint8", "int8", "uint16", "int16", "int32", "int64", "float16", "float32", "float64")
EXPECTED_TYPES = "expected floats in 0..1 or integers of 8 or 16 bits"
_STRIP = 2**22  # pixels laid on white at once, 16 MB as RGBA
_ROWS_AT_ONCE = 256  # while floats become bytes, so that an 8000 x 8000 picture needs no second copy in float


class ImageError(ValueError):
    """A picture cannot be used; the message says why in a sentence, `reason` in words to count and compare by."""

    def __init__(self, message: str, reason: Literal["corrupt", "truncated", "too large", "no picture"]) -> None:
        super().__init__(message, reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.args[0]


def open_image(source: str | os.PathLike | bytes | BinaryIO | Image.Image, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The first frame of a picture file (path, content or open file) or PIL image as `to_rgb` gives it, pixels alone.

    A PIL image that is upright 8-bit RGB already comes back as it is, without a copy.
    Raises ImageError: it cannot be read or decoded whole, or has more than `max_pixels`.
    """
    name = f"The picture {os.fspath(source)}" if isinstance(source, str | os.PathLike) else "The picture"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata and large sizes are judged here, not printed per picture
            if isinstance(source, Image.Image):
                return _upright_rgb(source, max_pixels, name)
            with open_undecoded(source) as file:
                image = _upright_rgb(file, max_pixels, name)
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} has too many pixels: {error}", "too large") from error
    except Exception as error:  # Pillow's plugins raise a dozen kinds on damaged data, SyntaxError among them
        raise _unreadable(name, error) from error
    image.info = {}  # a file's comments and profiles would otherwise be written into files made from its pixels
    return image


def open_undecoded(source: str | os.PathLike | bytes | BinaryIO) -> Image.Image:
    """A picture file of one of IMAGE_FORMATS with its header read: size, mode, format. Raises what Pillow raises.

    The only call of `Image.open` for what comes from outside; for pixels take `open_image`.
    """
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_formats())


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    """IMAGE_FORMATS, without those that this Pillow was built without, which it would raise KeyError for."""
    Image.init()
    return tuple(name for name in IMAGE_FORMATS if name in Image.OPEN)


def is_image_name(name: str) -> bool:
    """Whether a file's name, or the name of a part of a sample, ends as a picture's does, in any case."""
    return name.rpartition(".")[2].lower() in IMAGE_ENDINGS


def _upright_rgb(image: Image.Image, max_pixels: float = math.inf, name: str = "The picture") -> Image.Image:
    size = f"{image.width} x {image.height} pixels"
    if 0 in image.size:
        raise ImageError(f"{name} is {size}: expected at least 1 x 1.", "no picture")
    if image.width * image.height > max_pixels:
        raise ImageError(f"{name} is {size}: expected at most {max_pixels:,} pixels in all.", "too large")
    try:
        image.load()
    except (OSError, ValueError, SyntaxError) as error:  # Pillow's for a cut, a closed and a broken file
        raise _unreadable(name, error) from error
    if image.getexif().get(_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits, in 32-bit integers where Pillow has no 16-bit mode for them
        image = image.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L")
    elif image.mode in ("F", "LAB", "La"):
        way_out = "convert it to RGB, or give an array with values in 0..1"
        raise ImageError(f"{name} has mode {image.mode}: {way_out}.", "no picture")
    elif image.has_transparency_data:
        image = _on_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """A picture with transparency laid on white; in strips, or it would stand in memory four times over."""
    result = Image.new("RGB", image.size)
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        strip = image.crop(box).convert("RGBA")
        result.paste(Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip).convert("RGB"), box)
    return result


def _unreadable(name: str, error: Exception) -> ImageError:
    why = getattr(error, "strerror", None) or str(error)
    if isinstance(error, UnidentifiedImageError):  # whose text tells an address in memory
        why = "it is no picture file of a known kind (JPEG, PNG, WebP, BMP, GIF, TIFF, AVIF)"
    return ImageError(f"{name} cannot be read: {why}.", "truncated" if "truncated" in why.lower() else "corrupt")


def preprocess_image(image: AnyImage, size: int = 224) -> Tensor:
    """Prepare one picture, or one batch, for `embed_images`.

    `image` is a PIL picture of any mode, or an array or tensor (h, w), (h, w, c) or (b, h, w, c) with 1 to 4 channels
    last: floats in 0..1 (clamped), or integers of 8 or 16 bits. Floats are rounded to 8 bits first, which gives back
    exactly the 8-bit picture that they were made from. See `to_rgb` for alpha, grey, palettes and orientation.

    Returns float32 (3, size, size), or (b, 3, size, size) for a batch; CLIP-normalised.
    Raises TypeError or ValueError, in one sentence, for what is no picture: no pixels, other shapes, NaN, infinity.
    """
    if getattr(image, "ndim", 0) == 4:
        if not len(image):
            raise ValueError(f"This batch holds no picture: its shape is {tuple(image.shape)}.")
        return torch.stack([preprocess_image(one, size) for one in image])
    return normalise(resize_and_crop(to_rgb(image), size))


def to_rgb(image: AnyImage) -> Image.Image:
    """Any picture as 8-bit RGB: turned upright by its EXIF tag, alpha laid on white, grey expanded, 16 bits scaled.

    A PIL image that needs none of this comes back as it is. Raises TypeError or ValueError as `preprocess_image` does.
    """
    if not isinstance(image, Image.Image):
        image = Image.fromarray(_to_bytes(pixels_of(image)).numpy())
    return _upright_rgb(image)


def resize_and_crop(image: Image.Image, size: int = 224, resample: str = "bicubic") -> Image.Image:
    """Resize the shorter side to `size` and keep the centre (size x size), as torchvision's Resize + CenterCrop.

    `resample` is `bicubic` for the vision tower; the original makes diffusion targets with `bilinear`.
    """
    method = Image.Resampling[resample.upper()]
    short, long = sorted(image.size)
    longer = int(size * long / short)
    offset = round((longer - size) / 2)  # to even, as torchvision
    landscape = image.width > image.height
    if longer * size <= LARGEST_RESIZED:
        if landscape:  # Pillow resizes lines first, then columns: those that the crop leaves out need no second turn
            lines = image.resize((longer, short), method).crop((offset, 0, offset + size, short))
            return lines.resize((size, size), method)
        return image.resize((size, longer), method).crop((0, offset, size, offset + size))
    # Cut out the source pixels that the filter reaches from the crop, then resize exactly the crop's part of them.
    start, stop = offset * long / longer, (offset + size) * long / longer
    reach = math.ceil(2 * max(1.0, long / longer)) + 1  # bicubic spans 2 source pixels, or 2 target pixels in shrinking
    first, last = max(0, math.floor(start) - reach), min(long, math.ceil(stop) + reach)
    image = image.crop((first, 0, last, short) if landscape else (0, first, short, last))
    box = (start - first, 0, stop - first, short) if landscape else (0, start - first, short, stop - first)
    return image.resize((size, size), method, box=box)


def normalise(image: Image.Image) -> Tensor:
    """An 8-bit RGB picture as (3, h, w) float32 with CLIP's mean and deviation, computed in float64 as the original."""
    channels = planes(image).view(3, -1)
    result = torch.empty(channels.shape)
    for levels, plane, place in zip(_levels(), channels, result, strict=True):
        torch.index_select(levels, 0, plane.int(), out=place)
    return result.view(3, image.height, image.width)


def planes(image: Image.Image) -> Tensor:
    """The channels of an 8-bit RGB picture, (3, h, w) uint8."""
    content = bytearray().join(image.tobytes("raw", band) for band in "RGB")
    return torch.frombuffer(content, dtype=torch.uint8).view(3, image.height, image.width)


@lru_cache(maxsize=1)
def _levels() -> Tensor:
    """What each of a channel's 256 levels becomes, (3, 256): looked up, it costs a fifth of computing every pixel."""
    mean, deviation = torch.tensor(CLIP_MEAN, dtype=torch.float64), torch.tensor(CLIP_STD, dtype=torch.float64)
    return ((torch.arange(256).double()[:, None] / 255 - mean) / deviation).T.float().contiguous()


def pixels_of(image: object) -> Tensor:
    """An array or tensor as (h, w) or (h, w, c) with 2 to 4 channels, on the CPU; refuses others as `to_rgb` does."""
    if isinstance(image, np.ndarray):
        if image.dtype.name not in ARRAY_TYPES:
            raise TypeError(f"The picture is an array of {image.dtype}: {EXPECTED_TYPES}.")
        native = image.astype(image.dtype.newbyteorder("="), copy=not image.flags.writeable)
        image = torch.from_numpy(np.ascontiguousarray(native))
    if not isinstance(image, Tensor):
        way_out = "; open the file with kosmos_core.images.open_image" if isinstance(image, str | os.PathLike) else ""
        raise TypeError(f"A picture is a PIL image, an array or a tensor, not {type(image).__name__}{way_out}.")
    if image.dtype in (torch.uint32, torch.uint64) or image.is_complex():
        raise TypeError(f"The picture is a tensor of {image.dtype}: {EXPECTED_TYPES}.")
    pixels = image.detach().cpu()
    shape = tuple(pixels.shape)
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and shape[2] not in (1, 2, 3, 4)):
        first = pixels.ndim == 3 and shape[0] in (1, 3, 4)
        hint = "; move the channels to the end, as in permute(1, 2, 0)" if first else ""
        raise ValueError(f"The picture has shape {shape}: expected height, width and 1 to 4 channels{hint}.")
    if 0 in shape:
        raise ValueError(f"The picture is {shape[1]} x {shape[0]} pixels: expected at least 1 x 1.")
    return pixels[..., 0] if pixels.ndim == 3 and shape[2] == 1 else pixels


def _to_bytes(pixels: Tensor) -> Tensor:
    """Pixels of any type as uint8."""
    if pixels.dtype == torch.uint8:
        return pixels.contiguous()
    result = torch.empty(pixels.shape, dtype=torch.uint8)
    for rows, target in zip(pixels.split(_ROWS_AT_ONCE), result.split(_ROWS_AT_ONCE), strict=True):
        if pixels.is_floating_point():
            rows = rows.float()
            if not torch.isfinite(rows).all():
                raise ValueError("The picture holds NaN or infinite values: expected numbers in 0..1.")
            rows = (rows * 255).round_().clamp_(0, 255)
        elif pixels.dtype == torch.bool:
            rows = rows.int() * 255
        elif pixels.dtype == torch.uint16:
            rows = (rows.int() + 128) // 257
        elif rows.min() < 0 or rows.max() > 255:
            raise ValueError(
                f"The picture holds {pixels.dtype} values from {int(rows.min())} to {int(rows.max())}: "
                "expected 0 to 255, or uint16, or floats in 0..1."
            )
        target.copy_(rows)
    return result
