"""How encoding grows: seconds and memory over images, tokens or prompts, beside what counting the products says.

    python -m dev.benchmarks.growth --config official --dtype bf16 --over images|tokens|prompts [--rounds 3] [--file F]

Prints a table in Markdown. Seconds are the processor's. `counted` is the time that the counted operations take at the
rate of torch.mm of 2048 x 2048, measured in every round between the points, so that a machine whose speed drifts slows
both. Memory is what the process held at its peak above what it held before; `counted` there is what the widest moment
of a block has to hold: the residual stream and its norm in float32, and in the weights' type the norm once more, the
hidden layer and its activation. Linux only. Random weights, made anew unless `--file` names some.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from kosmos_core import KosmosG, load_model
from kosmos_core.tokenizer import Layout

from .encode import CONFIGS, DTYPES
from .node import seconds

POINTS = {"images": (0, 1, 2, 4, 8), "tokens": (8, 32, 128, 256, 512, 1000, 2000), "prompts": (1, 2, 4, 8, 16)}
TEXT = 16  # tokens of each prompt, where it is not they that grow
GEMM = 2048


def layout(model: KosmosG, tokens: int, images: int) -> Layout:
    """A prompt of so many tokens of text, followed by images."""
    ids = model.config.ids
    text = np.random.default_rng(tokens).integers(4, model.config.decoder.vocabulary - 6, tokens - 1).tolist()
    image, places = ids.image(model.config.resampler.latents)
    mask = [False] * tokens + list(places) * images
    return Layout([ids.bos, *text, *image * images], mask, None, list(range(images)), ())


def prompts_of(model: KosmosG, over: str, count: int) -> tuple[list[Layout], list[list[np.ndarray]]]:
    """The prompts of one point of a curve, and their images."""
    images = count if over == "images" else 0
    made = [layout(model, count if over == "tokens" else TEXT, images)] * (count if over == "prompts" else 1)
    drawn = [np.random.default_rng(seed).integers(0, 256, (256, 320, 3), np.uint8) for seed in range(images)]
    return made, [drawn] * len(made)


def activation_bytes(model: KosmosG, prompts: list[Layout]) -> int:
    """What a block of the language model, of AlignerNet or of the vision tower holds at its widest."""
    held = model.decoder.embedding.weight.element_size()
    config = model.config
    stacks = [(sum(len(prompt.token_ids) for prompt in prompts), config.decoder)]
    stacks.append((len(prompts) * config.aligner.queries, config.aligner))
    if any(prompt.image_slots for prompt in prompts):
        stacks.append((config.vision.tokens, config.vision))
    return max(rows * (8 * part.width + held * (part.width + 2 * part.ffn_width)) for rows, part in stacks)


def peak_above(run: Callable[[], object]) -> int:
    """Bytes that this process held at most during a call, above what it held before."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew

    def status(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

    before = status("VmRSS")
    run()
    return status("VmHWM") - before


@torch.inference_mode()
def measure(model: KosmosG, over: str, rounds: int) -> list[dict[str, float]]:
    """One row for each point of a curve."""
    square = torch.ones(GEMM, GEMM, dtype=model.decoder.embedding.weight.dtype)
    points = []
    for count in POINTS[over]:
        prompts, images = prompts_of(model, over, count)

        def run(prompts: list[Layout] = prompts, images: list[list[np.ndarray]] = images) -> None:
            model._cached_images.clear()
            model.encode(prompts, images)

        with FlopCounterMode(display=False) as counter:
            run()  # which also reads the weights in, where they are mapped
        peak = peak_above(run)
        rows = sum(len(prompt.token_ids) for prompt in prompts)
        points.append({"count": count, "rows": rows, "flop": counter.get_total_flops(), "peak": peak, "run": run})
        points[-1]["widest"] = activation_bytes(model, prompts)
    times: list[list[float]] = [[] for _ in points]
    counted: list[list[float]] = [[] for _ in points]
    for _ in range(rounds):
        for point, spent, arithmetic in zip(points, times, counted, strict=True):
            arithmetic.append(point["flop"] * seconds(lambda: square @ square) / (2 * GEMM**3))
            spent.append(seconds(point["run"]))
    for point, spent, arithmetic in zip(points, times, counted, strict=True):
        point["seconds"], point["counted"] = statistics.median(spent), statistics.median(arithmetic)
    return points


def table(over: str, points: list[dict[str, float]]) -> str:
    """The points in Markdown."""
    lines = [f"| {over} | tokens in all | seconds | counted | ms a token | MB | counted |", "|" + " ---: |" * 7]
    for point in points:
        cells = (
            f"{point['count']:,}",
            f"{point['rows']:,}",
            f"{point['seconds']:.2f}",
            f"{point['counted']:.2f}",
            f"{1000 * point['seconds'] / point['rows']:.2f}",
            f"{point['peak'] / 1e6:.0f}",
            f"{point['widest'] / 1e6:.0f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Command line: make or load a model, measure one curve, print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=CONFIGS, default="medium")
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--over", choices=POINTS, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--file", help="a Kosmos-G file, in place of random weights")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dtype = DTYPES[options.dtype]
    if options.file:
        model = load_model(options.file, dtype=dtype)
    else:
        model = KosmosG(CONFIGS[options.config](), dtype=dtype).initialize(0).train(False)
    print(table(options.over, measure(model, options.over, options.rounds)))


if __name__ == "__main__":
    main()
