"""A whole recipe on one machine: memory, time, cost and disk of each step, as a table or JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.table import Table

from .estimate import Estimate, Rates, estimate
from .gpus import Gpu
from .memory import Plan
from .recipe import DataSet, Recipe, Step, TooSmall
from .stored import planned

CONSTRUCT_SHARE = 0.3  # of the TF32 peak: small networks in float32


@dataclass(frozen=True)
class StepReport:
    """What one training of a recipe takes."""

    step: Step
    plan: Plan
    estimate: Estimate
    checkpoints: float  # bytes of those that are kept, the exported weights included
    fits: bool


@dataclass(frozen=True)
class RecipeReport:
    """What a whole recipe takes on one machine."""

    steps: list[StepReport]
    data: dict[str, DataSet]
    construct_hours: dict[str, float]
    """By the data set that is made."""
    gpus: int
    price: float
    left_out: dict[str, str]
    """Steps that are fitted to no machine as small, and the sentence that says so."""

    @property
    def hours(self) -> float:
        return sum(self.construct_hours.values()) + sum(one.estimate.hours for one in self.steps)

    @property
    def gpu_hours(self) -> float:
        return self.hours * self.gpus

    @property
    def dollars(self) -> float:
        return self.gpu_hours * self.price

    @property
    def disk(self) -> float:
        return sum(one.disk for one in self.data.values()) + sum(one.checkpoints for one in self.steps)


def core_seconds(step: Step, data: dict[str, DataSet]) -> float:
    """Seconds of one core to read a sample of a step, over its sources by their weights."""
    sources = step.config.data.sources.values()
    known = [(source.weight, data[source.path].core_seconds) for source in sources if source.path in data]
    return sum(weight * seconds for weight, seconds in known) / max(1e-9, sum(weight for weight, _ in known))


def checkpoint_bytes(step: Step, plan: Plan) -> float:
    """Bytes of the checkpoints that a step keeps, and of the file of weights that is exported at its end."""
    sharded = plan.processes if plan.sharding == "fsdp2" else 1
    weights, optimizer = plan.weights * sharded, plan.optimizer * sharded
    # One more than is kept lies there while it is written.
    return (step.config.checkpoint.keep + 1) * (weights + optimizer) + weights


def report(recipe: Recipe, gpu: Gpu, gpus: int, rates: dict[str, Rates]) -> RecipeReport:
    """Plan every step of a recipe on a machine; `rates` by stage. ConfigError where a step's batch does not divide."""
    steps, left_out = [], {}
    for name in recipe.steps:
        try:
            step = recipe.step(name, gpus, gpu.memory)
        except TooSmall as error:
            left_out[name] = str(error)
            continue
        plan = planned(recipe.folder, step.config, gpus, step.images)
        own = rates[step.config.stage]
        found = estimate(plan, step.config.steps, own, core_seconds(step, recipe.data))
        steps.append(StepReport(step, plan, found, checkpoint_bytes(step, plan), gpu.holds(plan.peak)))
    work = {name: one.construct_pictures * one.construct_tflop * 1e12 for name, one in recipe.data.items()}
    own = rates["lm"]
    hours = {
        name: operations / (gpu.tf32 * CONSTRUCT_SHARE * gpus) * own.margin / 3600
        for name, operations in work.items()
        if operations
    }
    return RecipeReport(steps, recipe.data, hours, gpus, own.price, left_out)


def rows(found: RecipeReport) -> Iterator[tuple[str, ...]]:
    """The table's lines: step, memory, seconds of a step, steps, hours, dollars, bound."""
    for name, hours in found.construct_hours.items():
        yield f"construct {name}", "", "", "", _hours(hours), _dollars(hours * found.gpus * found.price), "arithmetic"
    for one in found.steps:
        yield (
            one.step.name,
            f"{one.plan.peak / 1e9:.1f} GB" + ("" if one.fits else " (too much)"),
            f"{one.estimate.seconds:.1f} s",
            f"{one.step.config.steps:,}",
            _hours(one.estimate.hours),
            _dollars(one.estimate.dollars),
            one.estimate.bound,
        )
    for name in found.left_out:
        yield name, "", "", "", "", "", "needs a larger GPU"
    what = "of what fits" if found.left_out else ""
    yield "sum", "", "", "", _hours(found.hours), _dollars(found.dollars), what


HEADINGS = ("step", "memory of a GPU", "a step", "steps", "hours", "cost", "bound")


def table(found: RecipeReport, title: str) -> Table:
    """The report for a terminal."""
    made = Table(title=title)
    for heading in HEADINGS:
        made.add_column(heading, justify="left" if heading in ("step", "bound") else "right")
    for row in rows(found):
        made.add_row(*row)
    return made


def disk_lines(found: RecipeReport) -> list[str]:
    """Sentences on the disk that a recipe needs."""
    lines = [f"{name}: {one.samples:,.0f} samples, {one.disk / 1e9:,.0f} GB" for name, one in found.data.items()]
    lines += [
        f"checkpoints of {one.step.name}: {one.checkpoints / 1e9:,.0f} GB ({one.step.config.checkpoint.keep} kept)"
        for one in found.steps
    ]
    return [*lines, f"sum: {found.disk / 1e12:.2f} TB; a step's checkpoints can go once its weights are exported"]


def as_json(found: RecipeReport) -> dict:
    """The report's numbers; bytes, seconds, hours and dollars."""
    return {
        "gpus": found.gpus,
        "hours": found.hours,
        "gpu_hours": found.gpu_hours,
        "dollars": found.dollars,
        "disk_bytes": found.disk,
        "construct_hours": found.construct_hours,
        "data": {name: {"samples": one.samples, "bytes": one.disk} for name, one in found.data.items()},
        "steps": {
            one.step.name: {
                "files": [file.name for file in one.step.files],
                "steps": one.step.config.steps,
                "peak_bytes": one.plan.peak,
                "fits": one.fits,
                "operations": one.plan.operations,
                "arithmetic_seconds": one.estimate.arithmetic,
                "network_seconds": one.estimate.network,
                "reading_seconds": one.estimate.reading,
                "seconds_per_step": one.estimate.seconds,
                "bound": one.estimate.bound,
                "hours": one.estimate.hours,
                "dollars": one.estimate.dollars,
                "checkpoint_bytes": one.checkpoints,
            }
            for one in found.steps
        },
    }


def _hours(hours: float) -> str:
    return f"{hours:,.0f} h" if hours >= 10 else f"{hours:.1f} h"


def _dollars(dollars: float) -> str:
    return f"${dollars:,.0f}"
