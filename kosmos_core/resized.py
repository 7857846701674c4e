"""Pictures at the side of the vision tower, remembered by their content: a large one is read once more, not resized.

What is remembered is told by a SHA-256 of all its bytes, never by identity: arrays share memory with others that change
it, and tensors made in inference mode count no changes. A picture of 4096 x 4096 takes 28 ms of a core that has
instructions for SHA, shared by torch's threads, and 137 ms to be prepared; in floats 112 and 344. PIL images give their
bytes as slowly as they are resized, so nothing is remembered of them.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

import torch
from PIL import Image
from torch import Tensor

from .images import AnyImage, pixels_of, resize_and_crop, to_rgb

REMEMBERED = 64  # pictures, 0.15 MB each at a side of 224
_ROWS_AT_ONCE = 256  # so that rows that do not lie end to end need no second copy of the whole

_resized: OrderedDict[tuple[object, ...], Image.Image] = OrderedDict()
_lock = threading.Lock()


def resized(image: AnyImage, size: int, squash: bool = False) -> Image.Image:
    """A picture as `to_rgb` takes it, size x size: its central square or, with `squash`, all of it, in 8-bit RGB.

    The result is shared: change nothing in it. Raises TypeError or ValueError as `to_rgb` does.
    """
    if isinstance(image, Image.Image):
        return _resize(image, size, squash)
    pixels = pixels_of(image)
    key = (_digest(pixels), tuple(pixels.shape), pixels.dtype, size, squash)
    with _lock:
        if key in _resized:
            _resized.move_to_end(key)
            return _resized[key]
    made = _resize(pixels, size, squash)
    with _lock:
        _resized[key] = made
        if len(_resized) > REMEMBERED:
            _resized.popitem(last=False)
    return made


def _resize(image: AnyImage, size: int, squash: bool) -> Image.Image:
    image = to_rgb(image)
    return image.resize((size, size), Image.Resampling.BICUBIC) if squash else resize_and_crop(image, size)


def _digest(pixels: Tensor) -> bytes:
    parts = pixels.split(_ROWS_AT_ONCE)
    threads = min(len(parts) // 2, torch.get_num_threads())
    if threads <= 1:
        return hashlib.sha256(b"".join(map(_digest_of_rows, parts))).digest()
    with ThreadPoolExecutor(threads) as pool:  # hashlib lets other threads run
        return hashlib.sha256(b"".join(pool.map(_digest_of_rows, parts))).digest()


def _digest_of_rows(rows: Tensor) -> bytes:
    bytes_ = rows.resolve_neg().contiguous().view(-1).view(torch.uint8)
    return hashlib.sha256(memoryview(bytes_.numpy())).digest()
