"""The order in which a source's samples are read: a function of (seed, epoch) and a position, with nothing to store.

Positions 0, 1, 2, ... run through the data set, epoch after epoch; each epoch holds every sample exactly once.
A full shuffle would make every read a seek, so runs of `block` neighbours stay together and `window` such runs, from
random places of the data set, are mixed with each other.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ..base.rng import seed_of


class Order:
    """Sample numbers by position.

    seed: int or str, any; size: samples in the data set; block, window: see `DataConfig.shuffle_block`.
    """

    def __init__(self, seed: int | str, size: int, block: int = 64, window: int = 64):
        if size < 1 or block < 1 or window < 1:
            raise ValueError(f"an order needs a size, block and window of at least 1, got {size}, {block}, {window}")
        self.seed, self.size, self.block, self.span = seed, size, block, block * window
        self.window = window
        # Two epochs and their open windows at a time: lanes that run ahead have entered the next one.
        self._blocks = lru_cache(maxsize=2)(self._shuffled_blocks)
        self._inside = lru_cache(maxsize=8)(self._shuffled_window)

    def epoch(self, position: int) -> int:
        """How many times the data set was read whole before this position."""
        return position // self.size

    def __getitem__(self, position: int) -> int:
        """The sample at a position."""
        epoch, position = divmod(position, self.size)
        window, offset = divmod(position, self.span)
        place = window * self.span + int(self._inside(epoch, window)[offset])
        number, within = divmod(place, self.block)
        blocks = self._blocks(epoch)
        # The last, shorter block stays last, so that every block before it has its full length.
        return (int(blocks[number]) if number < len(blocks) else number) * self.block + within

    def _shuffled_blocks(self, epoch: int) -> np.ndarray:
        return np.random.default_rng(seed_of(self.seed, epoch)).permutation(self.size // self.block)

    def _shuffled_window(self, epoch: int, window: int) -> np.ndarray:
        length = min(self.span, self.size - window * self.span)
        return np.random.default_rng(seed_of(self.seed, epoch, window)).permutation(length)
