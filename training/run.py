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

from .base.errors import CheckpointError, ConfigError, TrainingStopped
from .base.precision import choose_precision
from .base.processes import ProcessGroup, join_process_group
from .base.shared_folder import require_shared
from .engine.checkpoint import Checkpoints, latest_checkpoint
from .engine.loop import Trainer
from .engine.progress import Progress
from .engine.run_config import RunConfig, parse
from .engine.sharding import choose_sharding, parallelize
from .stages import stage_module
from .weights.provenance import record_start


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


def train(config: RunConfig, process_group: ProcessGroup) -> None:
    """Build the stage of `config`, spread it over `process_group` and train."""
    # Processes decide alike, though measured on each.
    config.precision = process_group.gather(choose_precision(config.precision, process_group.device))[0]
    kind = choose_sharding(config.parallel, process_group)
    require_shared("run_folder", config.run_folder, process_group)
    checkpoints = Checkpoints(config.run_folder, config.checkpoint, process_group)
    checkpoints.prepare()
    start = checkpoint_to_resume(config, checkpoints)
    model_device = process_group.device
    if kind == "fsdp2":  # which moves it itself, shard by shard
        model_device = torch.device("cpu" if process_group.rank == 0 else "meta")
    try:
        stage = stage_module(config.stage).build(config, process_group.device, model_device)
    except (ValueError, OSError) as error:
        raise ConfigError(f"{error}") from error
    stage.set_trainable()
    engine = parallelize(stage, kind, config.parallel, config.optim, config.precision, process_group)
    trainer = Trainer(config, engine, checkpoints)
    if start is not None:  # before anything is written: a checkpoint that cannot be read leaves the folder as it was
        trainer.restore(start)
    folder, described = Path(config.run_folder), config.to_yaml()
    if process_group.rank == 0:
        try:
            record_start(folder, described, process_group, start, getattr(stage.model, "tokenizer", None))
        except OSError as error:
            raise CheckpointError(
                f"run_folder: {folder} cannot be written ({error.strerror}); make room or choose another --run_folder."
            ) from error
    progress = Progress(folder, config.steps, config.log, described, process_group)
    try:
        if start is not None:
            progress.resume(trainer.counters.step)
            progress.say(f"Going on from {start}.")
        else:
            for note in getattr(stage, "notes", ()):
                progress.say(note)
        trainer.run(progress)
    finally:
        progress.close()


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0 when trained or stopped by a signal, 1 when training failed, 2 for a wrong configuration."""
    try:
        config = parse(sys.argv[1:] if arguments is None else arguments)
        with join_process_group(config.device, config.parallel.processes) as process_group:
            train(config, process_group)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (CheckpointError, TrainingStopped) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
