"""The training loop: micro-batches in, weights updated, everything reported and saved.

One step takes a global batch. Each process runs its micro-batches and adds up its losses and the number of its valid
items (tokens or samples); the gradient is divided by that number over all processes, so that micro-batches of different
lengths weigh as they would in one process. Random numbers depend on (seed, step, row) only.
"""

from __future__ import annotations

import json
import math
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kosmos_core.atomic import atomic_write, write_file

from ..base.errors import ConfigError, TrainingStopped
from ..base.precision import DTYPES, LossScale, autocast, slow_format
from ..base.rng import RowRng, seed_of
from ..base.signals import StopSignal
from ..data.batch_stream import Batch, BatchStream, Stream, to_device
from ..data.shared_index import shared_indexes
from .checkpoint import Checkpoints
from .checkpoint_reader import read_progress, reading
from .data_reports import DataReports
from .metrics import Meter, peak_flops
from .operations import OperationCount, OperationCounter, batch_sizes
from .optimizer import MovingAverage, learning_rate, set_learning_rate
from .progress import Progress
from .run_config import RunConfig, profiled_steps
from .run_state import gather_state, restore_state
from .sharding.engine import Engine
from .step_profile import StepProfile
from .validation import Validation

STOPPED_EARLY = "Stopped by a signal before the first step: nothing has changed; start it again."


@dataclass
class Counters:
    """What a run has done so far; stored in every checkpoint."""

    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    streams: int = 1
    loss_scale: LossScale = field(default_factory=LossScale)
    counted: list[list[float]] = field(default_factory=list)  # of `OperationCount`


class Trainer:
    """One run: the engine that trains its stage, its data streams, and how far it has come."""

    def __init__(
        self, config: RunConfig, engine: Engine, checkpoints: Checkpoints, stop: StopSignal | None = None
    ) -> None:
        self.config, self.engine, self.process_group = config, engine, engine.process_group
        self.checkpoints = checkpoints
        self.average = MovingAverage(engine.parameters, config.optim.ema) if config.optim.ema else None
        self.counters = Counters(
            streams=config.batch.streams or self.process_group.world_size, loss_scale=LossScale.of(config.precision)
        )
        self.micro_batches = config.batch.size // config.batch.micro
        self.streams: dict[int, BatchStream] = {}
        self.bad_batches: list[dict[str, Any]] = []
        self.data = DataReports()
        self.operations = OperationCount(self.counters.counted)
        self.validation = Validation(config, engine)
        self.stop = stop or StopSignal()
        self.stopping = self.failing = 0.0

    # -- where a run begins and goes on

    def restore(self, path: Path) -> None:
        """Continue from a checkpoint."""
        stored = read_progress(path)
        with reading(path):
            self.counters = Counters(**{**stored, "loss_scale": LossScale(**stored["loss_scale"])})
        self.operations = OperationCount(self.counters.counted)
        if self.config.batch.streams not in (None, self.counters.streams):
            raise ConfigError(
                f"batch.streams: {self.config.batch.streams}, but {path} was saved with {self.counters.streams}; "
                f"leave batch.streams empty."
            )
        self.open_streams()
        positions = restore_state(path, self.engine, self.average, list(self.streams))
        with reading(path):
            for index, position in positions.items():
                self.streams[index].load_state_dict(position)

    def open_streams(self) -> None:
        """Find and index the data of this process; ConfigError or DataError where that cannot be."""
        count, process_group = self.counters.streams, self.process_group
        if count % process_group.world_size or self.micro_batches % count:
            raise ConfigError(
                f"batch: batch.size {self.config.batch.size} / batch.micro {self.config.batch.micro} gives "
                f"{self.micro_batches} micro-batches per step, which must be a multiple of the {count} data streams, "
                f"and those a multiple of the {process_group.world_size} processes; take fewer processes, or change "
                f"batch.size or, before a run's first step, batch.streams."
            )
        with shared_indexes(getattr(self.engine.stage, "indexed", self.config.data), process_group):
            for index in range(process_group.rank, count, process_group.world_size):
                stream = Stream(self.config.seed, index, count, self.config.batch.micro, self.micro_batches)
                try:
                    self.streams[index] = self.engine.stage.stream(stream)
                except ValueError as error:
                    raise ConfigError(f"data: {error}") from error
        self.validation.open()

    def _save(self) -> None:
        for counted in self.process_group.gather(self.counters.counted):
            self.operations.merge(counted)
        positions = {index: stream.state_dict() for index, stream in self.streams.items()}
        self.checkpoints.save(
            self.counters.step, gather_state(self.engine, self.average, asdict(self.counters), positions)
        )

    # -- one step

    def _micro_batch(self, micro: int, last: bool, meter: Meter) -> tuple[Tensor, Tensor | float, list[str]]:
        config, counters, device = self.config, self.counters, self.process_group.device
        waited = time.perf_counter()
        batch = self._read(self.streams[micro % counters.streams])
        waited = time.perf_counter() - waited
        # Taken while it is on the CPU: reading its lengths from a GPU would wait for the step.
        sizes = batch_sizes(batch, config.model.ids.pad)
        operations = self.operations.of(sizes)
        counter = OperationCounter() if operations is None else nullcontext()
        batch = to_device(batch, device)
        torch.manual_seed(seed_of(config.seed, counters.step, micro, "dropout"))
        rng = RowRng(config.seed, counters.step, micro * config.batch.micro)
        with self.engine.gradient_sync(last), counter:
            with autocast(config.precision, device):
                losses = self.engine.step("training_step", batch, rng)
            # Engines average over processes: after it, the gradient is that of the sum of losses / batch.size.
            (losses.total * (self.process_group.world_size * counters.loss_scale.value / config.batch.size)).backward()
        if operations is None:
            operations = counter.total
            self.operations.learn(sizes, operations)
        for name, (total, count) in losses.parts.items():
            meter.add_loss(name, total, count)
        meter.add_batch(len(batch["keys"]), batch["token_ids"].numel(), operations, waited)
        return losses.total.detach(), losses.count, batch["keys"]

    def _read(self, stream: BatchStream) -> Batch:
        """The next micro-batch; where too many samples are unusable, they are listed in a file of the run folder."""
        try:
            return next(stream)
        except TrainingStopped as stopped:
            if listing := getattr(stopped, "listing", ()):
                path = Path(self.config.run_folder) / f"unusable-samples-{self.process_group.rank}.txt"
                write_file(path, "".join(f"{line}\n" for line in listing))
                raise TrainingStopped(f"{stopped}\nThe list is in {path}.") from stopped
            raise

    def _report_data(self) -> dict[str, int]:
        """Samples read and left out, for the record, and a sentence at the end of each epoch; call on all processes."""
        mine = [stream.report() for stream in self.streams.values() if hasattr(stream, "report")]
        for sentence in self.data.update(report for reports in self.process_group.gather(mine) for report in reports):
            self.progress.say(sentence)
        return {f"data/{name}": count for name, count in self.data.counts.items() if not name.endswith("/size")}

    def _step(self, meter: Meter) -> dict[str, float]:
        """One global batch; returns what `Progress.line` shows beside the rates."""
        config, counters, engine = self.config, self.counters, self.engine
        mine = range(self.process_group.rank, self.micro_batches, self.process_group.world_size)
        total, count, keys = 0.0, 0.0, []
        for micro in mine:
            part, valid, names = self._micro_batch(micro, micro == mine[-1], meter)
            total, count, keys = total + part, count + valid, keys + names
        flags = [self.stop.received is not None, self.checkpoints.failed()]
        values = torch.tensor([float(total), float(count), *flags], dtype=torch.float64)
        total, count, self.stopping, self.failing = self.process_group.sum(values).tolist()

        loss = total / count if count else math.nan
        scale = config.batch.size / (counters.loss_scale.value * count) if count else math.nan
        norm = float(engine.gradient_norm()) * scale
        lr = learning_rate(config.optim, counters.step, config.steps)
        finite = math.isfinite(loss) and math.isfinite(norm)
        if finite:
            if 0 < config.optim.clip_norm < norm:
                scale *= config.optim.clip_norm / (norm + 1e-6)
            torch._foreach_mul_(engine.gradients(), scale)
            set_learning_rate(engine.optimizer, lr)
            engine.optimizer.step()
            if self.average is not None:
                self.average.update()
        engine.zero_grad()
        counters.step += 1
        meter.steps += 1
        meter.add_loss("", total / self.process_group.world_size, count / self.process_group.world_size)
        explained = counters.loss_scale.update(finite) and math.isfinite(loss)
        if finite or explained:
            counters.skipped_in_a_row = 0
            self.bad_batches.clear()
        else:
            self._skipped(loss, norm, keys)
        return {"step": counters.step, "loss": loss, "gradient_norm": norm, "lr": lr}

    def _skipped(self, loss: float, norm: float, keys: list[str]) -> None:
        counters, limit = self.counters, self.config.optim.nonfinite_limit
        counters.skipped += 1
        counters.skipped_in_a_row += 1
        self.progress.say(f"step {counters.step} skipped: loss {loss}, gradient norm {norm}")
        self.bad_batches.append({"step": counters.step, "loss": str(loss), "gradient_norm": str(norm), "keys": keys})
        if counters.skipped_in_a_row < limit:
            return
        path = Path(self.config.run_folder) / f"nonfinite-step-{counters.step:08d}.json"
        per_process = self.process_group.gather(self.bad_batches)
        if self.process_group.rank == 0:
            bad = [
                {**steps[0], "keys": [key for one in steps for key in one["keys"]]}
                for steps in zip(*per_process, strict=True)
            ]
            write_file(path, json.dumps(bad, indent=1))
        raise TrainingStopped(
            f"{limit} steps in a row had a loss or gradient that is not finite; their sample keys are in {path}. "
            f"Look at those samples, lower optim.lr or use precision: fp32, then go on with --resume auto."
        )

    # -- the run

    def run(self, progress: Progress) -> None:
        """Train to the last step, or until a signal asks to stop; either way the state is saved.

        Raises:
            TrainingStopped: too many steps in a row were not finite, or an expectation that ends the run was missed.
            CheckpointError: the state could not be saved.
        """
        self.progress = progress
        config, counters = self.config, self.counters
        if sentence := self.nothing_to_do():
            self.progress.say(sentence)
            return
        self._report_data()
        peak = peak_flops(self.process_group.device, DTYPES[config.precision])
        if advice := slow_format(config.precision, self.process_group.device):
            self.progress.say(advice)
        sampled = hasattr(self.engine.stage, "sample") and config.log.sample_every
        for note in self.validation.notes:
            self.progress.say(note)
        meter, rates = Meter(), {}
        steps = None if config.profile is None else profiled_steps(config.profile, config.steps)
        profile = StepProfile(steps, Path(config.run_folder) / "profile", self.process_group)
        while counters.step < config.steps and not self.stopping:
            if told := profile.before(counters.step + 1):
                self.progress.say(told)
            state = self._step(meter)
            if told := profile.after(counters.step, bool(self.stopping)):
                self.progress.say(told)
            if self.failing:
                self.checkpoints.wait()
            last = counters.step == config.steps or self.stopping
            validated, failure = self.validation.due(counters.step), ""
            shown = sampled and (last or counters.step % config.log.sample_every == 0)
            measured = self._sample() if shown else {}
            if last or validated or measured or counters.step % config.log.every == 0:
                rates = meter.summary(self.process_group, peak)
                rates["eta_seconds"] = rates["seconds_per_step"] * (config.steps - counters.step)
                state |= {**rates, "skipped": counters.skipped, **self._report_data(), **measured}
                if validated:
                    figures, failure = self._validate()
                    state |= figures
                self.progress.record(state)
                meter = Meter()
            else:
                self.progress.line({**rates, **state})
            if last or failure or counters.step % config.checkpoint.every == 0:
                self._save()
            if failure:
                self.checkpoints.wait()
                raise TrainingStopped(
                    f"{failure} Stopped after step {counters.step}, saved: change what is wrong, or expect less, and "
                    f"go on with --resume auto."
                )
        self.checkpoints.wait()
        for source in self.data.sources():
            self.progress.say(f"data: {self.data.summary(source)}")
        if self.stopping:
            self.progress.say(f"Stopped by a signal after step {counters.step}, saved; go on with --resume auto.")

    def _validate(self) -> tuple[dict[str, float], str]:
        """Entries for the step's record, and the sentence of a missed expectation that ends the run, if one does."""
        step, found = self.counters.step, self.validation.run()
        missed = self.validation.missed(step, found)
        for sentence in [*self.validation.sentences(step, found), *(told for told, stop in missed if not stop)]:
            self.progress.say(sentence)
        return self.validation.record(found), next((told for told, stop in missed if stop), "")

    def nothing_to_do(self) -> str:
        """Why no step will be done, "" where some will: a signal on any process, or no step is left; call on all."""
        if self.process_group.sum(torch.tensor([float(self.stop.received is not None)])):
            return STOPPED_EARLY
        if self.counters.step < self.config.steps:
            return ""
        return f"The run has done its {self.counters.step} steps already; give --steps above that to train on."

    def close(self) -> None:
        """End the processes that read data; a run that is over or has failed leaves none behind."""
        for stream in self.streams.values():
            if hasattr(stream, "close"):
                stream.close()

    def _sample(self) -> dict[str, float]:
        """Keep the sheet of a stage's fixed prompts; their figures, where it has any."""
        with torch.no_grad(), autocast(self.config.precision, self.process_group.device):
            image, figures = self.engine.step("sample")
        if self.process_group.rank == 0:
            path = Path(self.config.run_folder) / "samples" / f"step-{self.counters.step:08d}.png"
            path.parent.mkdir(exist_ok=True)
            with atomic_write(path) as file:
                image.save(file, "PNG")
            self.progress.image("samples", image, self.counters.step)
        return figures
