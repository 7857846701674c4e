"""A run from its configuration: begun, or gone on with from a checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch

from ..base.allocator import keep_memory
from ..base.errors import CheckpointError, ConfigError
from ..base.precision import choose_precision
from ..base.processes import ProcessGroup
from ..base.settings import plain
from ..base.shared_folder import require_shared
from ..base.signals import StopSignal
from ..stages import stage_module
from ..weights.provenance import record_start
from .adamw_8bit import check_8bit
from .checkpoint import Checkpoints, latest_checkpoint
from .loop import Trainer
from .progress import Progress
from .rate_sweep import sweep
from .resumed_settings import changes, refuse, sentence, stored_settings
from .run_config import RunConfig
from .run_folder import owned
from .sharding.parallelize import choose_sharding, parallelize
from .trainable import check_rank, restrict


def checkpoint_to_resume(config: RunConfig, checkpoints: Checkpoints) -> Path | None:
    """Where `resume` says to go on from; None to begin.

    Raises:
        ConfigError: the folder holds a run that `resume: never` must not touch, or there is no such checkpoint.
    """
    latest = latest_checkpoint(checkpoints.folder)
    if config.resume == "auto":
        return latest
    if latest is not None and config.resume == "never":
        if config.find_rate is not None:
            raise ConfigError(
                f"run_folder: {config.run_folder} already holds a run (at {latest.name}), and find_rate begins from "
                f"`weights`; choose another folder, which is gone again after it."
            )
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


def train(config: RunConfig, process_group: ProcessGroup, stop: StopSignal) -> None:
    """Build the stage of `config`, spread it over `process_group` and train."""
    if process_group.device.type == "cpu":
        keep_memory()
    # Processes decide alike, though measured on each.
    config.precision = process_group.gather(choose_precision(config.precision, process_group.device))[0]
    kind = choose_sharding(config.parallel, process_group)
    if config.optim.name == "adamw8bit":
        check_8bit(kind)
    require_shared("run_folder", config.run_folder, process_group)
    with owned(Path(config.run_folder), process_group):
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
        restrict(stage.model, config.trainable, kind, config.seed)
        settings, folder = (config.parallel, config.optim, config.precision), Path(config.run_folder)
        engine = parallelize(stage, kind, *settings, process_group, folder=folder)
        trainer = Trainer(config, engine, checkpoints, stop)
        try:
            _run(config, process_group, trainer, start)
        finally:
            trainer.close()


def _run(config: RunConfig, process_group: ProcessGroup, trainer: Trainer, start: Path | None) -> None:
    """Begin, or go on from `start`: nothing in the run folder changes before the checkpoint was read and accepted."""
    folder, stage, changed = Path(config.run_folder), trainer.engine.stage, {}
    tokenizer = getattr(stage.model, "tokenizer", None)
    if trainer.config.find_rate is not None:
        trainer.open_streams()
        return sweep(trainer)
    if start is not None:
        settings = plain(config)
        check_rank(start, stored_settings(start), config.trainable)
        trainer.restore(start)
        refuse(start, trainer.counters.step, settings, tokenizer)
        changed = changes(stored_settings(start), settings)
    else:
        trainer.open_streams()
    trainer.checkpoints.settings = described = config.to_yaml()
    if idle := trainer.nothing_to_do():  # before anything is recorded of this start
        if process_group.rank == 0:
            print(idle)
        return
    if process_group.rank == 0:
        try:
            record_start(folder, described, process_group, start, tokenizer, changed)
        except OSError as error:
            raise CheckpointError(
                f"run_folder: {folder} cannot be written ({error.strerror}); make room or choose another --run_folder."
            ) from error
    progress = Progress(folder, config.steps, config.log, described, process_group, trainer.counters.step)
    try:
        if start is not None:
            progress.say(f"Going on from {start}.")
            if changed:
                progress.say(f"Changed since then: {sentence(changed)}.")
            if "weights" in changed:
                progress.say(f"weights: {config.weights} is not read, the run goes on with its own.")
        else:
            for note in getattr(stage, "notes", ()):
                progress.say(note)
        trainer.run(progress)
    finally:
        progress.close()
