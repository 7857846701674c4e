"""Speed and memory of a training step of each stage, beside the machine's own speed in the same run.

    python -m dev.benchmarks.train --config tiny|medium --stage 1|2|3 --threads 1 [--precision fp32|bf16]
    torchrun --nproc-per-node 2 -m dev.benchmarks.train --rows 2

Batch 4, or `--rows` in each process, 40 text tokens a row, in stages 1 and 3 one picture a row, in stage 3 a U-Net of
channels 32 and 64 on 8 x 8 latents; dropout on, no activation checkpointing. A step is forward, backward, clipping and
AdamW through the engine; target latents and CLIP's states are given. Batches come from tars on disk through the real
data pipeline with one reading process. Prints one JSON object.

Steps and products of 2048 x 2048 matrices take turns, so that whatever slows the machine slows both. `seconds` is the
median step by the clock, `cpu_seconds` by processor time, which other processes disturb less. `seconds_at_185` and
`cpu_seconds_at_185` are the medians of step time x the float32 product rate beside it / 185 GFLOP/s: the idle machine
for which the goals are stated, 0.72 s in stage 2 and 1.30 s in stage 3 (medium, one thread, fp32), where the original
takes 0.94 s and 1.74 s. `share_of_products` is what the same run's bare products take of a step: the matrix products,
convolutions and attentions of its forward and backward pass, with their own operands, one after the other; to reach
0.85. bf16 is autocast over float32 weights; where processors have AMX it is to take at most half of
the float32 time (`gemm_2048_bf16_gflops` tells: about six times the float32 rate with AMX, about twice without).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from kosmos_core import KosmosG, KosmosGConfig, Tokenizer
from kosmos_core.diffusers.stable_diffusion import ddpm_scheduler
from tests.tiny.stable_diffusion import tiny_unet
from training.base.allocator import keep_memory
from training.base.precision import autocast
from training.base.processes import ProcessGroup, join_process_group
from training.base.rng import RowRng
from training.data.batch_stream import BatchStream, Stream
from training.data.data_config import AlignData, InstructData, LmData, SourceConfig
from training.data.streams import align_stream, instruct_stream, lm_stream
from training.data.synthetic import write_tars, write_vocabulary
from training.engine.operations import OperationCounter
from training.engine.optim_config import OptimConfig
from training.engine.sharding.config import ParallelConfig
from training.engine.sharding.engine import Engine
from training.engine.sharding.parallelize import choose_sharding, parallelize
from training.smoke import make_clip_tokenizer
from training.stages import align, instruct, lm
from training.stages.losses import Losses

TEXT_TOKENS, LATENT_SIDE = 40, 8
GOALS = {"align": 0.72, "instruct": 1.30}  # seconds, medium, one thread, fp32
GOAL_SHARE = 0.85  # of a step, for its products
GOAL_RATE = 185e9  # FLOP/s of the machine that they are stated for
STAGES = {1: "lm", 2: "align", 3: "instruct"}


def write_samples(folder: Path) -> Tokenizer:
    """Tars of captions, captioned pictures and edits whose text is exactly 40 tokens; returns the tokenizer."""
    tokenizer = Tokenizer.from_files(*write_vocabulary(folder))
    count = next(n for n in range(1, 200) if len(tokenizer.encode(" ".join(["a"] * n))) == TEXT_TOKENS)
    text = " ".join(["a"] * count)
    file = io.BytesIO()
    Image.effect_noise((256, 256), 60).convert("RGB").save(file, "JPEG", quality=90)
    image = file.getvalue()
    edit = {"json": json.dumps({"input": "", "edit": text}).encode(), "0_0.jpg": image, "0_1.jpg": image}
    for name, sample in (
        ("captions", {"txt": text.encode()}),
        ("pairs", {"txt": text.encode(), "jpg": image}),
        ("edits", edit),
    ):
        write_tars(folder / name, [sample] * 64, per_shard=32)
    return tokenizer


def open_stream(stage: str, folder: Path, tokenizer: Tokenizer, rows: int, group: ProcessGroup) -> BatchStream:
    """The stage's data, one reading process."""
    stream = Stream(0, group.rank, group.world_size, micro_batch=rows, micro_batches=group.world_size)

    def sources(name: str) -> dict[str, Any]:
        return {"sources": {name: SourceConfig(str(folder / name))}, "workers": 1}

    if stage == "lm":
        length = TEXT_TOKENS + tokenizer.latents + 4  # a whole document a row: <s> <image> ... </image> text </s>
        return lm_stream(LmData(**sources("pairs"), sequence_length=length), stream, tokenizer)
    if stage == "align":
        from transformers import CLIPTokenizer

        make_clip_tokenizer(folder / "clip")
        return align_stream(
            AlignData(**sources("captions")), stream, tokenizer, CLIPTokenizer.from_pretrained(folder / "clip")
        )
    return instruct_stream(InstructData(**sources("edits"), resolution=64), stream, tokenizer)


class Measured:
    """A stage whose targets are given: CLIP's states in stage 2, latents in stage 3."""

    def __init__(self, stage: str, model: KosmosG, rows: int) -> None:
        self.name, self.model, self.frozen, self.rows = stage, model, {}, rows
        width = model.config.aligner.width if model.config.aligner else 0
        if stage == "instruct":
            torch.manual_seed(0)
            self.frozen["unet"] = tiny_unet(width).requires_grad_(False).eval()
        self.scheduler = ddpm_scheduler()
        self.target = torch.randn(rows, 77, width) if stage == "align" else None

    def set_trainable(self) -> None:
        if self.name == "lm":
            lm.LmStage(self.model, lm.Config(), None, []).set_trainable()
        elif self.name == "align":
            align.AlignStage(self.model, align.Config(), None, None, []).set_trainable()
        else:
            instruct.InstructStage(self.model, instruct.Config(), None, None, []).set_trainable()

    def training_step(self, model: KosmosG, batch: dict[str, Any], rng: RowRng) -> Losses:
        if self.name == "lm":
            return lm.LmStage(model, lm.Config(), None, []).training_step(model, batch, rng)
        if self.name == "align":
            mse, rec = align.sample_losses(model, batch["token_ids"], self.target)
            return Losses.of_rows(mse + rec, batch["sources"], mse=mse, rec=rec)
        shape = (self.rows, 4, LATENT_SIDE, LATENT_SIDE)
        batch = batch | {"latents": rng.normal("latents", shape)}
        timesteps, drop = rng.integers("timestep", 1000, self.rows), rng.uniform("null", self.rows) < 0.1
        noise = rng.normal("noise", shape)
        losses, _ = instruct.sample_losses(model, self.frozen["unet"], self.scheduler, batch, noise, timesteps, drop)
        return Losses.of_rows(losses, batch["sources"])


def train_step(engine: Engine, batch: dict[str, Any], number: int, precision: str) -> None:
    """One optimiser step, as the training loop makes it."""
    with autocast(precision, torch.device("cpu")):
        losses = engine.step("training_step", batch, RowRng(seed=0, step=number))
    (losses.total / float(losses.count)).backward()
    norm = float(engine.gradient_norm())
    if norm > 2.0:
        torch._foreach_mul_(engine.gradients(), 2.0 / norm)
    engine.optimizer.step()
    engine.optimizer.zero_grad(set_to_none=True)


class ProductRecorder(OperationCounter):
    """While active, keeps every call that `OperationCounter` counts, with its operands."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._overloadpacket in self.formulas:
            self.calls.append((func, args, kwargs or {}))
        return super().__torch_dispatch__(func, types, args, kwargs)

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs in self.calls:
            func(*args, **kwargs)


@dataclass
class Turn:
    """One measured call: seconds by the clock and of this process's processor time."""

    clock: float
    cpu: float


def turn(run: Callable[[], object]) -> Turn:
    clock, cpu = time.perf_counter(), time.process_time()
    run()
    return Turn(time.perf_counter() - clock, time.process_time() - cpu)


def measure(options: argparse.Namespace, folder: Path, process_group: ProcessGroup) -> dict[str, Any]:
    """Everything that the JSON object reports."""
    stage = STAGES[options.stage]
    sizes = getattr(KosmosGConfig, options.config)(reconstruction=stage == "align")
    tokenizer = write_samples(folder)
    tokenizer.latents = sizes.resampler.latents
    vocabulary = max(sizes.decoder.vocabulary, tokenizer.vocabulary)
    sizes = replace(sizes, decoder=replace(sizes.decoder, vocabulary=vocabulary))
    measured = Measured(stage, KosmosG(sizes).initialize(0), options.rows)
    if options.precision == "bf16":
        for module in measured.frozen.values():
            module.to(torch.bfloat16)
    measured.set_trainable()
    kind = choose_sharding(ParallelConfig(), process_group)
    engine = parallelize(measured, kind, ParallelConfig(), OptimConfig(), "fp32", process_group)
    stream = open_stream(stage, folder, tokenizer, options.rows, process_group)
    square, product = torch.randn(2048, 2048), 2 * 2048**3
    steps, products, waits, bare = [], [], [], []
    for number in range(2):  # which warm up
        train_step(engine, next(stream), number, options.precision)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # before operands are kept
    with ProductRecorder() as recorder:
        train_step(engine, next(stream), 2, options.precision)
    for number in range(3, options.steps + 4):
        before = turn(lambda: torch.mm(square, square))
        start = time.perf_counter()
        batch = next(stream)
        wait = time.perf_counter() - start
        step = turn(lambda batch=batch, number=number: train_step(engine, batch, number, options.precision))
        own = turn(recorder.replay)
        after = turn(lambda: torch.mm(square, square))
        if number > 3:  # the first one warms up
            bare.append(own)
            steps.append(step)
            products.append(Turn((before.clock + after.clock) / 2, (before.cpu + after.cpu) / 2))
            waits.append(wait)
    stream.close()
    half = square.bfloat16()
    half_rate = product / min(turn(lambda: torch.mm(half, half)).clock for _ in range(5))
    flop = recorder.total

    def at_goal_rate(kind: str) -> float:
        pairs = zip(steps, products, strict=True)
        return statistics.median(getattr(s, kind) * product / getattr(p, kind) / GOAL_RATE for s, p in pairs)

    clock, rate = statistics.median(s.clock for s in steps), product / statistics.median(p.clock for p in products)
    stated = (options.config, options.threads, options.precision, options.rows, process_group.world_size)
    goal = GOALS.get(stage) if stated == ("medium", 1, "fp32", 4, 1) else None
    return {
        "stage": stage,
        "tokens_per_row": batch["token_ids"].shape[1],
        "seconds": clock,
        "cpu_seconds": statistics.median(s.cpu for s in steps),
        "seconds_at_185": at_goal_rate("clock"),
        "cpu_seconds_at_185": at_goal_rate("cpu"),
        "goal_at_185": goal,
        "goal_at_this_rate": goal and goal * GOAL_RATE / rate,
        "reached": goal and at_goal_rate("clock") <= goal,
        "share_of_products": statistics.median(p.clock / s.clock for p, s in zip(bare, steps, strict=True)),
        "share_of_products_cpu": statistics.median(p.cpu / s.cpu for p, s in zip(bare, steps, strict=True)),
        "goal_share_of_products": GOAL_SHARE,
        "gemm_2048_gflops": rate / 1e9,
        "gemm_2048_bf16_gflops": half_rate / 1e9,
        "flop": flop,
        "seconds_of_flop": statistics.median(flop * p.cpu / product for p in products),
        "mfu": flop / at_goal_rate("clock") / GOAL_RATE,
        "peak_rss_bytes": peak,
        "data_wait_share": sum(waits) / (sum(waits) + sum(s.clock for s in steps)),
        "steps": options.steps,
    }


def main() -> None:
    """Command line: measure in a process of its own with that many threads, print one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m dev.benchmarks.train", description=__doc__.split("\n")[0])
    parser.add_argument("--config", choices=("tiny", "medium"), default="medium")
    parser.add_argument("--stage", type=int, choices=STAGES, default=3)
    parser.add_argument("--rows", type=int, default=4, help="of the batch, in each process")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--steps", type=int, default=9)
    options = parser.parse_args()
    if os.environ.get("OMP_NUM_THREADS") != str(options.threads):  # has to be set before torch is loaded
        environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
        command = [sys.executable, "-m", "dev.benchmarks.train", *sys.argv[1:]]
        sys.exit(subprocess.run(command, env=environment).returncode)
    keep_memory()  # as the launcher does
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder, join_process_group("cpu") as process_group:
        result = measure(options, Path(folder), process_group)
    described = {key: getattr(options, key) for key in ("config", "precision", "threads", "rows")}
    described |= {"processes": process_group.world_size, "torch": torch.__version__}
    if process_group.rank == 0:
        print(json.dumps(described | result, indent=1))


if __name__ == "__main__":
    main()
