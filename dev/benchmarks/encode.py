"""Speed and memory of encoding one prompt and its negative, beside the bare time of the same matrix products.

    python -m dev.benchmarks.encode --config tiny|medium|official --threads 1 --dtype fp32|bf16 [--rounds 3]

The prompt has two pictures and 10 text tokens, the negative 8. Prints one JSON object. Seconds are medians over rounds
in which encoding and bare products take turns, so that a machine whose speed drifts slows both. `limit` is the
time (seconds) of torch.mm over every linear layer's own weights at the shapes that encoding used; attention's products,
pictures' resizing and everything else have no share in it. Its share is the median over the rounds, and so is the ratio
of the time with torch's fused attention everywhere. Random weights; the file is written, then measured in a
process of its own, whose peak memory is the one reported.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kosmos_core import KosmosG, KosmosGConfig, layers, load_model, save_model
from kosmos_core.tokenizer import Layout

CONFIGS: dict[str, Callable[[], KosmosGConfig]] = {
    "tiny": KosmosGConfig.tiny,
    "medium": KosmosGConfig.medium,
    "official": KosmosGConfig.official,
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TEXT_TOKENS, NEGATIVE_TOKENS, IMAGES = 10, 8, 2


def layouts(config: KosmosGConfig, seed: int) -> list[Layout]:
    """The prompt (five words, picture, five words, picture) and the negative, as random token ids."""
    random = np.random.default_rng(seed)
    ids = config.ids

    def words(count: int) -> list[int]:
        return random.integers(4, config.decoder.vocabulary - 6, count).tolist()

    image, places = ids.image(config.resampler.latents)
    text = TEXT_TOKENS // 2
    prompt = [ids.bos, *words(text), *image, *words(text), *image]
    mask = [False, *[False] * text, *places, *[False] * text, *places]
    negative = [ids.bos, *words(NEGATIVE_TOKENS)]
    return [
        Layout(prompt, mask, None, list(range(IMAGES)), ()),
        Layout(negative, [False] * len(negative), None, [], ()),
    ]


def matrix_products(model: KosmosG, run: Callable[[], object]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Inputs and weights of every linear layer that `run` uses, inputs replaced by noise of the same shape."""
    products = []

    def record(layer: nn.Module, inputs: tuple[torch.Tensor], _: object) -> None:
        weight = layer.weight.flatten(1)
        rows = inputs[0].numel() // weight.shape[1]
        products.append((torch.randn(rows, weight.shape[1], dtype=weight.dtype), weight))

    hooks = [
        layer.register_forward_hook(record) for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d)
    ]
    run()
    for hook in hooks:
        hook.remove()
    return products


def fused_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None, dropout: float, causal: bool
) -> torch.Tensor:
    """Attention by torch's fused kernel whatever the shapes are."""
    return nn.functional.scaled_dot_product_attention(query, key, value, bias, dropout, is_causal=causal)


def seconds(run: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


@torch.inference_mode()
def measure(path: str, dtype: torch.dtype, rounds: int) -> dict[str, object]:
    """Everything that the JSON object reports, for the file at `path`."""
    load_model(path, dtype=dtype)  # warms the page cache and torch's first use
    start = time.perf_counter()
    model = load_model(path, dtype=dtype)
    load_seconds = time.perf_counter() - start
    images = [np.random.default_rng(seed).integers(0, 256, (256, 320, 3), np.uint8) for seed in range(IMAGES)]
    prompt, negative = layouts(model.config, 0)
    other_prompt, _ = layouts(model.config, 1)

    def first() -> None:
        model._cached_images.clear()
        model.encode([prompt, negative], [images, []])

    def apart() -> None:
        model.encode([other_prompt], [images])
        model.encode([negative], [[]])

    cold = seconds(first)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with FlopCounterMode(display=False) as counter:
        first()
    products = matrix_products(model, first)
    own_kernels = layers.attention

    def with_fused_kernel() -> None:
        layers.attention = fused_attention
        try:
            first()
        finally:
            layers.attention = own_kernels

    times: dict[str, list[float]] = {"first": [], "limit": [], "fused": [], "again": [], "apart": []}
    for _ in range(rounds):
        times["first"].append(seconds(first))
        times["limit"].append(seconds(lambda: [torch.mm(x, weight.t()) for x, weight in products]))
        times["fused"].append(seconds(with_fused_kernel))
        times["again"].append(seconds(lambda: model.encode([other_prompt, negative], [images, []])))
        times["apart"].append(seconds(apart))
    median = {name: statistics.median(values) for name, values in times.items()}
    shares = [limit / spent for limit, spent in zip(times["limit"], times["first"], strict=True)]
    ratios = [fused / spent for fused, spent in zip(times["fused"], times["first"], strict=True)]
    square = torch.randn(2048, 2048, dtype=dtype)
    rate = 2 * 2048**3 / statistics.median(seconds(lambda: torch.mm(square, square)) for _ in range(5))
    weights = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    return {
        "first_seconds": median["first"],
        "first_seconds_cold": cold,
        "same_pictures_other_text_seconds": median["again"],
        "same_pictures_share_of_first": median["again"] / median["first"],
        "same_pictures_prompt_and_negative_apart_seconds": median["apart"],
        "load_seconds": load_seconds,
        "peak_rss_bytes": peak,
        "weights_bytes": weights,
        "peak_rss_to_weights": peak / weights,
        "flop": counter.get_total_flops(),
        "limit": median["limit"],
        "share_of_limit": statistics.median(shares),
        "share_of_limit_from_to": [min(shares), max(shares)],
        "ratio_to_fused_attention": statistics.median(ratios),
        "gemm_2048_gflops": rate / 1e9,
        "rounds": rounds,
    }


def main() -> None:
    """Command line: write a random model, measure it in a process of its own, print one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m dev.benchmarks.encode", description=__doc__.split("\n")[0])
    parser.add_argument("--config", choices=CONFIGS, default="medium")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--file", help=argparse.SUPPRESS)  # set for the measuring process
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.file:
        print(json.dumps(measure(options.file, DTYPES[options.dtype], options.rounds)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.safetensors"
        write = "import sys, dev.benchmarks.encode as benchmark; benchmark.write(*sys.argv[1:])"
        subprocess.run([sys.executable, "-c", write, options.config, options.dtype, path], check=True)
        command = [sys.executable, "-m", "dev.benchmarks.encode", "--file", path, "--dtype", options.dtype]
        command += ["--threads", str(options.threads), "--rounds", str(options.rounds)]
        environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
        result = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    described = {
        "config": options.config,
        "dtype": options.dtype,
        "threads": options.threads,
        "torch": torch.__version__,
    }
    print(json.dumps(described | json.loads(result.stdout), indent=1))


def write(config: str, dtype: str, path: str) -> None:
    """Random model of a size and type at `path`."""
    save_model(KosmosG(CONFIGS[config](), dtype=DTYPES[dtype]).initialize(0), path)


if __name__ == "__main__":
    main()
