"""Decode a picture of any kind to its upright centre square, or say why that is not possible; resize squares."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator

import numpy as np
import simplejpeg
import torch
from PIL import Image

from kosmos_core.images import open_image, open_undecoded

from .chunks import ImageHeader, UnusableImage
from .construct_config import FilterConfig

ORIENTATION = 0x0112  # the EXIF tag
# `resize` only reads what torch calls not writable.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")


def read_header(content: bytes | memoryview, filters: FilterConfig, rotation: int | None = None) -> ImageHeader:
    """What an encoded picture's header says; raises UnusableImage as `decode_square` does, without decoding."""
    with _reasons(), open_undecoded(io.BytesIO(content)) as image:
        _check(image, filters)
        upright = rotation == 0 or (rotation is None and image.getexif().get(ORIENTATION, 1) == 1)
        return ImageHeader(min(image.size), upright and image.format == "JPEG" and image.mode == "RGB")


def decode_square(
    content: bytes | memoryview,
    filters: FilterConfig,
    rotation: int | None = None,
    at_least: int | None = None,
    header: ImageHeader | None = None,
) -> np.ndarray:
    """The upright centre square of an encoded picture, (s, s, 3) uint8 RGB.

    Args:
        rotation: degrees counter-clockwise (a multiple of 90) in place of the EXIF tag; None follows the tag.
        at_least: a side that is enough. A larger JPEG is then decoded at a half, quarter or eighth of its size, which
            is faster.
        header: from `read_header`, where it was read before.

    Raises:
        UnusableImage: not a picture, damaged, animated, CMYK, or of a size that the filters leave out.
    """
    header = header or read_header(content, filters, rotation)
    pixels = _plain_jpeg(content, header.side, at_least or 0) if header.plain else None
    if pixels is not None:
        return _centre_square(pixels)
    with _reasons():
        image = open_undecoded(io.BytesIO(content))
        if at_least and image.format == "JPEG":
            image.draft("RGB", (at_least, at_least))
        if rotation is not None:
            image.getexif().clear()
        image = open_image(image, int(filters.max_megapixels * 1e6))
    if rotation:
        image = image.rotate(rotation, expand=True)  # Pillow transposes at multiples of 90 degrees
    return _centre_square(np.asarray(image))


@contextlib.contextmanager
def _reasons() -> Iterator[None]:
    """Whatever Pillow raises for a picture inside, as an UnusableImage with the reason to count."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata and large sizes are judged, not printed per picture
            yield
    except UnusableImage:
        raise
    except Image.DecompressionBombError:
        raise UnusableImage("picture: too many pixels") from None
    except Exception as error:  # Pillow's plugins raise a dozen kinds on damaged data, SyntaxError among them
        truncated = "truncated" in str(error).lower()
        raise UnusableImage("picture: truncated" if truncated else "picture: corrupt") from error


def _plain_jpeg(content: bytes | memoryview, side: int, at_least: int) -> np.ndarray | None:
    """The pixels of an RGB JPEG of this shorter side as stored; None for a damaged one, which Pillow then judges.

    They are the same as Pillow's, which takes half as long again because it copies them several times.
    """
    # Other eighths are possible, but they blur unevenly, which shows in perceptual hashes.
    parts = max((n for n in (2, 4, 8) if side >= n * at_least > 0), default=1)
    least = -(-side // parts) if parts > 1 else 0  # what is enough for the shorter side is for the longer
    try:
        return simplejpeg.decode_jpeg(content, min_height=least, min_width=least)
    except ValueError:
        return None


def _centre_square(pixels: np.ndarray) -> np.ndarray:
    side = min(pixels.shape[:2])
    top, left = ((length - side) // 2 for length in pixels.shape[:2])
    return pixels[top : top + side, left : left + side]


def _check(image: Image.Image, filters: FilterConfig) -> None:
    """Judge a picture by its header."""
    if image.width * image.height > filters.max_megapixels * 1e6:
        raise UnusableImage("picture: too many pixels")
    if min(image.size) < filters.min_side:
        raise UnusableImage("picture: too small")
    if max(image.size) > filters.max_aspect * min(image.size):
        raise UnusableImage("picture: too long and narrow")
    if getattr(image, "n_frames", 1) > 1:
        raise UnusableImage("picture: animated")
    if image.mode == "CMYK":
        raise UnusableImage("picture: CMYK")


def resize(pixels: np.ndarray, side: int) -> np.ndarray:
    """A square (s, s, c) uint8 picture at another side, bicubic with antialiasing.

    Within one level of Pillow's filter and several times as fast, with the vector instructions of torch's kernel.
    """
    if len(pixels) == side:
        return pixels
    # The batch axis comes before the permutation: only then torch takes the layout for channels-last, and keeps it.
    # Without the copy, the kernel would take another path for a part of a larger picture, half as long again.
    planes = torch.from_numpy(np.ascontiguousarray(pixels))[None].permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(planes, size=(side, side), mode="bicubic", antialias=True)
    return np.ascontiguousarray(resized.permute(0, 2, 3, 1)[0].numpy())
