"""Memory, traffic and expected bound of a configuration on a number of GPUs, before any is rented.

    python -m training.plan --config training/configs/instruct.yaml --gpus 64

A step of the configured stage is run on tensors without memory by the engine's own code, sharded over that many
simulated processes; every tensor that would be alive is counted. Not counted: gradients that wait for the next
micro-batch of the same step, the CUDA context (about 0.5 GB per GPU), the allocator's fragmentation and the libraries'
workspaces. Speeds assume the matrix-product rate and network bandwidth
that you state.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from ..base.display import printable
from ..base.errors import ConfigError
from ..engine.run_config import parse
from .memory import Plan, plan


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
    """ConfigError names the first option whose number makes no sense."""
    for name in ("gpus", "length", "tflops", "efficiency", "bandwidth"):
        if (value := getattr(options, name)) is not None and not value > 0:
            raise ConfigError(f"--{name}: {value:g} must be above 0.")
    if options.images is not None and not options.images >= 0:
        raise ConfigError(f"--images: {options.images:g} must be 0 or more.")


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
    parser.add_argument("--length", type=int, help="tokens of a row; default: the longest that the data may have")
    parser.add_argument("--images", type=float, help="pictures per row; default 1, in align 0")
    parser.add_argument("--tflops", type=float, default=312, help="peak of one GPU, default an A100 in bf16")
    parser.add_argument("--efficiency", type=float, default=0.4, help="share of the peak that is reached, default 0.4")
    parser.add_argument("--bandwidth", type=float, default=25, help="GB/s per GPU between processes, default 25")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    options, rest = parser.parse_known_args(arguments)
    if not any(word.startswith("--run_folder") for word in rest):
        rest += ["--run_folder", "unused"]
    try:
        _check(options)
        config = parse(rest)
        config.precision = "bf16" if config.precision == "auto" else config.precision  # what GPUs of today have
        found = plan(config, options.gpus, length=options.length, images=options.images)
    except ConfigError as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(asdict(found)))
    else:
        Console().print(report(found, options.tflops, options.efficiency, options.bandwidth))
    return 0
