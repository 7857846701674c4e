"""Whole copies of the model on every process; torch's DistributedDataParallel averages their gradients."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from torch.nn.parallel import DistributedDataParallel

from ...base.processes import ProcessGroup
from ..optimizer import OptimConfig
from .engine import Engine, StepModule


class Ddp(Engine):
    """The engine of `sharding: ddp`."""

    def __init__(self, root: StepModule, optim: OptimConfig, process_group: ProcessGroup) -> None:
        super().__init__(root, optim, process_group)
        device = process_group.device
        devices = [device.index] if device.type == "cuda" else None
        self.module = DistributedDataParallel(root, device_ids=devices, gradient_as_bucket_view=True)

    def gradient_sync(self, last: bool) -> AbstractContextManager:
        return nullcontext() if last else self.module.no_sync()
