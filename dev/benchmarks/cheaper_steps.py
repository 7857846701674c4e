"""What makes a training step cheaper, each against the same step without it, the two taking turns in one run.

    python -m dev.benchmarks.cheaper_steps [--part frozen latents states] [--steps 6]

    frozen     stage 2, bf16: frozen layers in bf16 (parallel.frozen compute) against float32
    latents    stage 3: latents read beside the shards against images decoded and encoded
    states     stage 2: CLIP's states read beside the shards against captions encoded

Stable Diffusion's parts that are left out are of its own size with random weights, the model is `medium`, batch 4; in
stage 3 the U-Net is a tiny one and images have 64 pixels, for a step on one CPU thread. A step is data, forward,
backward and update, by processor time, median. Beside it stands what arithmetic says at official size (512 pixels, one
image a row): operations of a step with and without, and the plan's memory. Prints one JSON object for each part.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from transformers import CLIPTextConfig, CLIPTextModel

from kosmos_core import Tokenizer
from kosmos_core.diffusers.stable_diffusion import SIZES
from training import smoke
from training.base.precision import autocast
from training.base.processes import ProcessGroup
from training.base.rng import RowRng
from training.data import cache
from training.data.batch_stream import Stream
from training.data.synthetic import write_all
from training.engine.operations import OperationCounter
from training.engine.run_config import parse
from training.engine.sharding.parallelize import parallelize
from training.plan.memory import plan
from training.stages import stage_module

CPU, ROWS = torch.device("cpu"), 4
OFFICIAL = ["--preset", "official", "--batch.size", "64", "--batch.micro", "64", "--precision", "bf16"]
PARTS = {  # stage, what of Stable Diffusion is of its own size, options with it, options without it
    "frozen": ("align", None, ["--parallel.frozen", "compute"], ["--parallel.frozen", "fp32"]),
    "latents": ("instruct", "vae", ["--data.use_cache", "true"], ["--data.use_cache", "false"]),
    "states": ("align", "text_encoder", ["--data.use_cache", "true"], ["--data.use_cache", "false"]),
}


class Steps:
    """A stage that trains, step by step."""

    def __init__(self, arguments: list[str]) -> None:
        config = parse(arguments)
        self.stage = stage_module(config.stage).build(config, CPU, CPU)
        self.stage.set_trainable()
        settings = config.parallel, config.optim, config.precision
        self.engine = parallelize(self.stage, "single", *settings, ProcessGroup(0, 1, CPU))
        self.precision, self.stream = config.precision, self.stage.stream(Stream(0, 0, 1, ROWS, 1))
        self.weights = sum(p.numel() * p.element_size() for p in self.stage.model.parameters())
        self.seconds: list[float] = []

    def step(self, number: int) -> float:
        """One step; returns its loss."""
        began = time.process_time()
        batch = next(self.stream)
        torch.manual_seed(number)
        with autocast(self.precision, CPU):
            loss = self.engine.step("training_step", batch, RowRng(0, number)).total
        loss.backward()
        self.engine.optimizer.step()
        self.engine.zero_grad()
        self.seconds.append(time.process_time() - began)
        return float(loss.detach())


def official_operations(part: str) -> dict[str, float]:
    """TFLOP of a step of 64 rows at official size, without and with what the part saves; for frozen, memory in GB."""
    if part == "frozen":
        common = ["--stage", "align", "--run_folder", "unused", *OFFICIAL]
        peaks = [plan(parse([*common, "--parallel.frozen", kept]), 1).peak / 1e9 for kept in ("compute", "fp32")]
        return {"planned_gb_with": peaks[0], "planned_gb_without": peaks[1], "ratio": peaks[0] / peaks[1]}
    stage = PARTS[part][0]
    options = ["--stage", stage, "--run_folder", "unused", *OFFICIAL, "--batch.micro", "4", "--batch.size", "4"]
    whole = plan(parse(options), 1).operations * 16
    with torch.device("meta"), torch.no_grad():
        if part == "latents":
            vae = AutoencoderKL(**SIZES["vae"])
            with OperationCounter() as counter:
                vae.encode(torch.zeros(1, 3, 512, 512))
        else:
            clip = CLIPTextModel(CLIPTextConfig(**SIZES["text_encoder"]))
            with OperationCounter() as counter:
                clip(torch.zeros(1, 77, dtype=torch.int64))
    saved = 64 * counter.total
    return {"tflop_with": (whole - saved) / 1e12, "tflop_without": whole / 1e12, "ratio": 1 - saved / whole}


def prepare(folder: Path, part: str) -> Tokenizer:
    """Data, a Stable Diffusion and, where the part reads them, what lies beside the shards."""
    write_all(folder / "data", samples=16, size=128)
    diffusion = folder / "stable-diffusion"
    smoke.make_stable_diffusion(diffusion)
    torch.manual_seed(0)
    large = PARTS[part][1]
    if large == "vae":
        AutoencoderKL(**SIZES["vae"]).save_pretrained(diffusion / "vae")
    elif large == "text_encoder":
        words = json.loads((diffusion / "text_encoder/config.json").read_text())
        sizes = {**SIZES["text_encoder"], **{k: words[k] for k in ("vocab_size", "bos_token_id", "eos_token_id")}}
        CLIPTextModel(CLIPTextConfig(**sizes)).save_pretrained(diffusion / "text_encoder")
    if large:
        sets = [str(folder / "data" / name) for name in ("compositional", "edit", "pairs")]
        options = ["--stable_diffusion", str(diffusion), "--precision", "fp32", "--resolution", "64", "--workers", "0"]
        what = "latents" if large == "vae" else "states"
        assert cache.main([*(sets if large == "vae" else sets[-1:]), *options, "--what", what, "--device", "cpu"]) == 0
    return Tokenizer.from_files(folder / "data" / "spm.model", folder / "data" / "dict.txt")


def measure(part: str, steps: int) -> dict[str, object]:
    """Median processor seconds of a step with and without a part, and their ratio."""
    stage, _, cheap, dear = PARTS[part]
    folder = Path(tempfile.mkdtemp())
    try:
        tokenizer = prepare(folder, part)
        own, _ = smoke.commands(stage, folder, tokenizer.vocabulary)
        sizes = ["--preset", "medium", "--weights", "null", "--tokenizer", str(folder / "data")]
        sizes += ["--model.aligner.width", "768", "--model.aligner.heads", "12"]
        common = [*own, *sizes, "--run_folder", str(folder / "run"), "--data.workers", "0"]
        common += ["--precision", "bf16"] if part == "frozen" else ["--precision", "fp32"]
        common += ["--data.resolution", "64"] if stage == "instruct" else []
        pair = [Steps([*common, *options]) for options in (cheap, dear)]
        for number in range(steps + 1):  # the first is not counted
            losses = [one.step(number) for one in pair]
        seconds = [statistics.median(one.seconds[1:]) for one in pair]
    finally:
        shutil.rmtree(folder)
    return {
        "part": part,
        "stage": stage,
        "cpu_seconds_with": round(seconds[0], 3),
        "cpu_seconds_without": round(seconds[1], 3),
        "ratio": round(seconds[0] / seconds[1], 3),
        "weights_ratio": round(pair[0].weights / pair[1].weights, 3),
        "last_losses": losses,
        "official_size": {key: round(value, 3) for key, value in official_operations(part).items()},
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser("python -m dev.benchmarks.cheaper_steps", description=__doc__.split("\n\n")[0])
    parser.add_argument("--part", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--steps", type=int, default=6, help="steps of each side, default 6")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for part in options.part:
        print(json.dumps(measure(part, options.steps)), flush=True)


if __name__ == "__main__":
    main()
