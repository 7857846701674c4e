"""Train one stage of Kosmos-G.

python -m training.run --config training/configs/align.yaml --run_folder runs/align
python -m training.run --config training/configs/align.yaml --run_folder runs/align --resume auto
torchrun --nproc-per-node 8 -m training.run --config training/configs/instruct.yaml --run_folder runs/instruct
accelerate launch --num_processes 8 --module training.run --config training/configs/lm.yaml --run_folder runs/lm
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from .checkpoint import Checkpoints, latest_checkpoint
from .config import RunConfig, parse
from .errors import CheckpointError, ConfigError, TrainingStopped
from .loop import Trainer
from .parallel import choose_sharding, parallelize
from .precision import choose_precision
from .processes import World, world_of
from .progress import Progress
from .provenance import record_start
from .stages import stage_module


def checkpoint_to_resume(config: RunConfig, checkpoints: Checkpoints) -> Path | None:
    """Where `resume` says to go on from; None to begin.

    Raises:
        ConfigError: the folder holds a run that `resume: never` must not touch, or there is no such checkpoint.
    """
    latest = latest_checkpoint(checkpoints.folder)
    if config.resume == "auto":
        return latest
    if latest is not None and config.resume == "never":
        raise ConfigError(
            f"run_folder: {config.run_folder} already holds a run (at {latest.name}); add --resume auto to go on with "
            f"it, or choose another folder."
        )
    if config.resume == "never":
        return None
    path = Path(config.resume)
    if not (path / ".metadata").is_file():
        raise ConfigError(
            f"resume: {path} is no complete checkpoint; give auto, never or a .../checkpoints/step-N folder."
        )
    return path


def train(config: RunConfig, world: World) -> None:
    """Build the stage of `config`, spread it over `world` and train."""
    # Processes decide alike, though measured on each.
    config.precision = world.gather(choose_precision(config.precision, world.device))[0]
    kind = choose_sharding(config.parallel, world)
    checkpoints = Checkpoints(config.run_folder, config.checkpoint, world)
    checkpoints.prepare()
    start = checkpoint_to_resume(config, checkpoints)
    elsewhere = torch.device("cpu" if world.rank == 0 else "meta")
    try:
        stage = stage_module(config.stage).build(config, world.device, elsewhere if kind == "fsdp2" else world.device)
    except (ValueError, OSError) as error:
        raise ConfigError(f"{error}") from error
    stage.set_trainable()
    engine = parallelize(stage, kind, config.parallel, config.optim, config.precision, world)
    if world.rank == 0:
        record_start(config, world, start, getattr(stage.model, "tokenizer", None))
    progress = Progress(config, world)
    try:
        trainer = Trainer(config, engine, checkpoints, progress)
        if start is not None:
            trainer.restore(start)
            progress.resume(trainer.counters.step)
            progress.say(f"Going on from {start}.")
        else:
            for note in getattr(stage, "notes", ()):
                progress.say(note)
        trainer.run()
    finally:
        progress.close()


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0 when trained or stopped by a signal, 1 when training failed, 2 for a wrong configuration."""
    try:
        config = parse(sys.argv[1:] if arguments is None else arguments)
        with world_of(config.device, config.parallel.processes) as world:
            train(config, world)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (CheckpointError, TrainingStopped) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
