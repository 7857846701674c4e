"""Which sharding `auto` stands for, and from a stage and a kind of sharding to the engine that trains it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from torch.distributed.device_mesh import DeviceMesh

from ...base.errors import ConfigError
from ...base.precision import DTYPES, Precision
from ...base.processes import ProcessGroup
from ..optimizer import OptimConfig, freeze_parts
from ..stage import Stage
from .blocks import compile_blocks, recompute_activations
from .config import ParallelConfig
from .ddp import Ddp
from .engine import Engine, StepModule
from .fairscale import Fairscale
from .frozen_weights import lower_frozen, lower_unread
from .fsdp2 import Fsdp2
from .single import Single

WHOLE_MODEL: dict[str, type[Engine]] = {"single": Engine, "ddp": Ddp, "fairscale": Fairscale}


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
    folder: Path | None = None,
) -> Engine:
    """Spread a stage over the processes of `process_group` and build its optimiser.

    Args:
        kind: single, ddp, fsdp2 or fairscale; see `choose_sharding`.
        mesh, fill: for fsdp2, see `Fsdp2`; a simulation (`fill` false) keeps no values of frozen weights either.
        folder: for the file of `lower_frozen`.
    Raises:
        ConfigError: `optim.rates` names what the stage does not train.
    """
    model, device = stage.model, process_group.device
    freeze_parts(model, optim.rates)
    if kind != "fsdp2" and any(p.device != device for p in model.parameters()):
        model.to(device)
    full_precision = {}
    if kind != "fsdp2" and precision != "fp32" and config.frozen == "compute":
        if fill:
            full_precision = lower_frozen(model, DTYPES[precision], folder)
        else:
            lower_unread(model, DTYPES[precision])
    if config.activation_checkpointing:
        recompute_activations(stage)
    if config.compile:
        compile_blocks(model)
    root = StepModule(stage)
    if kind == "fsdp2":
        return Fsdp2(root, config, optim, precision, process_group, mesh, fill)
    tables = kind == "single" and fill and device.type == "cpu"  # a simulation stands for a GPU
    engine = (Single if tables else WHOLE_MODEL[kind])(root, optim, process_group)
    engine.full_precision = full_precision
    return engine
