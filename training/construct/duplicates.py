"""Find pictures that look the same over the whole input, before any model sees them.

Own code: imagehash would resize with Pillow, which takes several times as long as `resize`; a vector index would be one
more compiled dependency for what sorting does in seconds.
"""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
from scipy.fft import dctn

from .square_images import resize

BITS, HASH_SIDE = 64, 32


def perceptual_hash(pixels: np.ndarray) -> int:
    """64 bits of a picture's coarse brightness: signs of its 8 x 8 lowest cosine coefficients against their median.

    Pictures that differ by scale, compression or a slight change of colour differ in a few bits.
    """
    grey = resize(pixels, HASH_SIDE).astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    low = dctn(grey, norm="ortho")[:8, :8].ravel()
    low[0] = 0.0  # the mean brightness says nothing of the content
    bits = np.round(low, 3) > np.round(np.median(low), 3)
    return int(np.packbits(bits).view(">u8")[0])


def near_duplicates(hashes: np.ndarray, distance: int) -> np.ndarray:
    """Which of the pictures repeat an earlier one: (n,) bool for (n,) uint64 hashes in the input's order.

    A picture is left out if its hash differs in at most `distance` bits from that of an earlier picture that is kept.
    With the bits cut into distance + 2 bands, two such hashes agree on at least two whole bands: sorting by every pair
    of bands brings them together, so that millions of pictures need few comparisons.
    """
    _, first, group = np.unique(hashes, return_index=True, return_inverse=True)
    repeated = first[group] != np.arange(len(hashes))
    order = np.sort(first)  # of equal hashes the first stands for all
    if distance <= 0 or len(order) < 2:
        return repeated
    pairs = _close_pairs(hashes[order], distance)
    kept = np.ones(len(order), dtype=bool)
    for later, earlier in pairs:  # sorted by the later one, so whether the earlier one is kept is settled
        kept[later] &= not kept[earlier]
    dropped_hashes = hashes[order[~kept]]
    return repeated | np.isin(hashes, dropped_hashes)


def _close_pairs(hashes: np.ndarray, distance: int) -> np.ndarray:
    """All (later, earlier) positions of different hashes within the distance, sorted."""
    count = distance + 2
    edges = np.linspace(0, BITS, count + 1).round().astype(int)
    bands = [(hashes >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1) for low, high in pairwise(edges)]
    found = [np.empty((0, 2), dtype=np.int64)]
    for i, j in combinations(range(count), 2):
        agreed = (bands[i] << np.uint64(BITS // 2)) | bands[j]
        order = np.argsort(agreed, kind="stable")
        agreed = agreed[order]
        shift = 1
        while True:  # neighbours, then the next but one, until no run of equal keys is that long
            same = np.flatnonzero(agreed[shift:] == agreed[:-shift])
            if not len(same):
                break
            a, b = order[same], order[same + shift]
            near = np.bitwise_count(hashes[a] ^ hashes[b]) <= distance
            found.append(np.stack([np.maximum(a[near], b[near]), np.minimum(a[near], b[near])], axis=1))
            shift += 1
    return np.unique(np.concatenate(found), axis=0)
