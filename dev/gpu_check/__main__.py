"""What a GPU makes of this project: numbers, speed, memory, sharding, ComfyUI's loading; a table and a JSON file.

    make gpu-check                                       # a GPU, at full size, at most 8 minutes
    python -m dev.gpu_check --device cpu                 # everything at small size, on any machine
    python -m dev.gpu_check --only encode steps --out mine.json

It needs a checkout, and of packages torch, transformers, safetensors, einops and sentencepiece; weights are random and
nothing is fetched. A part that needs more says what and is skipped:

    golden      the original's recorded numbers in fp32, fp16 and bf16
    encode      one prompt beside its floor (weights read once, bare matrix products), 1 to 8 pictures, memory
    steps       a training step of each stage: seconds, share of the peak, memory beside the plan's
                [jsonargparse, rich; stage 3: diffusers]
    sharding    fully_shard on one GPU equals a single process; saved, and resumed under the other
                [jsonargparse, rich, energon, diffusers, psutil]
    adapter     ComfyUI's casting and partial loading of the node's CLIP [ComfyUI in .comfyui]
    world       samples a second of the small world's U-Net and stages [diffusers, jsonargparse, rich]

The plan reads the file: `python -m training.plan --recipe training/configs/kosmos2 --measured gpu-check.json`. Exit
code 1 where a number is wrong or a part failed; a missed goal of speed is marked and no failure.
"""

from __future__ import annotations

import argparse
import functools
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import torch

from kosmos_core.atomic import write_file

from . import adapter, encode, golden, sharding, steps, world
from .context import Context, Line

KIND = "kosmos-g gpu-check"  # training.plan.measured knows it
GOALS = ("encode", "steps", "world")  # parts whose marks are goals, not promises

PARTS: dict[str, Callable[[Context, Path], Iterable[Line]]] = {
    "golden": lambda context, _: golden.check(context),
    "encode": lambda context, _: encode.check(context),
    "steps": steps.check,
    "sharding": sharding.check,
    "adapter": lambda context, _: adapter.check(context),
    "world": lambda context, _: world.check(context),
}


def prepare(folder: Path) -> None:
    """Write what the small trainings read: data, a tiny Stable Diffusion, starting weights; only what can be made."""
    if any(find_spec(name) is None for name in ("diffusers", "megatron", "jsonargparse")):
        return
    from kosmos_core import KosmosG, KosmosGConfig, Tokenizer, save_model
    from training.data.synthetic import pair_samples, write_tars, write_vocabulary
    from training.smoke import make_stable_diffusion

    write_tars(folder / "data" / "pairs", pair_samples(random.Random(0), 24, 64), 24)
    tokenizer = Tokenizer.from_files(*write_vocabulary(folder / "data"), latents=4)
    make_stable_diffusion(folder / "stable-diffusion")
    (folder / "vocabulary").write_text(str(tokenizer.vocabulary))
    sizes = replace(KosmosGConfig.tiny(vocabulary=tokenizer.vocabulary), aligner=None)
    save_model(KosmosG(sizes, tokenizer=tokenizer).initialize(1), folder / "lm.safetensors", stage="lm")


def describe(context: Context) -> str:
    """The device's name as its driver gives it."""
    return torch.cuda.get_device_name(context.device) if context.device.type == "cuda" else "CPU"


def show(context: Context, parts: list[str]) -> None:
    """Print the table."""
    marks = {None: "", True: "ok", False: "NO"}
    for name in parts:
        print(f"\n{name}")
        for line in context.lines.get(name, []):
            missed = "missed" if line.good is False and name in GOALS and line.what != "failed" else marks[line.good]
            print(f"  {line.what:<52} {line.value:<38} {line.beside:<30} {missed}")
        for skipped, reason in context.skipped.items():
            if skipped.split(",")[0] == name:
                print(f"  skipped: {skipped}: {reason}")


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        "python -m dev.gpu_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", choices=("official", "tiny"), help="default: official on a GPU, tiny on a CPU")
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=f"some of {', '.join(PARTS)}")
    parser.add_argument("--minutes", type=float, default=8.0, help="nothing new begins after so long; default 8")
    parser.add_argument("--out", type=Path, default=Path("gpu-check.json"), help="the JSON file")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("error: --device cuda: torch sees no GPU here; --device cpu runs everything small.", file=sys.stderr)
        return 2
    if not 0 < options.minutes < float("inf"):
        print(f"error: --minutes: {options.minutes:g} must be above 0.", file=sys.stderr)
        return 2
    started = time.monotonic()
    size = options.size or ("official" if options.device == "cuda" else "tiny")
    context = Context(torch.device(options.device), size, started + 60 * options.minutes)
    parts = options.only or list(PARTS)
    print(f"{describe(context)}, torch {torch.__version__}, {size} size", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if {"steps", "sharding"} & set(parts):
            prepare(folder)
        for part in parts:
            context.attempt(part, functools.partial(PARTS[part], context, folder))
    show(context, parts)
    failed = [
        f"{name}: {line.what}"
        for name in parts
        for line in context.lines.get(name, [])
        if line.good is False and (name not in GOALS or line.what == "failed")
    ]
    content = {
        "kind": KIND,
        "device": describe(context),
        "size": size,
        "torch": str(torch.__version__),
        "minutes": (time.monotonic() - started) / 60,
        "rates": context.values.get("rates", {}),
        "values": context.values,
        "lines": {name: [vars(line) for line in lines] for name, lines in context.lines.items()},
        "skipped": context.skipped,
        "seconds": context.spent,
        "failed": failed,
    }
    write_file(options.out, json.dumps(content, indent=1) + "\n")
    print(f"\n{options.out}: {len(failed)} wrong, {len(context.skipped)} skipped, {content['minutes']:.1f} minutes")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
