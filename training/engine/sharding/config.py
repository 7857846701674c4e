"""The `parallel:` section of a configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass
class ParallelConfig:
    """How the stage is spread over processes and what is traded for memory."""

    sharding: Literal["auto", "single", "ddp", "fsdp2", "fairscale"] = "auto"
    """auto: single for one process, else fsdp2 on GPUs and ddp on CPUs."""
    processes: int | None = None
    """Refuse to start with another number of processes than this; empty accepts any."""
    units: Literal["blocks", "size"] = "blocks"
    """What fsdp2 gathers at once: each transformer block, or modules chosen by size through fairscale.nn.wrap."""
    unit_parameters: int = 10_000_000
    """With units: size, the smallest number of parameters gathered on their own."""
    reshard_after_forward: bool = True
    """fsdp2: free gathered parameters after the forward pass and gather them again for the backward pass."""
    shard_processes: int | None = None
    """fsdp2: shard over groups of this many processes (one node, for instance) and replicate over groups."""
    sync_every_micro_batch: bool = True
    """fsdp2: reduce gradients after each micro-batch; false is faster but holds a whole gradient per process."""
    activation_checkpointing: bool = False
    """Recompute each trained block, and the U-Net, in the backward pass instead of keeping their activations."""
    frozen: Literal["compute", "fp32"] = "compute"
    """compute: frozen layers are kept in the format of `precision`, which they compute in anyway: the same numbers from
    half the memory. fsdp2, where each process holds a part of them, keeps float32."""
    compile: bool = False
    """torch.compile each block on its own; needs a C++ compiler on CPUs, where it gains nothing (measured)."""

    def __post_init__(self) -> None:
        for key in ("processes", "unit_parameters", "shard_processes"):
            if (value := getattr(self, key)) is not None and value < 1:
                raise ValueError(f"parallel.{key}: {value} must be at least 1.")
