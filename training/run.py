"""Train one stage of Kosmos-G.

python -m training.run --config training/configs/align.yaml --run_folder runs/align
python -m training.run --config training/configs/align.yaml --run_folder runs/align --resume auto
torchrun --nproc-per-node 8 -m training.run --config training/configs/instruct.yaml --run_folder runs/instruct
accelerate launch --num_processes 8 --module training.run --config training/configs/lm.yaml --run_folder runs/lm
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from .base.display import printable_lines
from .base.errors import CheckpointError, ConfigError, TrainingStopped
from .base.settings import as_typed
from .base.signals import StopSignal
from .engine.run_config import parse

if TYPE_CHECKING:
    from .base.processes import ProcessGroup


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0 when trained or stopped by a signal, 1 when training failed, 2 for a wrong configuration."""
    arguments = sys.argv[1:] if arguments is None else arguments
    stop = StopSignal()
    try:
        config = parse(arguments)
        # Late: torch and what trains take seconds, which a help and a refused key need not wait for.
        from .base.processes import join_process_group
        from .engine.start import train

        with join_process_group(config.device, config.parallel.processes) as process_group:
            return _reported(process_group, arguments, lambda: train(config, process_group, stop))
    except ConfigError as error:  # the same on every process of a machine, but for their devices
        if os.environ.get("LOCAL_RANK", "0") == "0" or str(error).startswith("device:"):
            print(printable_lines(f"error: {as_typed(str(error), arguments)}"), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped at once by a second Ctrl-C; --resume auto goes on from the last checkpoint.", file=sys.stderr)
        return 130


def _reported(process_group: ProcessGroup, arguments: list[str], work: Callable[[], None]) -> int:
    """The exit code of `work`, its error printed by the first of the processes that has it."""
    try:
        work()
        return 0
    except ConfigError as error:
        message, code = as_typed(str(error), arguments), 2
    except (CheckpointError, TrainingStopped) as error:
        message, code = str(error), 1
    except RuntimeError as error:
        if not process_group.is_lost_peer(error):
            raise
        message, code = (
            "another process of this run has ended or cannot be reached any more; what ended it stands above, or in "
            "that machine's own output. Start all of them again with --resume auto: the last checkpoint is complete.",
            1,
        )
    if process_group.says_first(message):
        print(printable_lines(f"error: {message}"), file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
