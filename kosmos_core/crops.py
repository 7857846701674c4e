"""Cut an entity out of its picture by the rules that made the training pictures (arXiv 2310.02992, section 3.1).

The mask is dilated by a window of a hundredth of the picture's height; of its 4-connected components the one whose
bounding box holds most mask pixels is the entity; the crop is a square of the box's longer side around it, shifted to
lie inside the picture; on white, everything outside the dilated mask is white.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from .mask_boxes import DILATION, Box, at_size, dilate, largest_box, square_around

CropRule = Literal["entity square", "centre", "pad", "squash"]
Background = Literal["white", "keep"]
CROP_RULES: tuple[str, ...] = get_args(CropRule)
BACKGROUNDS: tuple[str, ...] = get_args(Background)

WARN_ABOVE = 0.25  # share of the subject that a crop may cut away without a word
WHITE = 255


class EmptyMaskError(ValueError):
    """A mask marks no pixel; the message says what to do."""

    def __init__(self) -> None:
        super().__init__(
            "The mask is empty: it marks no pixel of the picture. Give a mask that is white where the subject is; "
            "one that is white where the picture is transparent marks everything else: invert it."
        )


@dataclass(frozen=True)
class Crop:
    """A cut-out picture (h, w, 3) uint8, its mask (h, w) bool, its box in the source and the share cut away (0..1).

    Where it is not square, the model sees its central square.
    """

    pixels: np.ndarray
    mask: np.ndarray
    box: Box
    lost: float

    @property
    def warning(self) -> str | None:
        """One sentence where much of the subject is missing from the crop, else None."""
        if self.lost <= WARN_ABOVE:
            return None
        return (
            f"The crop cuts away {self.lost:.0%} of the subject: the model will not see it. "
            "Choose the crop 'pad' to keep everything, or give a mask of the subject."
        )


def crop_subject(
    pixels: np.ndarray,
    mask: np.ndarray | None,
    rule: str = "entity square",
    margin: float = 0.0,
    background: str = "white",
) -> Crop:
    """Cut the subject that `mask` marks out of pixels (h, w, 3) uint8; without a mask the whole picture is the subject.

    rule: `entity square` as in training; `centre` the picture's central square; `pad` the subject's whole box, padded
    to a square with white; `squash` the subject's whole box, whose sides the caller brings to one length.
    margin: added on each side of the subject's box, as a share of its longer side. background: `white` outside the
    mask, or `keep`. A mask of another size is brought to the picture's. Raises EmptyMaskError, and ValueError for an
    unknown rule or background, or a margin outside 0..1.
    """
    if not 0 <= margin <= 1:
        raise ValueError(f"margin is {margin}; expected 0 to 1.")
    if rule not in CROP_RULES or background not in BACKGROUNDS:
        known = f"crop is one of {', '.join(CROP_RULES)}, background one of {', '.join(BACKGROUNDS)}"
        raise ValueError(f"crop is {rule!r} and background {background!r}; {known}.")
    size = (pixels.shape[0], pixels.shape[1])
    inside = np.ones(size, dtype=bool)
    box: Box = (0, 0, size[1], size[0])
    if mask is not None:
        inside = dilate(at_size(mask, size), size[0] // DILATION)
        found = largest_box(inside)
        if found is None:
            raise EmptyMaskError()
        box = found
    left, top, right, bottom = box
    extra = round(margin * max(right - left, bottom - top))
    wide: Box = (left - extra, top - extra, right + extra, bottom + extra)
    whole: Box = (0, 0, size[1], size[0])
    if rule in ("entity square", "centre"):
        centred = rule == "centre" or mask is None
        left, top, side = square_around(whole if centred else wide, size)
        window = seen = (left, top, left + side, top + side)
        if centred:
            window = whole  # the model's own preparation keeps the centre, to a fraction of a pixel
    else:
        window = seen = (max(wide[0], 0), max(wide[1], 0), min(wide[2], size[1]), min(wide[3], size[0]))
    view, view_mask = _inside(pixels, window), _inside(inside, window)
    if mask is not None and background == "white":
        outside = np.where(view_mask, np.uint8(0), np.uint8(WHITE))
        view = view | np.repeat(outside, 3).reshape(view.shape)  # white has all bits set; a third of np.where's time
    lost = 1 - np.count_nonzero(_inside(inside, seen)) / np.count_nonzero(_inside(inside, box))
    if rule == "pad":
        view, view_mask = _pad_to_square(view, WHITE), _pad_to_square(view_mask, False)
    return Crop(np.ascontiguousarray(view), np.ascontiguousarray(view_mask), box, max(lost, 0.0))


def _inside(image: np.ndarray, box: Box) -> np.ndarray:
    left, top, right, bottom = box
    return image[top:bottom, left:right]


def _pad_to_square(image: np.ndarray, value: int | bool) -> np.ndarray:
    """(h, w) or (h, w, c) in the middle of a square of its longer side."""
    height, width = image.shape[:2]
    side = max(height, width)
    square = np.full((side, side, *image.shape[2:]), value, dtype=image.dtype)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = image
    return square
