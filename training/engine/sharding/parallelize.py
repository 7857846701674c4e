"""From a stage and a kind of sharding to the engine that trains it."""

from __future__ import annotations

from torch.distributed.device_mesh import DeviceMesh

from ...base.precision import Precision
from ...base.processes import ProcessGroup
from ..optimizer import OptimConfig, freeze_parts
from ..stage import Stage
from .blocks import compile_blocks, recompute_activations
from .config import ParallelConfig
from .ddp import Ddp
from .engine import Engine, StepModule
from .fairscale import Fairscale
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
) -> Engine:
    """Spread a stage over the processes of `process_group` and build its optimiser.

    Args:
        kind: single, ddp, fsdp2 or fairscale; see `choose_sharding`.
        mesh, fill: for fsdp2, see `Fsdp2`.
    Raises:
        ConfigError: `optim.rates` names what the stage does not train.
    """
    model, device = stage.model, process_group.device
    freeze_parts(model, optim.rates)
    if kind != "fsdp2" and any(p.device != device for p in model.parameters()):
        model.to(device)
    if config.activation_checkpointing:
        recompute_activations(stage)
    if config.compile:
        compile_blocks(model)
    root = StepModule(stage)
    if kind == "fsdp2":
        return Fsdp2(root, config, optim, precision, process_group, mesh, fill)
    return WHOLE_MODEL[kind](root, optim, process_group)
