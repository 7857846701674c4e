"""Does one ComfyUI server stay the same size? Many prompts of varying text, pictures and sizes in a real one.

    python -m dev.benchmarks.soak --prompts 1000

Prints resident memory and open files as it goes; fails where memory after the last prompt is more than 5 % above that
after prompt 100 (of fewer than 200 prompts: after half of them, because the first fill what the server remembers), or
where open files have grown.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from tests.tiny.comfyui_files import save_tiny_checkpoint
from tests.tiny.kosmos_file import CAPTIONS, save_tiny_kosmos

from ..client import Client
from ..graph import SamplingGraph
from ..server import prepare_folder, running_server

ALLOWED = 1.05
WARM = 100  # prompts after which nothing more should be remembered
IMAGES = 12


def make_graph(number: int) -> SamplingGraph:
    """A graph with a text of its own, zero to three pictures and one of several sizes."""
    chance = random.Random(number)
    images = chance.sample(range(IMAGES), chance.randrange(4))
    text = f"{chance.choice(CAPTIONS)} {number} " + " and <i>" * len(images)
    graph = SamplingGraph().prompt(text, *(f"{image}.png" for image in images), negative=chance.choice(CAPTIONS))
    graph.sample(seed=number, steps=1)
    size = next(node for node in graph.nodes.values() if node["class_type"] == "EmptyLatentImage")
    size["inputs"] |= {"width": chance.choice((64, 96, 128)), "height": chance.choice((64, 96, 128))}
    return graph


def open_files(process: psutil.Process) -> int:
    """Open files of a process at rest: connections that are just closing come and go, so the fewest of ten looks."""
    counts = []
    for _ in range(10):
        counts.append(process.num_fds())
        time.sleep(0.1)
    return min(counts)


def soak(prompts: int, folder: Path) -> tuple[list[float], list[int]]:
    """Run `prompts` prompts in one server; resident megabytes and open files at several moments once it is warm."""
    prepare_folder(folder)
    save_tiny_checkpoint(folder / "models/checkpoints/tiny.safetensors")
    save_tiny_kosmos(folder / "models/kosmos_g/kosmos.safetensors")
    for number in range(IMAGES):
        pixels = np.random.default_rng(number).integers(0, 256, (64 + 40 * number, 320, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"input/{number}.png")
    memory, files = [], []
    with running_server(folder) as server:
        process = psutil.Process(server.process.pid)
        client = Client(server.address)
        for number in range(1, prompts + 1):
            client.run(make_graph(number).nodes)
            if number % max(1, prompts // 10) == 0 and number >= min(WARM, prompts // 2):
                memory.append(process.memory_info().rss / 2**20)
                files.append(open_files(process))
                print(f"prompt {number}: {memory[-1]:.0f} MB, {files[-1]} open files", flush=True)
        client.close()
    return memory, files


def grew(memory: list[float], files: list[int]) -> str | None:
    """What of a server grew from the first moment to the last, in one sentence; None where nothing did."""
    growth = memory[-1] / memory[0]
    if growth > ALLOWED:
        return f"memory grew from {memory[0]:.0f} to {memory[-1]:.0f} MB, x {growth:.3f} (at most {ALLOWED})"
    if files[-1] > files[0]:
        return f"open files grew from {files[0]} to {files[-1]}"
    return None


def main() -> int:
    """Soak and judge; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=1000)
    prompts = parser.parse_args().prompts
    with tempfile.TemporaryDirectory() as folder:
        memory, files = soak(prompts, Path(folder))
    found = grew(memory, files)
    print(found or f"memory x {memory[-1] / memory[0]:.3f} (at most {ALLOWED}), open files {files[0]} -> {files[-1]}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
