"""Random numbers as a function of (seed, step, row): the same on any number of processes and after any resume."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


def seed_of(*parts: int | str) -> int:
    """A 63-bit seed from any sequence of numbers and names; equal in every process and Python version."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass(frozen=True)
class RowRng:
    """The random numbers of one micro-batch: row i of it is row `first_row + i` of the global batch of `step`.

    Each call names its purpose ("noise", "timestep", ...); two calls with the same name give the same numbers. They
    come from one CPU generator for each row, so a row's numbers depend neither on the other rows nor on the device.
    """

    seed: int
    step: int
    first_row: int = 0

    def generator(self, purpose: str, row: int = 0) -> torch.Generator:
        """The CPU generator of one row (counted within the micro-batch)."""
        return torch.Generator().manual_seed(seed_of(self.seed, self.step, self.first_row + row, purpose))

    def normal(self, purpose: str, shape: tuple[int, ...], device: torch.device | str = "cpu") -> Tensor:
        """Standard normal numbers, float32, of shape (rows, ...)."""
        rows = [torch.randn(shape[1:], generator=self.generator(purpose, row)) for row in range(shape[0])]
        return torch.stack(rows).to(device)

    def uniform(self, purpose: str, rows: int, device: torch.device | str = "cpu") -> Tensor:
        """One number in [0, 1) per row, float32."""
        return torch.stack([torch.rand((), generator=self.generator(purpose, row)) for row in range(rows)]).to(device)

    def integers(self, purpose: str, high: int, rows: int, device: torch.device | str = "cpu") -> Tensor:
        """One integer in 0 ... high - 1 per row, int64."""
        drawn = [torch.randint(high, (), generator=self.generator(purpose, row)) for row in range(rows)]
        return torch.stack(drawn).to(device)
