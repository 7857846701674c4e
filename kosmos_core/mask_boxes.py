"""Masks of a subject as (h, w) bool arrays: resize, dilate, find the subject's box, put a square around it.

These are the rules by which the training pictures were cut (arXiv 2310.02992, section 3.1); they serve the training
data and the pictures of a prompt alike. NumPy alone.
"""

from __future__ import annotations

import numpy as np

Box = tuple[int, int, int, int]  # left, top, right, bottom; the last two exclusive

DILATION = 100  # the dilation window is the picture's height divided by this


def at_size(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An (h, w) bool mask of another size at `size` (h, w), each pixel from its place in the mask."""
    if mask.shape == size:
        return mask
    rows, columns = (np.arange(new) * old // new for new, old in zip(size, mask.shape, strict=True))
    return mask[np.ix_(rows, columns)]


def dilate(mask: np.ndarray, window: int) -> np.ndarray:
    """Dilation with a flat square of `window` pixels; below 2 the mask itself.

    Equal to `scipy.ndimage.grey_dilation`, which spreads an even window one pixel further to the upper left.
    """
    if window < 2:
        return mask
    before, after = (window - 1) // 2, window // 2
    for _ in range(2):  # down the columns, then along the rows
        mask = np.pad(mask, ((before, after), (0, 0)))
        reach = 1  # each row is the union of so many rows from its own on: doubled until it is the window
        while reach < window:
            step = min(reach, window - reach)
            mask = mask[:-step] | mask[step:]
            reach += step
        mask = mask.T
    return mask


def largest_box(mask: np.ndarray) -> Box | None:
    """Box of the connected component whose bounding box holds most mask pixels; None for an empty mask.

    Components are 4-connected. All mask pixels in the box count, those of other components too; the first wins a tie.
    """
    boxes = _component_boxes(mask)
    if len(boxes) > 1:
        held = [np.count_nonzero(mask[top:bottom, left:right]) for left, top, right, bottom in boxes]
        boxes = boxes[int(np.argmax(held)) :]
    return tuple(boxes[0].tolist()) if len(boxes) else None


def _component_boxes(mask: np.ndarray) -> np.ndarray:
    """Boxes (n, 4) of the 4-connected components in the order of their first pixels.

    Works on the runs of each row, of which there are hundreds where there are hundred thousands of pixels.
    """
    height, width = mask.shape
    stride = width + 2
    padded = np.zeros((height, stride), dtype=bool)
    padded[:, 1:-1] = mask
    flat = padded.ravel()
    borders = np.flatnonzero(flat[1:] != flat[:-1])
    starts, ends = borders[::2], borders[1::2]  # ends are exclusive
    # A run touches those of the next row that begin before its end and end after its begin: neighbours in the list.
    low = np.searchsorted(ends, starts + stride, side="right")
    high = np.searchsorted(starts, ends + stride, side="left")
    touching = np.maximum(high - low, 0)
    upper = np.repeat(np.arange(len(starts)), touching)
    lower = np.arange(len(upper)) - np.repeat(np.cumsum(touching) - touching, touching) + np.repeat(low, touching)
    component = _joined(len(starts), upper, lower)
    count = component.max(initial=-1) + 1
    top, left = np.divmod(starts, stride)
    right = ends - top * stride
    boxes = np.empty((count, 4), dtype=np.int64)
    boxes[:, :2], boxes[:, 2:] = mask.size, 0
    np.minimum.at(boxes[:, 0], component, left)
    np.minimum.at(boxes[:, 1], component, top)
    np.maximum.at(boxes[:, 2], component, right)
    np.maximum.at(boxes[:, 3], component, top + 1)
    return boxes


def _joined(count: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Component numbers (count,) of nodes linked in pairs, in the order of each component's first node.

    Every node points to a node not behind it; links pull the pointers together, pointers to pointers are followed, and
    a chain of n links is settled after about log2(n) rounds. Then all nodes of a component point to its first one.
    """
    pointer = np.arange(count)
    # Most nodes are in chains: these are followed first, each node pointing to the first before it that it touches.
    pointer[second[::-1]] = first[::-1]
    for _ in range(count.bit_length()):
        pointer = pointer[pointer]
    while True:
        a, b = pointer[first], pointer[second]
        if (a == b).all():
            break
        low = np.minimum(a, b)
        np.minimum.at(pointer, a, low)
        np.minimum.at(pointer, b, low)
        for _ in range(2):
            pointer = pointer[pointer]
    return (np.cumsum(pointer == np.arange(count)) - 1)[pointer]


def square_around(box: Box, size: tuple[int, int]) -> tuple[int, int, int]:
    """(left, top, side) of the square of the box's longer side, centred on it and shifted to lie inside (h, w).

    The side is cut to the picture's shorter one where it would not fit.
    """
    left, top, right, bottom = box
    height, width = size
    side = min(max(right - left, bottom - top), height, width)
    centred = ((left + right - side) // 2, (top + bottom - side) // 2)
    return min(max(centred[0], 0), width - side), min(max(centred[1], 0), height - side), side
