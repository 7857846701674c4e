"""Parameters, gradients and optimiser state sharded by torch's `fully_shard`; frozen modules stay whole."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from ...base.errors import ConfigError
from ...base.precision import DTYPES, Precision
from ...base.processes import ProcessGroup
from ..optimizer import OptimConfig
from .blocks import block_lists
from .config import ParallelConfig
from .engine import Engine, StepModule


class Fsdp2(Engine):
    """The engine of `sharding: fsdp2`.

    Processes other than 0 may hold the model on the meta device; they get rank 0's values.

    Args:
        mesh: None takes `sharding_mesh`.
        fill: whether rank 0's values go to the others; a simulation has none.
    """

    def __init__(
        self,
        root: StepModule,
        config: ParallelConfig,
        optim: OptimConfig,
        precision: Precision,
        process_group: ProcessGroup,
        mesh: DeviceMesh | None = None,
        fill: bool = True,
    ) -> None:
        self._sync_every_micro_batch = config.sync_every_micro_batch
        whole = dict(root.model.state_dict()) if process_group.rank == 0 else {}
        _shard(root, config, precision, mesh or sharding_mesh(config, process_group))
        if fill:
            _fill(root, whole, process_group.device)
        super().__init__(root, optim, process_group)

    def gradient_sync(self, last: bool) -> AbstractContextManager:
        self.module.set_requires_gradient_sync(last or self._sync_every_micro_batch)
        return nullcontext()

    def gradient_norm(self) -> Tensor:
        return super().gradient_norm().full_tensor()


def sharding_mesh(config: ParallelConfig, process_group: ProcessGroup) -> DeviceMesh:
    """The processes over which fsdp2 shards, in rows of `shard_processes` that replicate each other.

    Raises:
        ConfigError: the rows do not divide the processes.
    """
    size = config.shard_processes or process_group.world_size
    if process_group.world_size % size:
        raise ConfigError(
            f"parallel.shard_processes: {size} must divide the number of processes, {process_group.world_size}; leave "
            f"it empty to shard over all."
        )
    shape, names = (
        ((size,), ("shard",))
        if size == process_group.world_size
        else ((process_group.world_size // size, size), ("replicate", "shard"))
    )
    return init_device_mesh(process_group.device.type, shape, mesh_dim_names=names)


def _shard(root: StepModule, config: ParallelConfig, precision: Precision, mesh: DeviceMesh) -> None:
    options: dict[str, Any] = {"mesh": mesh, "reshard_after_forward": config.reshard_after_forward}
    if precision != "fp32":
        # Inputs are cast by autocast where they are used: casting whole batches here would round targets too.
        options["mp_policy"] = MixedPrecisionPolicy(
            param_dtype=DTYPES[precision], reduce_dtype=torch.float32, cast_forward_inputs=False
        )
    for blocks in block_lists(root.model):
        if config.units == "blocks":
            for block in blocks:
                fully_shard(block, **options)
        else:
            _shard_by_size(blocks, config.unit_parameters, options)
    fully_shard(root, **{**options, "reshard_after_forward": False})  # backward follows at once


def _shard_by_size(blocks: nn.ModuleList, unit_parameters: int, options: dict[str, Any]) -> None:
    from fairscale.nn.wrap import auto_wrap, default_auto_wrap_policy, enable_wrap

    class Unit(nn.Module):  # fairscale asks for a wrapper class; fully_shard works in place, so nothing wraps
        def __new__(cls, module: nn.Module, **_: Any) -> nn.Module:
            return fully_shard(module, **options)

    def policy(**question: Any) -> bool:
        return default_auto_wrap_policy(**question, min_num_params=unit_parameters)

    with enable_wrap(auto_wrap_policy=policy, wrapper_cls=Unit):
        auto_wrap(blocks)


def _fill(root: StepModule, whole: dict[str, Tensor], device: torch.device) -> None:
    """Give every process its shards of rank 0's values."""
    if any(p.is_meta for p in root.parameters()):
        root.to_empty(device=device)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(root.model, whole, options=options)
    for buffer in root.model.buffers():  # non-persistent ones are in no state dict, and garbage after to_empty
        dist.broadcast(buffer, src=0)
