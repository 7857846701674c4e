"""Memory and operations of a training on a number of processes: one step of its own stage and engine, simulated.

Floating-point tensors are fake (`fake_floats`), the process group has one member that exists, and every tensor that
would be alive is counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp._fully_shard import _fsdp_param

from kosmos_core import KosmosG
from kosmos_core.safetensors_file import WeightsError

from ..base.errors import ConfigError
from ..base.precision import DTYPES, autocast
from ..base.processes import ProcessGroup
from ..base.rng import RowRng
from ..data.batch_stream import Batch
from ..engine.adamw_8bit import EightBitMoments, check_8bit
from ..engine.operations import OperationCounter
from ..engine.optimizer import MovingAverage, build_optimizer
from ..engine.run_config import RunConfig
from ..engine.sharding.engine import Engine
from ..engine.sharding.fsdp2 import sharding_mesh
from ..engine.sharding.parallelize import parallelize
from ..engine.trainable import restrict
from ..stages import stage_module
from .fake_floats import fake_floats
from .live_memory import LiveMemory
from .longest_batch import batch_shape, longest_batch
from .traffic import traffic
from .unread_stable_diffusion import UnreadStableDiffusion


@dataclass
class Plan:
    """What one process of a configuration needs. Bytes; operations and traffic per optimiser step."""

    sharding: str
    processes: int
    micro_batches: int  # per process and step
    rows: int  # of a micro-batch
    length: int  # tokens of a row
    images: int  # pictures of a micro-batch
    weights: int  # this process's part of the model
    optimizer: int  # Adam's moments and the moving average
    frozen: int  # U-Net, VAE, CLIP
    peak: int  # all of the above, gradients, gathered parameters and activations, at the worst moment
    traffic: int  # sent and received by a process
    operations: int


def plan(config: RunConfig, processes: int, *, length: int | None = None, images: float | None = None) -> Plan:
    """Simulate a step of process 0 of `processes`.

    Args:
        length: tokens of a row; None takes the longest that the configuration lets through.
        images: pictures per row; None takes 1, and 0 for align.
    Raises:
        ConfigError: the batch does not divide over the processes, the optimiser cannot be sharded so, the pictures do
            not fit into the rows, or the folder of `task.stable_diffusion` describes a model of another family.
    """
    kind = config.parallel.sharding
    if kind == "auto":
        kind = "single" if processes == 1 else "fsdp2"
    if config.optim.name == "adamw8bit":
        check_8bit(kind, package=False)
    micro_batches, rest = divmod(config.batch.size, config.batch.micro * processes)
    if rest or not micro_batches:
        raise ConfigError(
            f"batch.size: {config.batch.size} is no multiple of batch.micro {config.batch.micro} x {processes} GPUs; "
            f"{_batch_that_divides(config.batch.size, config.batch.micro, processes)}."
        )
    length, image_count = batch_shape(config, length, images)
    found = _simulate(config, processes if kind == "fsdp2" else 1, longest_batch(config, length, image_count))
    if kind == "fairscale":  # simulated as one process, which holds the whole optimiser
        whole = found["optimizer"]
        found |= {"optimizer": whole // processes, "peak": found["peak"] - whole + whole // processes}
    parameters, trained = found.pop("parameters"), found.pop("trained")
    return Plan(
        sharding=kind,
        processes=processes,
        micro_batches=micro_batches,
        rows=config.batch.micro,
        length=length,
        images=image_count,
        traffic=traffic(config, kind, processes, micro_batches, parameters, trained),
        operations=micro_batches * found.pop("operations"),
        **found,
    )


def _batch_that_divides(size: int, micro: int, processes: int) -> str:
    """The options nearest to a batch that so many processes can share: the same batch in smaller micro-batches where
    they can, else the nearest batch."""
    if size % processes == 0:
        largest = max(rows for rows in range(1, micro + 1) if size // processes % rows == 0)
        return f"--batch.micro {largest} makes it fit"
    rows = max(1, min(micro, size // processes))
    nearest = max(1, round(size / (rows * processes))) * rows * processes
    return f"nearest: --batch.size {nearest}" + (f" --batch.micro {rows}" if rows != micro else "")


def _simulate(config: RunConfig, processes: int, batch: Batch) -> dict[str, int]:
    """Bytes of `weights`, `optimizer`, `frozen` and `peak`, numbers of `parameters`, `trained` ones, and `operations`
    of one micro-batch, for the first of so many processes that shard the model."""
    module, diffusion = stage_module(config.stage), None
    if config.stage != "lm":
        dtype, only_clip = DTYPES[config.precision], config.stage == "align"
        diffusion = UnreadStableDiffusion(config.task.stable_diffusion, dtype, text_encoder_only=only_clip)
    kind = "single" if processes == 1 else "fsdp2"
    with _processes(processes) as process_group:
        mesh = sharding_mesh(config.parallel, process_group) if kind == "fsdp2" else None
        with fake_floats() as simulated, LiveMemory() as memory:
            try:
                stage = module.assemble(config, diffusion, KosmosG(config.model), [])
            except WeightsError as error:
                raise ConfigError(f"{error}") from error
            stage.set_trainable()
            restrict(stage.model, config.trainable, kind, config.seed)
            small = config.optim.name == "adamw8bit"
            optim = replace(config.optim, name="adamw") if small else config.optim
            settings = config.parallel, optim, config.precision
            engine = parallelize(stage, kind, *settings, process_group, mesh=mesh, fill=False)
            # This process's part of each parameter: for whole lists of sharded ones torch takes most of a plan's time.
            own = {name: nn.Parameter(_own(p.detach())) for name, p in engine.parameters.items()}
            optimizer = EightBitMoments([*own.values()]) if small else build_optimizer(optim, [*own.values()])
            average = MovingAverage(own, config.optim.ema) if config.optim.ema else None
            for parameter in own.values():  # the optimiser's state exists from the first update on
                parameter.grad = torch.zeros_like(parameter)
            _update(optimizer, average)
            batch = {key: simulated(value) if isinstance(value, Tensor) else value for key, value in batch.items()}
            memory.hold(value for value in batch.values() if isinstance(value, Tensor))
            memory.peak = memory.current
            operations = _micro_batch(config, engine, batch)
            for name, parameter in engine.parameters.items():
                own[name].grad = _own(parameter.grad)
            _update(optimizer, average)
        weights = list(stage.model.parameters())
        moments = [t for state in optimizer.state.values() for t in state.values() if t.dim()]
        return {
            "weights": _bytes(weights),
            "optimizer": _bytes([*moments, *(average.average.values() if average else ())]),
            "frozen": _bytes(p for part in stage.frozen.values() for p in part.parameters()),
            "peak": memory.peak,
            "parameters": sum(p.numel() for p in weights),
            "trained": sum(p.numel() for p in engine.parameters.values()),
            "operations": operations,
        }


@contextmanager
def _processes(count: int) -> Iterator[ProcessGroup]:
    """A process group of which only process 0 exists."""
    if count == 1:
        yield ProcessGroup(0, 1, torch.device("cpu"))
        return
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=count)
    original, _fsdp_param._chunk_with_empty = _fsdp_param._chunk_with_empty, _first_chunk
    try:
        yield ProcessGroup(0, count, torch.device("cpu"), dist.group.WORLD)
    finally:
        _fsdp_param._chunk_with_empty = original
        dist.destroy_process_group()


def _first_chunk(tensor: Tensor, chunks: int, dim: int) -> list[Tensor]:
    """Process 0's part of a parameter, all that torch looks at there: cutting each of thousands out takes minutes."""
    return [tensor.narrow(dim, 0, min(tensor.shape[dim], -(-tensor.shape[dim] // chunks)))]


def _micro_batch(config: RunConfig, engine: Engine, batch: Batch) -> int:
    """Forward and backward; returns their operations."""
    with engine.gradient_sync(last=True), OperationCounter() as counter:
        with autocast(config.precision, torch.device("cpu")):
            losses = engine.step("training_step", batch, RowRng(config.seed, step=0))
        losses.total.backward()
    return counter.total


def _update(optimizer: torch.optim.Optimizer, average: MovingAverage | None) -> None:
    optimizer.step()
    if average is not None:
        average.update()
    optimizer.zero_grad()


def _own(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return getattr(tensor, "_local_tensor", tensor)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(own.numel() * own.element_size() for own in map(_own, tensors))
