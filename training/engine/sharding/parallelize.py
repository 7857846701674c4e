"""From a stage and a kind of sharding to the engine that trains it."""

from __future__ import annotations

from pathlib import Path

from torch.distributed.device_mesh import DeviceMesh

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

WHOLE_MODEL: dict[str, type[Engine]] = {"single": Engine, "ddp": Ddp, "fairscale": Fairscale}


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
    engine = WHOLE_MODEL[kind](root, optim, process_group)
    engine.full_precision = full_precision
    return engine
