"""Which process of how many this is: launch variables, process group, stop signals.

Works the same under `python -m training.run` (one process), `torchrun --nproc-per-node N -m training.run` and
`accelerate launch -m training.run`: all three only set environment variables, which are read here.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import ConfigError


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that train together. `group` is a gloo group for what processes tell each other between steps."""

    rank: int
    world_size: int
    device: torch.device
    group: dist.ProcessGroup | None = None

    @property
    def distributed(self) -> bool:
        return self.group is not None

    def sum(self, values: Tensor) -> Tensor:
        """Element-wise sum over all processes."""
        if self.distributed:
            dist.all_reduce(values)
        return values

    def gather(self, value: object) -> list:
        """`value` of every process, in the order of ranks; anything that pickles."""
        if not self.distributed:
            return [value]
        gathered: list = [None] * self.world_size
        dist.all_gather_object(gathered, value, group=self.group)
        return gathered

    def barrier(self) -> None:
        if self.distributed:
            dist.barrier(group=self.group)


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """The device of this process: `auto` takes the GPU of the local rank where there is one, else the CPU.

    Raises:
        ConfigError: `name` asks for a GPU that is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name != "cuda":
        try:
            return torch.device(name)
        except RuntimeError as error:
            raise ConfigError(f"device: torch knows no device {name!r}; use auto, cpu, cuda or mps.") from error
    found = torch.cuda.device_count()
    if local_rank >= found:
        raise ConfigError(
            f"device: cuda needs GPU {local_rank} for process {local_rank} of this machine, but torch sees {found}; "
            f"start as many processes as there are GPUs, or use --device cpu."
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _die_with_parent() -> None:
    # If the torchrun agent is killed, its workers would live on and save into the folder of the run that replaced them.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 = PR_SET_PDEATHSIG


@contextmanager
def join_process_group(
    device: str = "auto", processes: int | None = None, timeout: float = 1800
) -> Iterator[ProcessGroup]:
    """Join the processes that the launcher started, and leave them properly at the end.

    Args:
        processes: how many processes the configuration counts on; None accepts any number.
        timeout: seconds after which a collective that waits for a lost process fails.
    Raises:
        ConfigError: the launcher started another number of processes than it, or the configuration, promised.
    """
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1 and "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ:
        # `accelerate launch --cpu --num_processes 2` starts one process that believes itself alone.
        raise ConfigError(
            "accelerate launch was asked for several processes but started one, as it does without GPUs; launch with "
            "`torchrun --nproc-per-node N -m ...` or `accelerate launch --multi_gpu ...`, or ask for one process."
        )
    if processes not in (None, size):
        raise ConfigError(
            f"parallel.processes: {processes}, but the launcher started {size}; launch with "
            f"`torchrun --nproc-per-node {processes} -m training.run ...`."
        )
    chosen = choose_device(device, int(os.environ.get("LOCAL_RANK", 0)))
    if size == 1 and "TORCHELASTIC_RUN_ID" not in os.environ:
        yield ProcessGroup(rank=0, world_size=1, device=chosen)
        return
    _die_with_parent()
    store, rank, size = next(dist.rendezvous("env://", timeout=timedelta(seconds=timeout)))
    # The agent's store survives a restart; without a prefix per attempt, stale addresses of dead processes are read.
    store = dist.PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timedelta(seconds=timeout))
    try:
        yield ProcessGroup(rank, size, chosen, group=dist.new_group(backend="gloo"))
    finally:
        dist.destroy_process_group()


class StopSignal:
    """Notes SIGTERM, SIGUSR1 and the first Ctrl-C, so that the step in progress can be finished and saved."""

    def __init__(self) -> None:
        self.received: str | None = None
        for name in ("SIGTERM", "SIGUSR1", "SIGINT"):
            if hasattr(signal, name):  # Windows has no SIGUSR1
                signal.signal(getattr(signal, name), self._note)

    def _note(self, number: int, _frame: object) -> None:
        self.received = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C stops at once
