"""Memory, traffic and expected bound of a configuration on a number of GPUs, before any is rented.

    python -m training.plan --config training/configs/instruct.yaml --gpus 64

Two steps are run on fake tensors with the engine's own code, sharded over that many simulated processes; every tensor
that would be alive is counted. Not counted: the CUDA context (about 0.5 GB per GPU), the allocator's fragmentation and
the libraries' workspaces. Speeds assume the matrix-product rate and network bandwidth that you state; nothing here was
measured on a GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from kosmos_core.diffusers.stable_diffusion import SIZES

from ..base.errors import ConfigError
from ..base.precision import DTYPES, autocast
from ..base.processes import ProcessGroup
from ..engine import flops
from ..engine.optimizer import MovingAverage
from ..engine.run_config import RunConfig, parse
from ..engine.sharding import Engine, parallelize, sharding_mesh
from .live_memory import LiveMemory
from .simulated import SimulatedStage, frozen_modules


@dataclass
class Plan:
    """What one process of a configuration needs. Bytes; operations and traffic per optimiser step."""

    sharding: str
    processes: int
    micro_batches: int  # per process and step
    rows: int  # of a micro-batch
    length: int  # tokens of a row
    images: int  # pictures of a micro-batch
    weights: int  # this process's part of the model
    optimizer: int  # Adam's moments and the moving average
    frozen: int  # U-Net, VAE, CLIP
    peak: int  # all of the above, gradients, gathered parameters and activations, at the worst moment
    traffic: int  # sent and received by a process
    operations: int


def _bytes(tensors: list[Tensor]) -> int:
    own = [getattr(t, "_local_tensor", t) for t in tensors]
    return sum(t.numel() * t.element_size() for t in own)


@contextmanager
def _processes(count: int) -> Iterator[ProcessGroup]:
    """A process group of which only process 0 exists."""
    if count == 1:
        yield ProcessGroup(0, 1, torch.device("cpu"))
        return
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=count)
    try:
        yield ProcessGroup(0, count, torch.device("cpu"), dist.group.WORLD)
    finally:
        dist.destroy_process_group()


def frozen_sizes(config: RunConfig) -> dict[str, Any]:
    """Configurations of the frozen modules: the configured diffusers folder's, else Stable Diffusion 1.5's."""
    folder = Path(getattr(config.task, "stable_diffusion", "") or "/nonexistent")
    sizes = {}
    for part, known in SIZES.items():
        file = folder / part / "config.json"
        found = json.loads(file.read_text()) if file.is_file() else known
        sizes[part] = {key: value for key, value in found.items() if not key.startswith("_")}
    return sizes


def micro_batch_shape(config: RunConfig, length: int | None, images: float | None) -> tuple[int, int]:
    """Tokens of a row and pictures of a micro-batch: as given, else the longest that the data allow."""
    latents = config.model.resampler.latents
    if images is None:
        images = {"lm": 1, "align": 0, "instruct": 1}[config.stage]
    if length is None:
        length = getattr(config.data, "sequence_length", 0) or config.data.pad_to or config.data.max_tokens
        if config.stage == "instruct" and not config.data.pad_to:
            length += round(images * (latents + 2))
    return length, round(images * config.batch.micro)


def plan(config: RunConfig, processes: int, *, length: int | None = None, images: float | None = None) -> Plan:
    """Simulate two steps of process 0 of `processes`.

    Args:
        length: tokens of a row; None takes the longest that the configuration lets through.
        images: pictures per row; None takes 1, and 0 for align.
    Raises:
        ConfigError: the batch does not divide over the processes.
    """
    kind = config.parallel.sharding
    if kind == "auto":
        kind = "single" if processes == 1 else "fsdp2"
    micro_batches, rest = divmod(config.batch.size, config.batch.micro * processes)
    if rest or not micro_batches:
        raise ConfigError(
            f"batch.size: {config.batch.size} is no multiple of batch.micro {config.batch.micro} x {processes} GPUs; "
            f"change one of them."
        )
    length, image_count = micro_batch_shape(config, length, images)
    frozen_makers, rows = frozen_modules(config.stage, frozen_sizes(config)), config.batch.micro
    simulated = processes if kind == "fsdp2" else 1  # the others hold whole copies
    with _processes(simulated) as process_group:
        mesh = sharding_mesh(config.parallel, process_group) if kind == "fsdp2" else None
        with FakeTensorMode(allow_non_fake_inputs=True), LiveMemory() as memory:
            stage = SimulatedStage(
                config.stage, config.model, config.precision, frozen_makers, rows, length, image_count
            )
            stage.set_trainable()
            engine = parallelize(
                stage,
                kind if kind == "fsdp2" else "single",
                config.parallel,
                config.optim,
                config.precision,
                process_group,
                mesh=mesh,
                fill=False,
            )
            average = MovingAverage(engine.parameters, config.optim.ema) if config.optim.ema else None
            _step(config, engine, average)  # the optimiser's state exists from the first update on
            memory.peak = memory.current
            _step(config, engine, average)
        weights = list(stage.model.parameters())
        frozen = [p for module in stage.frozen.values() for p in module.parameters()]
        moments = [t for state in engine.optimizer.state.values() for t in state.values() if t.dim()]
        moments += list(average.average.values()) if average else []
        whole = [SimpleNamespace(numel=p.numel(), trained=p.requires_grad) for p in weights]
    held, peak = _bytes(moments), memory.peak
    if kind == "fairscale":
        held, peak = held // processes, peak - held + held // processes
    modules = {key: SimpleNamespace(config=module.config) for key, module in stage.frozen.items()}
    batch = {"token_ids": torch.empty(rows, length, device="meta"), "pixels": range(image_count)}
    return Plan(
        sharding=kind,
        processes=processes,
        micro_batches=micro_batches,
        rows=rows,
        length=length,
        images=image_count,
        weights=_bytes(weights),
        optimizer=held,
        frozen=_bytes(frozen),
        peak=peak,
        traffic=_traffic(config, kind, processes, micro_batches, whole),
        operations=micro_batches * flops.of_batch(config.stage, config.model, modules, batch),
    )


def _step(config: RunConfig, engine: Engine, average: MovingAverage | None) -> None:
    with engine.gradient_sync(last=True):
        with autocast(config.precision, torch.device("cpu")):
            loss = engine.step("training_step")
        loss.backward()
    torch._foreach_mul_(engine.gradients(), 1.0)
    engine.optimizer.step()
    if average is not None:
        average.update()
    engine.zero_grad()


def _traffic(config: RunConfig, kind: str, processes: int, micro_batches: int, weights: list[Any]) -> int:
    """Bytes that a process sends in a step (and receives as many), ring algorithms assumed."""
    if processes == 1:
        return 0
    every = sum(w.numel for w in weights)
    trained = sum(w.numel for w in weights if w.trained)
    share = (processes - 1) / processes
    if kind == "fsdp2":
        gathers = 2 if config.parallel.reshard_after_forward else 1
        gathered = gathers * every * DTYPES[config.precision].itemsize * micro_batches
        reductions = micro_batches if config.parallel.sync_every_micro_batch else 1
        return round(share * (gathered + trained * 4 * reductions))
    return round(share * 2 * trained * 4)  # an all-reduce, or a reduce and a broadcast


def report(found: Plan, tflops: float, efficiency: float, bandwidth: float) -> Table:
    """The plan as a table, with the time that arithmetic and network would take at the stated speeds."""

    def gigabytes(value: float) -> str:
        return f"{value / 1e9:.2f} GB"

    arithmetic = found.operations / (tflops * 1e12 * efficiency)
    network = found.traffic / (bandwidth * 1e9)
    bound = "arithmetic" if arithmetic >= network else "network"
    table = Table(title=f"{found.sharding} on {found.processes} process(es)", show_header=False)
    for name, value in (
        ("micro-batch", f"{found.rows} rows x {found.length} tokens, {found.images} pictures"),
        ("micro-batches per process and step", str(found.micro_batches)),
        ("memory: weights", gigabytes(found.weights)),
        ("memory: optimiser and moving average", gigabytes(found.optimizer)),
        ("memory: frozen modules", gigabytes(found.frozen)),
        ("memory: gradients, gathered weights, activations", gigabytes(_rest(found))),
        ("memory per process at its peak", gigabytes(found.peak)),
        ("traffic per process and step", gigabytes(found.traffic)),
        ("operations per process and step", f"{found.operations / 1e12:.1f} TFLOP"),
        (f"arithmetic at {efficiency:.0%} of {tflops:g} TFLOP/s", f"{arithmetic:.2f} s"),
        (f"network at {bandwidth:g} GB/s", f"{network:.2f} s"),
        ("expected bound", f"{bound}; {max(arithmetic, network):.2f} s per step if the two overlap"),
    ):
        table.add_row(name, value)
    return table


def _rest(found: Plan) -> int:
    return found.peak - found.weights - found.optimizer - found.frozen


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
        config = parse(rest)
        config.precision = "bf16" if config.precision == "auto" else config.precision  # what GPUs of today have
        found = plan(config, options.gpus, length=options.length, images=options.images)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(asdict(found)))
    else:
        Console().print(report(found, options.tflops, options.efficiency, options.bandwidth))
    return 0


if __name__ == "__main__":
    sys.exit(main())
