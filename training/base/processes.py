"""Which process of how many this is: launch variables and process group.

Works the same under `python -m training.run` (one process), `torchrun --nproc-per-node N -m training.run` and
`accelerate launch -m training.run`: all three only set environment variables, which are read here.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import ConfigError
from .signals import end_with_parent

# How gloo and NCCL say that another process has ended; they have no class for it.
LOST_PEER = ("by peer", "Broken pipe", "Timed out waiting", "Connection refused", "remote process exited", "NCCL error")


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that train together. `group` is a gloo group for what processes tell each other between steps."""

    rank: int
    world_size: int
    device: torch.device
    group: dist.ProcessGroup | None = None
    store: dist.Store | None = None

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

    def broadcast(self, value: object) -> Any:
        """`value` of process 0; anything that pickles."""
        if not self.distributed:
            return value
        told = [value]
        dist.broadcast_object_list(told, src=0, group=self.group)
        return told[0]

    def meet(self, where: str) -> None:
        """Wait for all processes, however long one of them works before it comes; a collective waits half an hour."""
        if self.store is None:
            return
        times = self.store.add(f"meet/{where}/of {self.rank}", 1)
        met = self.store.add(f"meet/{where}/{times}", 1)
        while met < self.world_size:
            time.sleep(0.05 if self.world_size < 64 else 1.0)
            met = self.store.add(f"meet/{where}/{times}", 0)

    def says_first(self, message: str) -> bool:
        """Whether this process is the first that has this to say to a person."""
        if self.store is None:
            return True
        digest = hashlib.sha256(message.encode()).hexdigest()[:16]
        try:
            return self.store.add(f"said_{digest}", 1) == 1
        except (RuntimeError, ConnectionError):  # the process or launcher that keeps the store is gone
            return True

    def is_lost_peer(self, error: BaseException) -> bool:
        """Whether a collective failed because another process has ended or does not answer."""
        return self.distributed and (
            isinstance(error, dist.DistBackendError | dist.DistNetworkError | dist.DistStoreError)
            or any(words in str(error) for words in LOST_PEER)
        )

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
    # A launcher that is killed takes its processes along, as a signal to it would: they finish the step and save.
    end_with_parent(signal.SIGTERM)
    store, rank, size = next(dist.rendezvous("env://", timeout=timedelta(seconds=timeout)))
    # The agent's store survives a restart; without a prefix per attempt, stale addresses of dead processes are read.
    store = dist.PrefixStore(agree_on_attempt(store, rank, size, timeout), store)
    backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timedelta(seconds=timeout))
    try:
        yield ProcessGroup(rank, size, chosen, dist.new_group(backend="gloo"), store)
    finally:
        dist.destroy_process_group()


def agree_on_attempt(store: dist.Store, rank: int, size: int, timeout: float) -> str:
    """A name that the processes of this start have in common and no earlier start of the run had.

    TORCHELASTIC_RESTART_COUNT is none: every agent counts the failures of its own processes alone. Process 0 counts
    starts in the store instead. Another process cannot know whether a count that it reads is of this start or of the
    last one, so it asks under a random name of its own and process 0 answers; a dead process's question is answered
    too, and read by nobody.

    Raises:
        RuntimeError: another process has not come within `timeout` seconds.
    """
    run = f"kosmos-g/{os.environ.get('TORCHELASTIC_RUN_ID', 'none')}"
    if rank:
        question = secrets.token_hex(16)
        store.set(f"{run}/question/{rank}", question)
        store.wait([f"{run}/answer/{question}"], timedelta(seconds=timeout))
        attempt = store.get(f"{run}/answer/{question}").decode()
        store.set(f"{attempt}/met/{rank}", "")
        return attempt
    attempt = f"{run}/attempt/{store.add(f'{run}/attempts', 1)}"
    waiting, answered, end = set(range(1, size)), set(), time.monotonic() + timeout
    while waiting:
        for other in sorted(waiting):
            if store.check([f"{run}/question/{other}"]):
                question = store.get(f"{run}/question/{other}").decode()
                if question not in answered:
                    answered.add(question)
                    store.set(f"{run}/answer/{question}", attempt)
            if store.check([f"{attempt}/met/{other}"]):
                waiting.remove(other)
        if waiting and time.monotonic() > end:
            raise RuntimeError(f"rendezvous: process {min(waiting)} did not come within {timeout:g} s")
        time.sleep(0.02 if waiting else 0)
    return attempt
