"""Cut an entity out of its picture by the rules that made the training pictures (arXiv 2310.02992, section 3.1).

The mask is dilated by a window of a hundredth of the picture's height; of its 4-connected components the one whose
bounding box holds most mask pixels is the entity; the crop is a square of the box's longer side around it, shifted to
lie inside the picture; on white, everything outside the dilated mask is white. Masks are (h, w) bool tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

CropRule = Literal["entity square", "centre", "pad", "squash"]
Background = Literal["white", "keep"]
CROP_RULES: tuple[str, ...] = get_args(CropRule)
BACKGROUNDS: tuple[str, ...] = get_args(Background)

DILATION = 100  # the dilation window is the picture's height divided by this
WARN_ABOVE = 0.25  # share of the subject that a crop may cut away without a word
WHITE = 255

Box = tuple[int, int, int, int]  # left, top, right, bottom; the last two exclusive


class EmptyMaskError(ValueError):
    """A mask marks no pixel; the message says what to do."""

    def __init__(self) -> None:
        super().__init__(
            "The mask is empty: it marks no pixel of the picture. Give a mask that is white where the subject is "
            "(Load Image's own mask is white where the picture is transparent: invert it)."
        )


@dataclass(frozen=True)
class Crop:
    """A cut-out picture (h, w, 3) uint8, its mask (h, w) bool, its box in the source and the share cut away (0..1).

    Where it is not square, the model sees its central square.
    """

    pixels: Tensor
    mask: Tensor
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
    pixels: Tensor, mask: Tensor | None, rule: str = "entity square", margin: float = 0.0, background: str = "white"
) -> Crop:
    """Cut the subject that `mask` marks out of pixels (h, w, 3) uint8; without a mask the whole picture is the subject.

    rule: `entity square` as in training; `centre` the picture's central square; `pad` the subject's whole box, padded
    to a square with white; `squash` the subject's whole box, whose sides the caller brings to one length.
    margin: added on each side of the subject's box, as a share of its longer side. background: `white` outside the
    mask, or `keep`. A mask of another size is brought to the picture's. Raises EmptyMaskError, and ValueError for an
    unknown rule or background.
    """
    if rule not in CROP_RULES or background not in BACKGROUNDS:
        known = f"crop is one of {', '.join(CROP_RULES)}, background one of {', '.join(BACKGROUNDS)}"
        raise ValueError(f"crop is {rule!r} and background {background!r}; {known}.")
    size = (pixels.shape[0], pixels.shape[1])
    inside = torch.ones(size, dtype=torch.bool)
    box: Box = (0, 0, size[1], size[0])
    if mask is not None:
        inside = dilate(at_size(mask, size), size[0] // DILATION)
        found = largest_box(inside)
        if found is None:
            raise EmptyMaskError()
        box = found
        if background == "white":
            pixels = pixels.masked_fill(~inside[..., None], WHITE)
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
    lost = 1 - int(_inside(inside, seen).sum()) / int(_inside(inside, box).sum())
    if rule == "pad":
        view, view_mask = _pad_to_square(view, WHITE), _pad_to_square(view_mask, False)
    return Crop(view.contiguous(), view_mask.contiguous(), box, max(lost, 0.0))


def at_size(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """An (h, w) bool mask of another size at `size`, each pixel from its place in the mask."""
    if tuple(mask.shape) == size:
        return mask
    rows, columns = (torch.arange(new) * old // new for new, old in zip(size, mask.shape, strict=True))
    return mask[rows[:, None], columns[None, :]]


def dilate(mask: Tensor, window: int) -> Tensor:
    """Dilation with a flat square window; an even window reaches one pixel further down and to the right."""
    if window < 2:
        return mask
    before, after = (window - 1) // 2, window // 2
    for _ in range(2):
        # A pixel of the result is set where the window's running sum over the rows holds any mask pixel.
        sums = F.pad(mask.int(), (0, 0, before + 1, after)).cumsum(0, dtype=torch.int32)
        mask = (sums[window:] > sums[:-window]).T
    return mask.contiguous()


def largest_box(mask: Tensor) -> Box | None:
    """Box of the 4-connected component whose bounding box holds most mask pixels; None for an empty mask.

    All mask pixels in the box count, those of other components too; the first in reading order wins a tie.
    """
    if not bool(mask.any()):
        return None
    row, start, stop = _runs(mask)
    component = _components(row, start, stop, len(mask))
    owners, index = component.unique(return_inverse=True)  # a component is named after its first run: reading order

    def of_component(values: Tensor, how: str) -> Tensor:
        return torch.zeros_like(owners).scatter_reduce(0, index, values, how, include_self=False)

    left, right = of_component(start, "amin"), of_component(stop, "amax")
    top, bottom = of_component(row, "amin"), of_component(row + 1, "amax")
    sums = F.pad(mask.cumsum(0, dtype=torch.int32).cumsum(1, dtype=torch.int32), (1, 0, 1, 0))
    held = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
    best = int((held == held.max()).nonzero()[0])
    return int(left[best]), int(top[best]), int(right[best]), int(bottom[best])


def square_around(box: Box, size: tuple[int, int]) -> tuple[int, int, int]:
    """(left, top, side) of the square of the box's longer side, centred on it and shifted to lie inside (h, w).

    The side is cut to the picture's shorter one where it would not fit.
    """
    left, top, right, bottom = box
    height, width = size
    side = min(max(right - left, bottom - top), height, width)
    centred = ((left + right - side) // 2, (top + bottom - side) // 2)
    return min(max(centred[0], 0), width - side), min(max(centred[1], 0), height - side), side


def _runs(mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every stretch of mask pixels in a row, in reading order: its row, start and stop (exclusive)."""
    edges = F.pad(mask, (1, 1)).int().diff(dim=1)
    row, start = (edges == 1).nonzero(as_tuple=True)
    return row, start, (edges == -1).nonzero(as_tuple=True)[1]


def _components(row: Tensor, start: Tensor, stop: Tensor, height: int) -> Tensor:
    """For each run the first run of its component: union-find over the pairs of runs that touch in adjacent rows."""
    count = len(row)
    width = int(stop.max()) + 1
    # In one number each, so that one search finds, for a run, the first and last run of the row above that it touches.
    starts, stops = row * width + start, row * width + stop
    above = (row - 1) * width
    first = torch.searchsorted(stops, above + start, right=True)
    last = torch.searchsorted(starts, above + stop)
    touching = (last - first).clamp(min=0)
    lower = torch.arange(count).repeat_interleave(touching)
    offset = torch.arange(len(lower)) - (touching.cumsum(0) - touching).repeat_interleave(touching)
    upper = first.repeat_interleave(touching) + offset
    parent = torch.arange(count)
    while True:
        # Hang the larger root of every pair below the smaller one, then shorten all paths to their roots.
        one, other = parent[lower], parent[upper]
        if bool((one == other).all()):
            return parent
        parent = parent.scatter_reduce(0, torch.maximum(one, other), torch.minimum(one, other), "amin")
        while not torch.equal(parent, parent[parent]):
            parent = parent[parent]


def _inside(image: Tensor, box: Box) -> Tensor:
    left, top, right, bottom = box
    return image[top:bottom, left:right]


def _pad_to_square(image: Tensor, value: int | bool) -> Tensor:
    """(h, w) or (h, w, c) in the middle of a square of its longer side."""
    height, width = image.shape[:2]
    side = max(height, width)
    square = torch.full((side, side, *image.shape[2:]), value, dtype=image.dtype)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = image
    return square
