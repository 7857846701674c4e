"""From a segmenter's answer to the square picture of an entity: threshold, dilate, choose a component, box, crop.

The rules and their order are those of the first implementation's data script (Kosmos-G, arXiv 2310.02992, section 3.1):

1. the map is brought to the picture's size (bilinear) and cut at a threshold: 0.3 for CLIPSeg;
2. the mask is dilated by a window of a hundredth of the picture's height;
3. of its connected components, the one whose bounding box holds most mask pixels is the entity;
4. the crop is a square of the box's longer side around the box, shifted to lie inside the picture;
5. on white, everything outside the dilated mask is white - what other components show inside the crop stays.

Pictures are square here, so a square of the box's longer side always fits. Axes: h height, w width, in pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from kosmos_core.mask_boxes import Box, at_size, largest_box, square_around

Window = tuple[slice, slice]

# Pictures are spread over processes of one core each: OpenCV's own threads would take time from the others, most of it
# for waiting, which they do in a loop.
cv2.setNumThreads(1)


@dataclass(frozen=True)
class Region:
    """What a segmenter says about one entity.

    map: (h, w), any size: float logits of "belongs to the entity", or a boolean mask. score: confidence in 0 ... 1.
    """

    map: np.ndarray
    score: float


@dataclass(frozen=True)
class EntityCrop:
    """Where an entity is in its picture.

    mask: (h, w) bool, dilated, of the whole picture. box: left, top, right, bottom of the chosen component, the last
    two exclusive. square: left, top, side of the crop. share: mask pixels inside the box per pixel of the picture.
    """

    mask: np.ndarray
    box: Box
    square: tuple[int, int, int]
    share: float


def window_of(square: tuple[int, int, int]) -> Window:
    """A square (left, top, side) as an index into an (h, w, ...) array."""
    left, top, side = square
    return slice(top, top + side), slice(left, left + side)


def binary_mask(region: Region, size: tuple[int, int], threshold: float) -> np.ndarray:
    """The region as an (h, w) bool mask of `size`; logits are compared after bilinear resizing, as probabilities."""
    if region.map.dtype == bool:
        return at_size(region.map, size)
    logits = cv2.resize(region.map.astype(np.float32, copy=False), size[::-1], interpolation=cv2.INTER_LINEAR)
    return logits > _level(threshold)


def _level(threshold: float) -> float:
    """sigmoid(x) > t and x > log(t / (1 - t)) are the same, the second without an exponential per pixel."""
    return math.log(threshold / (1 - threshold))


def dilate(mask: np.ndarray, window: int) -> np.ndarray:
    """`kosmos_core.mask_boxes.dilate` by OpenCV, in a quarter of its time."""
    if window < 2:
        return mask
    square, anchor = np.ones((window, window), dtype=np.uint8), ((window - 1) // 2,) * 2
    return cv2.dilate(mask.view(np.uint8), square, anchor=anchor).view(bool)


def _reach(hot: np.ndarray, size: tuple[int, int]) -> tuple[Window, Window] | None:
    """Windows of a small map (h, w) bool and of a picture of `size` that match; all of the map's mask is inside.

    A window of the map, resized, is the window of the resized map where both begin and end at common multiples of the
    two grids. Where the lengths have no common divisor that is the whole, but most have: 352 and 768 meet 32 times.
    """
    found = _extent(hot)
    if found is None:
        return None
    pairs = []
    for part, old, new in zip(found, hot.shape, size, strict=True):
        meetings = math.gcd(old, new)
        step = old // meetings
        # With a neighbour on each side: values between it and the mask's border may be above the level.
        first, last = max(part.start - 1, 0) // step, min(-(-(part.stop + 1) // step), meetings)
        pairs.append([slice(first * length // meetings, last * length // meetings) for length in (old, new)])
    source, target = zip(*pairs, strict=True)
    return source, target


def _extent(mask: np.ndarray) -> Window | None:
    rows = np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return None
    columns = np.flatnonzero(mask[rows[0] : rows[-1] + 1].any(axis=0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def find_crop(region: Region, size: tuple[int, int], threshold: float = 0.3, dilation: int = 100) -> EntityCrop | None:
    """The crop of a region in a picture of `size` (h, w); None where its mask is empty.

    Args:
        dilation: the dilation window is the height divided by this, rounded down; 0 leaves the mask as it is.
    """
    # Only the part of the picture that the mask reaches is computed; most pictures are empty elsewhere.
    windows = _reach(region.map if region.map.dtype == bool else region.map > _level(threshold), size)
    if windows is None:
        return None
    source, target = windows
    extent = tuple(part.stop - part.start for part in target)
    mask = np.zeros(size, dtype=bool)
    mask[target] = binary_mask(Region(region.map[source], region.score), extent, threshold)
    window = size[0] // dilation if dilation else 0
    rows, columns = inside = tuple(slice(max(part.start - window, 0), part.stop + window) for part in target)
    mask[inside] = dilate(mask[inside], window)
    box = largest_box(mask[inside])
    if box is None:
        return None
    left, top, right, bottom = box
    share = np.count_nonzero(mask[inside][top:bottom, left:right]) / mask.size
    box = left + columns.start, top + rows.start, right + columns.start, bottom + rows.start
    return EntityCrop(mask, box, square_around(box, size), share)
