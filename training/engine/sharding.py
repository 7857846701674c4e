"""How a stage is spread over processes: single, ddp, fsdp2 or fairscale, applied from outside the model.

The model knows nothing of this file. Every engine runs the stage's step from inside one module's forward, averages
gradients over processes, and leaves parameters under their own names, so a checkpoint of one engine loads in another.

    single      one process
    ddp         whole copies, gradients averaged; the faster choice on CPUs (measured) and for models that fit
    fsdp2       torch `fully_shard`: parameters, gradients and optimiser state sharded; frozen modules stay whole
    fairscale   OSS + ShardedDataParallel: optimiser state and gradients sharded, parameters whole

Run so far on CPU with gloo only; no GPU was at hand.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, checkpoint_wrapper
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from ..base.errors import ConfigError
from ..base.precision import DTYPES, Precision
from ..base.processes import ProcessGroup
from .optimizer import OptimConfig, build_optimizer
from .stage import Stage


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
    compile: bool = False
    """torch.compile each block on its own; needs a C++ compiler on CPUs, where it gains nothing (measured)."""

    def __post_init__(self) -> None:
        for key in ("processes", "unit_parameters", "shard_processes"):
            if (value := getattr(self, key)) is not None and value < 1:
                raise ValueError(f"parallel.{key}: {value} must be at least 1.")


class StepModule(nn.Module):
    """The stage's work as one module's forward: what DDP and fully_shard need to see to gather and reduce."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.model = stage.model
        object.__setattr__(self, "stage", stage)  # not a submodule: frozen modules are never wrapped

    def forward(self, method: str, *arguments: Any) -> Any:
        return getattr(self.stage, method)(self.model, *arguments)


def block_lists(model: nn.Module) -> Iterator[nn.ModuleList]:
    """The stacks of transformer blocks of a model: every ModuleList called `blocks`."""
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and name.rsplit(".", 1)[-1] == "blocks":
            yield module


def _trains(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


def _recompute_activations(stage: Stage) -> None:
    for blocks in block_lists(stage.model):
        for i, block in enumerate(blocks):
            if _trains(block):
                blocks[i] = checkpoint_wrapper(block, CheckpointImpl.NO_REENTRANT)
    for module in stage.frozen.values():
        if hasattr(module, "enable_gradient_checkpointing"):
            module.enable_gradient_checkpointing()


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


def total_norm(gradients: Iterable[Tensor]) -> Tensor:
    """The 2-norm of all gradients together.

    Row by row first: on CPUs torch adds up the squares of a whole tensor one after the other, and float32 loses 1e-5 of
    a million of them, more of the whole tensor than of its shards.
    """
    return torch.nn.utils.get_total_norm([torch.linalg.vector_norm(g, dim=-1) if g.ndim > 1 else g for g in gradients])


@dataclass
class Engine:
    """A stage made ready to train: `step(method, ...)` runs one of the stage's methods with gradients averaged over
    processes, whatever the engine."""

    kind: str
    module: nn.Module
    stage: Stage
    parameters: dict[str, nn.Parameter]  # what trains, by its name in the model
    optimizer: torch.optim.Optimizer
    process_group: ProcessGroup
    sync_every_micro_batch: bool

    def step(self, method: str, *arguments: Any) -> Any:
        return self.module(method, *arguments)

    def gradient_sync(self, last: bool) -> AbstractContextManager:
        """Around forward and backward of each micro-batch; `last` of the step reduces gradients."""
        if self.kind == "fsdp2":
            self.module.set_requires_gradient_sync(last or self.sync_every_micro_batch)
        elif self.kind in ("ddp", "fairscale") and not last:
            # Without no_sync, ShardedDataParallel reduces sums that it has already reduced: silently wrong (measured).
            return self.module.no_sync()
        return nullcontext()

    def gradients(self) -> list[Tensor]:
        """The gradients that this process holds."""
        return [p.grad for p in self._owned() if p.grad is not None]

    def zero_grad(self) -> None:
        """Ready for the next step. ShardedDataParallel's gradients are views of its buckets: dropping them would
        reduce stale buckets ever after (measured: silently wrong), so they are zeroed."""
        self.optimizer.zero_grad(set_to_none=self.kind != "fairscale")

    def _owned(self) -> Iterator[nn.Parameter]:
        if self.kind != "fairscale":
            yield from self.parameters.values()
            return
        for partition in self.optimizer.partition_parameters()[self.process_group.rank]:
            yield from partition["params"]

    def gradient_norm(self) -> Tensor:
        """The 2-norm of the whole averaged gradient, equal on all processes."""
        norm = total_norm(self.gradients())
        if isinstance(norm, DTensor):
            return norm.full_tensor()
        if self.kind == "fairscale":
            return self.process_group.sum(norm.square()).sqrt()
        return norm

    def optimizer_state(self) -> dict[str, Any]:
        """The optimiser's state by parameter name, whatever the engine; under fsdp2 its shards."""
        if self.kind != "fairscale":
            return get_optimizer_state_dict(self.stage.model, self.optimizer)
        self.optimizer.consolidate_state_dict(recipient_rank=-1)
        whole = self.optimizer.state_dict()
        state = {
            name: whole["state"].get(i)
            or {key: torch.zeros_like(p) for key in ("exp_avg", "exp_avg_sq")} | {"step": torch.zeros(())}
            for i, (name, p) in enumerate(self.parameters.items())
        }
        return {"state": state, "param_groups": [{**group, "params": list(state)} for group in whole["param_groups"]]}

    def load_optimizer_state(self, state: dict[str, Any]) -> None:
        """Take over `optimizer_state`'s form as filled from a checkpoint; hyper-parameters stay as configured."""
        configured = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        if self.kind != "fairscale":
            set_optimizer_state_dict(self.stage.model, self.optimizer, state)
        else:
            numbered = {i: state["state"][name] for i, name in enumerate(self.parameters)}
            groups = [{**group, "params": list(numbered)} for group in state["param_groups"]]
            self.optimizer.load_state_dict({"state": numbered, "param_groups": groups})
        for group, values in zip(self.optimizer.param_groups, configured, strict=True):
            group.update(values)


def choose_sharding(config: ParallelConfig, process_group: ProcessGroup) -> str:
    """The engine that `auto` means here.

    Raises:
        ConfigError: the engine asked for cannot run with this number of processes; names the alternative.
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


def parallelize(
    stage: Stage,
    kind: str,
    config: ParallelConfig,
    optim: OptimConfig,
    precision: Precision,
    process_group: ProcessGroup,
    *,
    mesh: DeviceMesh | None = None,
    fill: bool = True,
) -> Engine:
    """Spread a stage over the processes of `process_group` and build its optimiser.

    Under fsdp2 the processes other than 0 may hold the model on the meta device; they get rank 0's values.

    Args:
        mesh: for fsdp2; None takes `sharding_mesh`.
        fill: whether rank 0's values go to the others; a simulation has none.
    """
    model, device = stage.model, process_group.device
    if kind != "fsdp2" and any(p.device != device for p in model.parameters()):
        model.to(device)
    whole = dict(model.state_dict()) if kind == "fsdp2" and process_group.rank == 0 else {}
    if config.activation_checkpointing:
        _recompute_activations(stage)
    if config.compile:
        for blocks in block_lists(model):
            for block in blocks:
                block.compile()
    root = StepModule(stage)
    fused = device.type in ("cpu", "cuda")

    def trained() -> dict[str, nn.Parameter]:
        return {name: p for name, p in root.model.named_parameters() if p.requires_grad}

    module: nn.Module = root
    if kind == "fsdp2":
        _shard(root, config, precision, mesh or sharding_mesh(config, process_group))
        if fill:
            _fill(root, whole, device)
    elif kind == "ddp":
        devices = [device.index] if device.type == "cuda" else None
        module = nn.parallel.DistributedDataParallel(root, device_ids=devices, gradient_as_bucket_view=True)
    if kind == "fairscale":
        module, optimizer = _fairscale(root, list(trained().values()), optim, fused)
    else:
        optimizer = build_optimizer(optim, list(trained().values()), fused)
    return Engine(kind, module, stage, trained(), optimizer, process_group, config.sync_every_micro_batch)


def _fill(root: StepModule, whole: dict[str, Tensor], device: torch.device) -> None:
    if any(p.is_meta for p in root.parameters()):
        root.to_empty(device=device)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(root.model, whole, options=options)
    for buffer in root.model.buffers():  # non-persistent ones are in no state dict, and garbage after to_empty
        dist.broadcast(buffer, src=0)


def _fairscale(
    root: StepModule, parameters: list[nn.Parameter], optim: OptimConfig, fused: bool
) -> tuple[nn.Module, torch.optim.Optimizer]:
    from fairscale.nn.data_parallel import ShardedDataParallel
    from fairscale.optim.oss import OSS

    def sharded(params: list[dict[str, Any]], **_: Any) -> torch.optim.Optimizer:
        return build_optimizer(optim, params, fused)

    optimizer = OSS(parameters, optim=sharded, lr=optim.lr)
    return ShardedDataParallel(root, optimizer, broadcast_buffers=False), optimizer
