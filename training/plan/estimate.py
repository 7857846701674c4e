"""How long a planned training takes and what it costs, from rates that are stated or were measured.

Everything here is arithmetic: operations over a rate, bytes over a bandwidth, samples over what CPU cores read.
Whatever takes longest bounds a step, if the three overlap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .memory import Plan


@dataclass(frozen=True)
class Rates:
    """What one GPU and its cores do in a second, and what an hour of it costs."""

    operations: float
    """Operations that are done in a second: the peak times the share of it that is reached, or a measured rate."""
    bandwidth: float
    """Bytes that one GPU sends to the others in a second."""
    cores: float
    """CPU cores that read data for one GPU."""
    price: float
    """Dollars an hour."""
    margin: float
    """Hours are the arithmetic's times so much; 1 where the rate was measured."""


@dataclass(frozen=True)
class Estimate:
    """A training's time and cost, on all of its GPUs."""

    arithmetic: float
    """Seconds of a step, as are the next two."""
    network: float
    reading: float
    seconds: float
    """Of a step, the margin included."""
    bound: str
    hours: float
    dollars: float


def estimate(plan: Plan, steps: int, rates: Rates, core_seconds: float) -> Estimate:
    """Time and cost of so many steps of a plan; `core_seconds` are those of one core to read a sample."""
    samples = plan.rows * plan.micro_batches
    parts = {
        "arithmetic": plan.operations / rates.operations,
        "network": plan.traffic / rates.bandwidth,
        "reading": samples * core_seconds / rates.cores,
    }
    bound = max(parts, key=parts.__getitem__)
    seconds = parts[bound] * rates.margin
    hours = seconds * steps / 3600
    return Estimate(**parts, seconds=seconds, bound=bound, hours=hours, dollars=hours * plan.processes * rates.price)
