"""Which source each row of a global batch comes from: exact shares over a run, the same in every process.

`data_stream.py` draws an example.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from ..base.rng import seed_of


class Mixture:
    """How many rows of each step every source gives: its share, rounded by largest remainder.

    What one step rounds away the next steps make up for: after any step, each source has had its share of all rows so
    far to within one row. So 2 : 2 : 1 holds over a run even where a batch has fewer rows than there are sources. Which
    of two equal remainders is rounded up is drawn by (seed, step). weights: by source, positive; rows: of the global
    batch. Raises ValueError for a weight that is not above 0.
    """

    def __init__(self, weights: Mapping[str, float], rows: int, seed: int):
        if not weights or any(not weight > 0 for weight in weights.values()):
            raise ValueError(f"every source needs a weight above 0, got {dict(weights)}")
        total = sum(weights.values())
        self.shares = {name: rows * weight / total for name, weight in weights.items()}
        self.rows, self.seed, self.step = rows, seed, 0
        self.owed = dict.fromkeys(weights, 0.0)

    def counts(self) -> dict[str, int]:
        """Rows of each source in the current step."""
        quotas = {name: self.shares[name] + self.owed[name] for name in self.shares}
        counts = {name: max(int(quota // 1), 0) for name, quota in quotas.items()}
        ties = list(counts)
        random.Random(seed_of("mixture", self.seed, self.step)).shuffle(ties)
        # Rounded, because shares such as 0.1 + 0.2 differ in the last bit where they should tie.
        ties.sort(key=lambda name: round(counts[name] - quotas[name], 9))
        left = self.rows - sum(counts.values())
        for place in range(left):
            counts[ties[place % len(ties)]] += 1
        for name in reversed(ties):  # sources that had too much lower the others' quotas: floors can exceed the rows
            if left < 0 and counts[name]:
                counts[name] -= 1
                left += 1
        return counts

    def advance(self) -> None:
        """Go on to the next step."""
        counts = self.counts()
        for name, share in self.shares.items():
            self.owed[name] = round(self.owed[name] + share - counts[name], 9)
        self.step += 1

    def advance_to(self, step: int) -> None:
        """Go on to a later step; nothing happens where it has been reached."""
        while self.step < step:
            self.advance()

    def rows_of_step(self) -> list[str]:
        """The source of every row of the current step's global batch, the sources spread evenly through it.

        So neighbouring rows, such as those of one micro-batch, have nearly the shares of the whole batch.
        """
        counts = self.counts()
        places = [((number + 0.5) / count, name) for name, count in counts.items() for number in range(count)]
        return [name for _, name in sorted(places)]

    def state_dict(self) -> dict:
        """The position: the step, and what each source is owed."""
        return {"step": self.step, "owed": dict(self.owed)}

    def load_state_dict(self, state: Mapping) -> None:
        """Continue from a position; sources that are new or gone start with nothing owed."""
        self.step = int(state["step"])
        known = state["owed"].keys() == self.owed.keys()
        self.owed = dict(state["owed"]) if known else dict.fromkeys(self.owed, 0.0)
