"""What the processes of a training send each other in a step."""

from __future__ import annotations

from ..base.precision import DTYPES
from ..engine.run_config import RunConfig


def traffic(config: RunConfig, sharding: str, processes: int, micro_batches: int, parameters: int, trained: int) -> int:
    """Bytes that a process sends in a step (and receives as many), ring algorithms assumed.

    Args:
        micro_batches: of this process and step. parameters: of the model; trained: those of them that train.
    """
    if processes == 1:
        return 0
    share = (processes - 1) / processes
    if sharding == "fsdp2":
        gathers = 2 if config.parallel.reshard_after_forward else 1
        gathered = gathers * parameters * DTYPES[config.precision].itemsize * micro_batches
        reductions = micro_batches if config.parallel.sync_every_micro_batch else 1
        return round(share * (gathered + trained * 4 * reductions))
    return round(share * 2 * trained * 4)  # an all-reduce, or a reduce and a broadcast
