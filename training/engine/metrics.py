"""Losses, rates and memory of the steps since the last record, over all processes."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

import psutil
import torch
from torch import Tensor

from ..base.processes import ProcessGroup

# Dense matrix-multiply peaks in FLOP/s by a part of the device's name, from the vendors' data sheets.
PEAKS = {
    "bf16": {
        "B200": 2.25e15,
        "H200": 9.89e14,
        "H100": 9.89e14,
        "A100": 3.12e14,
        "L40": 1.81e14,
        "4090": 1.65e14,
        "A10": 1.25e14,
    },
    "fp16": {"V100": 1.25e14, "T4": 6.5e13},
}


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """FLOP/s that the device can do at best, for GPUs in the table.

    None for others and for CPUs, where no figure would mean anything: no utilisation is shown rather than a wrong one.
    """
    if device.type != "cuda" or dtype == torch.float32:
        return None
    name = torch.cuda.get_device_name(device)
    tables = [PEAKS["fp16"], PEAKS["bf16"]] if dtype == torch.float16 else [PEAKS["bf16"]]
    return next((peak for table in tables for part, peak in table.items() if part in name), None)


def memory_used(device: torch.device) -> float:
    """Bytes: the peak that torch allocated on a GPU, the resident set of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return psutil.Process().memory_info().rss


class Meter:
    """Counts of one process; `summary` joins those of all."""

    def __init__(self) -> None:
        # Sums stay tensors on the device until a record is due: reading them each step would wait for the GPU.
        self.sums: dict[str, list[Tensor | float]] = defaultdict(lambda: [0.0, 0.0])
        self.samples = self.tokens = self.steps = 0
        self.flops = self.waiting = 0.0
        self.started = time.perf_counter()

    def add_loss(self, name: str, total: Tensor | float, count: Tensor | float) -> None:
        """Add a part of the loss, as a sum and a count; the part without a name is the loss itself."""
        entry = self.sums[name]
        entry[0], entry[1] = entry[0] + total, entry[1] + count

    def add_batch(self, samples: int, tokens: int, operations: float, waiting: float) -> None:
        """Add a micro-batch; `waiting` is the seconds spent until the data stream gave it."""
        self.samples, self.tokens = self.samples + samples, self.tokens + tokens
        self.flops, self.waiting = self.flops + operations, self.waiting + waiting

    def summary(self, process_group: ProcessGroup, peak: float | None) -> dict[str, Any]:
        """Losses and rates of all processes since this meter was made; call on all of them.

        Args:
            peak: FLOP/s of one device at best, for the utilisation (MFU); None leaves it out.
        """
        elapsed = time.perf_counter() - self.started
        mine = {
            "sums": {name: (float(total), float(count)) for name, (total, count) in self.sums.items()},
            "samples": self.samples,
            "tokens": self.tokens,
            "flops": self.flops,
            "waiting": self.waiting,
            "memory": memory_used(process_group.device),
        }
        every = process_group.gather(mine)
        sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for one in every:
            for name, (total, count) in one["sums"].items():
                sums[name][0] += total
                sums[name][1] += count
        flops = sum(one["flops"] for one in every) / elapsed
        return {
            **{
                f"loss/{name}" if name else "loss": total / count
                for name, (total, count) in sorted(sums.items())
                if count
            },
            "samples_per_second": sum(one["samples"] for one in every) / elapsed,
            "tokens_per_second": sum(one["tokens"] for one in every) / elapsed,
            "data_wait_percent": 100 * sum(one["waiting"] for one in every) / elapsed / process_group.world_size,
            "flops_per_second": flops,
            "mfu_percent": 100 * flops / (peak * process_group.world_size) if peak and flops else None,
            "memory_bytes": max(one["memory"] for one in every),
            "seconds_per_step": elapsed / max(1, self.steps),
        }
