"""Validation: figures of held-out rows every so many steps, and what is said where they miss what was expected.

The rows are cut into micro-batches once, the same whatever the number of processes, which take turns with them. Each
row's values are gathered and summed exactly, so the figures do not depend on who computed them. Nothing here draws from
the generators that training draws from, and no data stream moves: a run with validation trains as one without.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn

from ..base.precision import autocast
from ..data.batch_stream import Batch, to_device
from ..data.data_config import SourceConfig
from ..data.index import DataError
from ..data.shared_index import shared_indexes
from .figures import Figure, Rows, figures, metric_names
from .run_config import RunConfig
from .sharding.engine import Engine
from .validate_config import check_names

Found = dict[int, dict[str, Rows]]  # by the number of the micro-batch


@dataclass
class HeldOutRows:
    """This process's part of a source: micro-batches by their number among all `count` of the source."""

    batches: dict[int, Batch]
    count: int
    rows: int
    images: bool  # whether any row of the source has some

    def turns(self, rank: int, world_size: int) -> Iterator[tuple[int | None, Batch]]:
        """As many turns on each process, since they gather weights together: one without a micro-batch left repeats its
        last one, and its number is None."""
        own = list(self.batches.items())
        for turn in range(-(-self.count // world_size)):
            number, batch = own[min(turn, len(own) - 1)]
            yield (number if turn * world_size + rank == number else None), batch


class Validation:
    """The held-out rows of one run."""

    def __init__(self, config: RunConfig, engine: Engine) -> None:
        self.config, self.settings, self.engine = config, config.validate, engine
        self.process_group = engine.process_group
        self.sources: dict[str, HeldOutRows] = {}
        self.notes: list[str] = []
        self.spent, self.told = 0.0, False
        self.started = time.perf_counter()

    def due(self, step: int) -> bool:
        """Whether there is a validation after `step` steps."""
        return self.settings.due(step, self.config.steps)

    # -- before the first step

    def open(self) -> None:
        """Read the held-out rows; call on all processes.

        Raises:
            ConfigError: something is expected of a metric that does not exist.
            DataError: a source cannot be read.
        """
        settings, data = self.settings, self.config.data
        if not settings.sources:
            return
        held_out = {name: SourceConfig(source.path, source.kind) for name, source in settings.sources.items()}
        with shared_indexes(replace(data, sources=held_out), self.process_group, "validate.sources"):
            for name in settings.sources:
                self.sources[name] = self._read(name)
        self.metrics = metric_names({name: self.engine.stage.metrics(s.images) for name, s in self.sources.items()})
        check_names(settings, self.metrics)
        self.started = time.perf_counter()

    def _read(self, name: str) -> HeldOutRows:
        rank, world_size, stage = self.process_group.rank, self.process_group.world_size, self.engine.stage
        settings, prepared = self.settings, getattr(self.engine.stage, "prepared", lambda batch, first_row: batch)
        own, last, captions, count, rows, images = {}, None, [], 0, 0, False
        problem = None
        try:
            for batch in stage.held_out(name, settings.sources[name], settings.batch, settings.samples):
                images = images or batch.get("pixels") is not None
                captions += [batch["clip_ids"]] if "clip_ids" in batch else []
                last = (count, rows, batch)
                if count % world_size == rank:
                    own[count] = prepared(batch, rows)
                count, rows = count + 1, rows + len(batch["keys"])
        except DataError as error:
            told = str(error).removeprefix(f"data.sources.{name}: ").removeprefix(f"validate.sources.{name}: ")
            problem = f"validate.sources.{name}: {told}"
        except ValueError as error:
            problem = f"validate.sources.{name}: {error}"
        if problem := next(filter(None, self.process_group.gather(problem)), None):
            raise DataError(problem)
        if not own:
            number, first_row, batch = last
            own[number] = prepared(batch, first_row)
        for batch in own.values() if captions else ():
            batch["every_caption"] = torch.cat(captions)
        if rows < settings.samples:
            self.notes.append(f"validate.sources.{name}: {rows} rows, all that it has.")
        return HeldOutRows(own, count, rows, images)

    # -- while the run goes on

    def run(self) -> dict[str, Figure]:
        """The figures of the weights as they are, by metric; call on all processes."""
        began = time.perf_counter()
        found = {name: self._rows_of(source) for name, source in self.sources.items()}
        result = figures(found)
        self.spent += time.perf_counter() - began
        return result

    def _rows_of(self, source: HeldOutRows) -> dict[str, Rows]:
        group, mine = self.process_group, {}
        with torch.no_grad(), in_evaluation(self.engine.stage.model):
            for number, batch in source.turns(group.rank, group.world_size):
                with autocast(self.config.precision, group.device):
                    values = self.engine.step("validation_step", to_device(batch, group.device), source.images)
                if number is not None:
                    mine[number] = {
                        name: list(zip(total.tolist(), count.tolist(), strict=True))
                        for name, (total, count) in values.items()
                    }
        everyone: Found = {}
        for theirs in group.gather(mine):
            everyone |= theirs
        rows: dict[str, Rows] = {}
        for number in sorted(everyone):
            for name, values in everyone[number].items():
                rows.setdefault(name, []).extend(values)
        return rows

    @property
    def time_percent(self) -> float:
        """The share of the time since the rows were read."""
        return 100 * self.spent / max(1e-9, time.perf_counter() - self.started)

    def record(self, found: dict[str, Figure]) -> dict[str, float]:
        """The figures as a record's entries; differences and shares with half of their 95 % interval."""
        entries = {}
        for name, figure in found.items():
            entries[f"validate/{name}"] = figure.value
            if figure.interval is not None and name.startswith(("gap", "retrieval")):
                entries[f"validate/{name}/interval"] = figure.interval
        return entries | {"validate/time_percent": self.time_percent}

    def sentences(self, step: int, found: dict[str, Figure]) -> list[str]:
        """What a person is told of a validation."""
        told = [f"validation after step {step} ({self.time_percent:.2g} % of the time):"]
        for source in self.sources:
            # One source alone has no names of its own: its figures are those of all.
            ending = f"/{source}" if len(self.sources) > 1 else ""
            own = {name.removesuffix(ending): figure for name, figure in found.items() if name.endswith(ending)}
            told.append(f"  {source}: " + " · ".join(f"{name} {figure}" for name, figure in own.items()))
        share, most = self.time_percent, self.settings.most_time
        if share > most and not self.told:
            self.told = True
            every = int(self.settings.every * share / most) + 1
            told.append(
                f"validate: takes {share:.2g} % of the time, more than validate.most_time {most:g}; --validate.every "
                f"{every} or fewer validate.samples ({self.settings.samples}) would take less."
            )
        return told

    def missed(self, step: int, found: dict[str, Figure]) -> list[tuple[str, bool]]:
        """A sentence for each expectation that is not met by now, and whether it ends the run."""
        sentences = []
        for expected in self.settings.expect:
            figure = found.get(expected.metric)
            if step < expected.by_step or figure is None:
                continue
            if wanted := expected.missed(figure.value):
                sentences.append(
                    (
                        f"validate.expect: {expected.metric} is {figure} after step {step}, expected {wanted} by step "
                        f"{expected.by_step}. Usual causes: {self.metrics[expected.metric]}.",
                        expected.stop,
                    )
                )
        return sentences


@contextmanager
def in_evaluation(model: nn.Module) -> Iterator[None]:
    """The model without dropout; afterwards each of its modules is in the mode that it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
