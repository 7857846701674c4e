"""A short sweep of the learning rate in place of a training: at which rates the loss falls, and from which on it grows.

One step at each rate, from the first to the last in even steps of its logarithm (Smith, arXiv 1506.01186). What the run
would begin with is trained for so long and then forgotten: nothing is written.
"""

from __future__ import annotations

import math

from ..base.errors import TrainingStopped
from .loop import Trainer
from .metrics import Meter
from .run_config import RateSweep

SMOOTHING = 0.9  # of the loss from step to step: single batches scatter more than neighbouring rates
DIVERGED = 2.0  # times the lowest loss: no higher rate can be better
LINES = 10
TENTH = 10  # the rate of the lowest loss already shakes; a peak that is held for long is a tenth of it


class Said:
    """What the steps say, from the first process."""

    def __init__(self, shown: bool) -> None:
        self.shown = shown

    def say(self, sentence: str) -> None:
        if self.shown:
            print(sentence, flush=True)


def sweep(trainer: Trainer) -> None:
    """Train at rising rates and print the losses, and which rate they speak for; call on all processes.

    Raises:
        TrainingStopped: the loss was not finite from the start.
    """
    config, wanted = trainer.config, RateSweep.of(trainer.config.find_rate)
    trainer.progress = said = Said(trainer.process_group.rank == 0)
    config.optim.schedule, config.optim.warmup_steps, config.optim.final_lr = "constant", 0, 0.0
    rates, losses = [], []
    for rate in wanted.rates():
        config.optim.lr = rate
        loss = trainer._step(Meter())["loss"]
        if trainer.stopping:
            return said.say("find_rate: stopped by a signal; nothing has changed.")
        if not math.isfinite(loss):
            break
        rates.append(rate)
        losses.append(loss)
        if smoothed(losses)[-1] > DIVERGED * min(smoothed(losses)):
            break
    if len(rates) < 2:
        raise TrainingStopped(
            f"find_rate: the loss is not finite at {wanted.first:g} or at the next rate; begin lower."
        )
    for sentence in told(rates, smoothed(losses), wanted):
        said.say(sentence)


def smoothed(losses: list[float]) -> list[float]:
    """Running means that weigh a loss ago the less the longer it is ago, without a leaning towards 0 at the start."""
    mean, found = 0.0, []
    for count, loss in enumerate(losses, 1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        found.append(mean / (1 - SMOOTHING**count))
    return found


def told(rates: list[float], losses: list[float], wanted: RateSweep) -> list[str]:
    """A table of some rates and their smoothed losses, and a sentence on which rate they speak for."""
    places = sorted({round(place * (len(rates) - 1) / (LINES - 1)) for place in range(LINES)})
    lines = [f"{'rate':>10}  loss", *(f"{rates[place]:>10.2g}  {losses[place]:.4g}" for place in places)]
    lowest = min(range(len(rates)), key=losses.__getitem__)
    if lowest == 0:
        end = f"the loss falls at no rate from {rates[0]:.2g} on; sweep lower ones, or in more steps."
    elif lowest == wanted.steps - 1:
        end = f"the loss still falls at {rates[-1]:.2g}; sweep higher rates too."
    else:
        end = f"the loss is lowest at {rates[lowest]:.2g}; a tenth of it, --optim.lr {rates[lowest] / TENTH:.1e}, is a"
        end += " usual peak for a long run."
    return [*lines, f"find_rate: {end}"]
