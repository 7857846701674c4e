"""The loss of one micro-batch as a stage returns it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Losses:
    """The loss of one micro-batch, as a sum and a count, so that the engine can form the exact global mean.

    total: the loss summed over this micro-batch's valid items (tokens in `lm`, samples elsewhere); carries gradient.
    count: number of valid items (may be 0).
    parts: what a person wants to see, name -> (sum, count), detached; shown as the global sum / count, so a part that
        occurs in this micro-batch only (one per source, for instance) is right too.
    """

    total: Tensor
    count: Tensor | float
    parts: Mapping[str, tuple[Tensor | float, Tensor | float]] = field(default_factory=dict)

    @classmethod
    def of_rows(cls, totals: Tensor, sources: list[str], counts: Tensor | None = None, **parts: Tensor) -> Losses:
        """Losses from each row's sum (b,), its source and its count of valid items (one each where None).

        The parts are one per source, and the further values (b,) given by name.
        """
        counts = torch.ones_like(totals) if counts is None else counts.to(totals)
        shown = {}
        for source in dict.fromkeys(sources):
            rows = torch.tensor([name == source for name in sources], device=totals.device)
            shown[source] = ((totals * rows).sum().detach(), (counts * rows).sum())
        shown |= {name: (values.sum().detach(), counts.sum()) for name, values in parts.items()}
        return cls(totals.sum(), counts.sum(), shown)
