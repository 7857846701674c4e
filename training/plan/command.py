"""Memory, traffic and expected bound of a configuration on a number of GPUs, before any is rented.

    python -m training.plan --config training/configs/instruct.yaml --gpus 64
    python -m training.plan --recipe training/configs/kosmos2 --gpu h100 --gpus 8
    python -m training.plan --recipe training/configs/kosmos2 --gpu h100 --gpus 8 --measured gpu-check.json

A step of the configured stage is run on tensors without memory by the engine's own code, sharded over that many
simulated processes; every tensor that would be alive is counted. Not counted: gradients that wait for the next
micro-batch of the same step, the CUDA context (about 0.5 GB per GPU), the allocator's fragmentation and the libraries'
workspaces. Speeds assume the matrix-product rate and network bandwidth that you state: arithmetic, no measurement. With
`--measured` they are those of a real run. A recipe's hours are the arithmetic's times `--margin`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from ..base.display import printable
from ..base.errors import ConfigError
from ..engine.run_config import parse
from ..stages import STAGES
from .estimate import Rates
from .gpus import GPUS, Gpu, gpu_named
from .measured import measured_rates
from .recipe import read_recipe

if TYPE_CHECKING:
    from .memory import Plan

# What simulates a step loads torch's sharding, which takes a second, and is imported where it is used.
EFFICIENCY, MARGIN, CORES = 0.4, 2.0, 8.0
MACHINE_GPUS = 8  # of one machine, which NVLink joins; beyond them goes the network
NETWORK = 25.0  # GB/s for each GPU between machines


def report(found: Plan, tflops: float, efficiency: float, bandwidth: float) -> Table:
    """The plan as a table, with the time that arithmetic and network would take at the stated speeds."""

    def gigabytes(value: float) -> str:
        return f"{value / 1e9:.2f} GB"

    arithmetic = found.operations / (tflops * 1e12 * efficiency)
    network = found.traffic / (bandwidth * 1e9)
    rest = found.peak - found.weights - found.optimizer - found.frozen
    bound = "arithmetic" if arithmetic >= network else "network"
    table = Table(title=f"{found.sharding} on {found.processes} process(es)", show_header=False)
    for name, value in (
        ("micro-batch", f"{found.rows} rows x {found.length} tokens, {found.images} pictures"),
        ("micro-batches per process and step", str(found.micro_batches)),
        ("memory: weights", gigabytes(found.weights)),
        ("memory: optimiser and moving average", gigabytes(found.optimizer)),
        ("memory: frozen modules", gigabytes(found.frozen)),
        ("memory: gradients, gathered weights, activations", gigabytes(rest)),
        ("memory per process at its peak", gigabytes(found.peak)),
        ("traffic per process and step", gigabytes(found.traffic)),
        ("operations per process and step", f"{found.operations / 1e12:.1f} TFLOP"),
        (f"arithmetic at {efficiency:.0%} of {tflops:g} TFLOP/s", f"{arithmetic:.2f} s"),
        (f"network at {bandwidth:g} GB/s", f"{network:.2f} s"),
        ("expected bound", f"{bound}; {max(arithmetic, network):.2f} s per step if the two overlap"),
    ):
        table.add_row(name, value)
    return table


def _check(options: argparse.Namespace) -> None:
    """ConfigError names the first option whose number makes no sense, or that the others leave without a use."""
    for name in ("gpus", "length", "tflops", "efficiency", "bandwidth", "price", "margin", "cores"):
        if (value := getattr(options, name)) is not None and not 0 < value < math.inf:
            raise ConfigError(f"--{name}: {value:g} must be above 0.")
    if options.efficiency is not None and options.efficiency > 1:
        raise ConfigError(f"--efficiency: {options.efficiency:g} is a share of the peak and must be at most 1.")
    if options.images is not None and not 0 <= options.images < math.inf:
        raise ConfigError(f"--images: {options.images:g} must be 0 or more.")
    useless = ("length", "images") if options.recipe else ("price", "margin", "cores", "measured")
    for name in useless:
        if getattr(options, name) is not None:
            kind = "a recipe states it for each step" if options.recipe else "it belongs to --recipe"
            raise ConfigError(f"--{name}: {getattr(options, name)} has no use here: {kind}; leave it out.")
    if options.measured and (options.tflops or options.efficiency):
        name = "tflops" if options.tflops else "efficiency"
        raise ConfigError(f"--{name}: {getattr(options, name):g} and --measured are two rates; leave one of them out.")


def default_rates(gpu: Gpu, gpus: int) -> dict[str, Rates]:
    """The rates of each stage on so many GPUs where nothing is stated and nothing was measured."""
    return dict.fromkeys(STAGES, Rates(gpu.peak * EFFICIENCY, _bandwidth(gpu, gpus) * 1e9, CORES, gpu.price, MARGIN))


def _rates(options: argparse.Namespace, gpu: Gpu) -> tuple[dict[str, Rates], str]:
    """The rates of each stage as stated, assumed or measured, and a sentence that says which."""
    device, measured = measured_rates(options.measured) if options.measured else ("", {})
    tflops, efficiency = options.tflops or gpu.peak / 1e12, options.efficiency or EFFICIENCY
    rates = default_rates(gpu, options.gpus)
    for stage, assumed in rates.items():
        rates[stage] = Rates(
            operations=measured.get(stage, tflops * 1e12 * efficiency),
            bandwidth=options.bandwidth * 1e9 if options.bandwidth else assumed.bandwidth,
            cores=options.cores or assumed.cores,
            price=options.price or assumed.price,
            margin=options.margin or (1.0 if stage in measured else assumed.margin),
        )
    one = rates[STAGES[0]]
    said = (
        f"arithmetic, not measured: {efficiency:.0%} of {tflops:g} TFLOP/s, and hours are {options.margin or MARGIN:g} "
        f"times the arithmetic's for what it leaves out"
    )
    if measured:
        shown = ", ".join(f"{stage} {rate / 1e12:.0f} TFLOP/s" for stage, rate in measured.items())
        said = f"measured on {device}: {shown}; all else is {said}"
    return rates, (
        f"Rates: {said}; {one.bandwidth / 1e9:g} GB/s between GPUs; {one.cores:g} cores a GPU; ${one.price:g} a GPU "
        f"and hour."
    )


def _bandwidth(gpu: Gpu, gpus: int) -> float:
    return gpu.bandwidth if gpus <= MACHINE_GPUS else NETWORK


def _plan_recipe(options: argparse.Namespace, rest: list[str]) -> int:
    """Print the plan of a whole recipe; 1 where a step needs more memory than a GPU has."""
    if rest:
        raise ConfigError(f"{rest[0]}: a recipe's values stand in its files; leave it out, or plan one with --config.")
    from .recipe_report import as_json, disk_lines, table
    from .recipe_report import report as recipe_report

    gpu = gpu_named(options.gpu or "h100")
    rates, said = _rates(options, gpu)
    found = recipe_report(read_recipe(options.recipe), gpu, options.gpus, rates)
    if options.json:
        print(json.dumps(as_json(found) | {"rates": said}))
    else:
        console = Console()
        console.print(table(found, f"{options.recipe} on {options.gpus} x {gpu.name}"))
        for line in (*disk_lines(found), said):
            console.print(line, highlight=False, soft_wrap=True)
    for sentence in found.left_out.values():
        print(f"error: {sentence}", file=sys.stderr)
    if large := [one for one in found.steps if not one.fits]:
        print(
            f"error: --gpu: {gpu.name} has {gpu.memory / 1e9:.1f} GB, and step {large[0].step.name} needs "
            f"{large[0].plan.peak / 1e9:.1f} GB beside the context; take a larger GPU.",
            file=sys.stderr,
        )
    return 1 if large or found.left_out else 0


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        "python -m training.plan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="All other arguments are those of training.run: --config FILE, --batch.micro 8, ...",
        allow_abbrev=False,
    )
    parser.add_argument("--gpus", type=int, required=True, help="number of GPUs (processes)")
    parser.add_argument("--gpu", help=f"kind of GPU: {', '.join(GPUS)}; default a100, for a recipe h100")
    parser.add_argument("--length", type=int, help="tokens of a row; default: the longest that the data may have")
    parser.add_argument("--images", type=float, help="pictures per row; default 1, in align 0")
    parser.add_argument("--tflops", type=float, help="peak of one GPU in bf16; default: that of --gpu")
    parser.add_argument("--efficiency", type=float, help="share of the peak that is reached, default 0.4")
    parser.add_argument("--bandwidth", type=float, help="GB/s per GPU between processes, default 25; recipes: NVLink's")
    parser.add_argument("--recipe", metavar="DIR", help="plan all trainings of a folder with a recipe.yaml")
    parser.add_argument("--price", type=float, help="dollars a GPU and hour; default: of the order that is asked")
    parser.add_argument("--margin", type=float, help="hours of a recipe are so many times the arithmetic's; default 2")
    parser.add_argument("--cores", type=float, help="CPU cores that read data for each GPU, default 8")
    parser.add_argument("--measured", metavar="FILE", help="gpu-check's JSON, or a run folder: its rates, margin 1")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    options, rest = parser.parse_known_args(arguments)
    try:
        _check(options)
        if options.recipe:
            return _plan_recipe(options, rest)
        gpu = gpu_named(options.gpu or "a100")
        if not any(word.startswith("--run_folder") for word in rest):
            rest += ["--run_folder", "unused"]
        config = parse(rest)
        config.precision = "bf16" if config.precision == "auto" else config.precision  # what GPUs of today have
        from .memory import plan

        found = plan(config, options.gpus, length=options.length, images=options.images)
    except ConfigError as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(asdict(found)))
    else:
        tflops, bandwidth = options.tflops or gpu.peak / 1e12, options.bandwidth or NETWORK
        Console().print(report(found, tflops, options.efficiency or EFFICIENCY, bandwidth))
    return 0
