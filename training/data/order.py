"""The order in which a source's samples are read, computed from (seed, epoch) and a position: nothing is stored.

Positions 0, 1, 2, ... run through the data set, epoch after epoch; each epoch holds every sample exactly once, in an
order of its own. (`data_stream.py` draws which positions each lane reads.) A full shuffle would make every read a seek.
So blocks of `block` neighbours stay together on the way: the blocks are shuffled, and then the samples within every
`window` blocks that follow each other in that order.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ..base.rng import seed_of


class Order:
    """`order[position]` is the number of a sample in the data set.

    size: samples in the data set; block, window: see `DataConfig.shuffle_block`.
    """

    def __init__(self, seed: int | str, size: int, block: int = 64, window: int = 64):
        if size < 1 or block < 1 or window < 1:
            raise ValueError(f"an order needs a size, block and window of at least 1, got {size}, {block}, {window}")
        self.seed, self.size, self.block, self.span = seed, size, block, block * window
        self.window = window
        # Lanes do not stand at one position: some are still in one window or epoch when others have entered the next.
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
