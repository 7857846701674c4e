"""The `parallel:` section of a configuration, and which sharding `auto` stands for."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Literal

from ...base.errors import ConfigError
from ...base.processes import ProcessGroup


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


def choose_sharding(config: ParallelConfig, process_group: ProcessGroup) -> str:
    """The sharding that a configuration means for these processes: itself, or what `auto` stands for.

    Raises:
        ConfigError: the sharding asked for cannot run with this number of processes; names the alternative.
    """
    several = process_group.world_size > 1
    kind = config.sharding
    if kind == "auto":
        kind = "single" if not several else "fsdp2" if process_group.device.type == "cuda" else "ddp"
    if kind == "single" and several:
        raise ConfigError(
            f"parallel.sharding: single cannot use {process_group.world_size} processes; use ddp, fsdp2 or auto."
        )
    if (kind == "fairscale" or config.units == "size") and importlib.util.find_spec("fairscale") is None:
        key, alternative = ("sharding: fairscale", "fsdp2") if kind == "fairscale" else ("units: size", "blocks")
        raise ConfigError(f"parallel.{key} needs the package fairscale; pip install fairscale, or use {alternative}.")
    if kind != "single" and not process_group.distributed:
        raise ConfigError(
            f"parallel.sharding: {kind} needs a process group; launch with "
            f"`torchrun --nproc-per-node 1 -m training.run ...`, or use single."
        )
    return kind
