"""Sheets of the emoji world's pictures, enlarged pixel by pixel."""

from collections.abc import Iterable

import numpy as np
from PIL import Image

from training.base import contact_sheet as sheet


def enlarged(image: np.ndarray, side: int) -> sheet.Block:
    """A picture (s, s, 3) uint8 as a block of a sheet, `side` pixels wide and high."""
    return sheet.thumbnail(Image.fromarray(image), side, Image.Resampling.NEAREST)


def pixel_grid(images: Iterable[np.ndarray], side: int, columns: int = 8) -> Image.Image:
    """Pictures (s, s, 3) uint8 in rows without gaps, each `side` pixels wide."""
    return sheet.page(sheet.grid([enlarged(image, side) for image in images], columns), margin=0)
