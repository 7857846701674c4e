"""Data loading against its floor: what decoding and resizing the same JPEGs costs by itself.

    python -m dev.benchmarks.data [--samples 300] [--side 640] [--workers 1]

For each stage's data: pictures per second of processor time of bare decode + resize and of the stream, and pictures per
second of the clock that reading processes hand to the training process, each of them. To reach: the stream at least
90 % of bare. The bare loop takes the bytes from memory, opens them with Pillow and resizes them as the stage needs,
nothing else; the stream finds, reads, decodes, resizes, normalises, tokenises and batches. All run in turns, so that a
busy machine disturbs them alike; what comes from other processes counts only on an idle one.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from kosmos_core.tokenizer import Tokenizer
from training.base.allocator import keep_memory
from training.data.batch_stream import Stream
from training.data.data_config import InstructData, LmData, SourceConfig
from training.data.shard_writer import write_shard
from training.data.streams import instruct_stream, lm_stream
from training.data.synthetic import write_vocabulary

GOAL = 0.90
REFERENCE, TARGET = 224, 512


def photo(rng: np.random.Generator, side: int) -> bytes:
    """A JPEG with the statistics of a photograph: noise of every scale, about 1.5 bits per pixel."""
    pixels = np.zeros((side, side * 4 // 3, 3), np.float32)
    for scale in (4, 16, 64, 256):
        coarse = rng.normal(size=(scale, scale * 4 // 3, 3)).astype(np.float32)
        layer = [
            Image.fromarray(coarse[..., channel]).resize(pixels.shape[1::-1], Image.BICUBIC) for channel in range(3)
        ]
        pixels += np.stack(layer, -1) * 160 / scale**0.5
    file = io.BytesIO()
    Image.fromarray((pixels + 128).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def write_sets(folder: Path, samples: int, side: int) -> dict[str, list[tuple[bytes, int]]]:
    """Data sets in three layouts; for each, the pictures of a sample and the size that the stage wants."""
    rng = np.random.default_rng(0)
    photos = [photo(rng, side) for _ in range(24)]
    crops = [photo(rng, 512) for _ in range(24)]
    mask = io.BytesIO()
    Image.fromarray(np.pad(np.full((400, 560), 255, np.uint8), 56)).convert("1").save(mask, "PNG")
    caption = "a photo of a dog and a cat at the beach, wearing a hat"
    spans = [[13, 18], [23, 28]]
    described = json.dumps({"caption": caption, "entities": [{"span": span} for span in spans]}).encode()
    edit = json.dumps({"input": caption, "edit": "make the circle red"}).encode()
    made: dict[str, list] = {"captions": [], "compositional": [], "edit": []}
    for number in range(samples):
        one, two = photos[number % 24], photos[(number + 7) % 24]
        small = [crops[number % 24], crops[(number + 5) % 24]]
        made["captions"].append({"jpg": one, "txt": caption.encode(), "json": b'{"width": 900, "height": 700}'})
        made["edit"].append({"0_0.jpg": one, "0_1.jpg": two, "json": edit})
        parts = {
            f"{k}.{name}": content
            for k in (0, 1)
            for name, content in (("jpg", small[k]), ("mask.png", mask.getvalue()))
        }
        made["compositional"].append({"jpg": one, "json": described, **parts})
    for name, sets in made.items():
        write_shard(folder / name / "00000.tar", ((f"{number:06d}", parts) for number, parts in enumerate(sets)))
    return {
        "captions": [(parts["jpg"], TARGET) for parts in made["captions"]],
        "edit": [(parts[f"0_{k}.jpg"], (REFERENCE, TARGET)[k]) for parts in made["edit"] for k in (0, 1)],
        "compositional": [
            (parts[name], size)
            for parts in made["compositional"]
            for name, size in (("jpg", TARGET), ("0.jpg", REFERENCE), ("1.jpg", REFERENCE))
        ],
    }


def bare(images: list[tuple[bytes, int]]) -> float:
    """Processor seconds to decode the pictures and to resize and crop them."""
    begun = time.process_time()
    for content, size in images:
        image = Image.open(io.BytesIO(content)).convert("RGB")
        short = min(image.size)
        wanted = tuple(round(length * size / short) for length in image.size)
        resized = image.resize(wanted, Image.BILINEAR if size == TARGET else Image.BICUBIC)
        left, top = ((length - size) // 2 for length in wanted)
        resized.crop((left, top, left + size, top + size))
    return time.process_time() - begun


def stream_over(stage: str, path: Path, tokenizer: Tokenizer, workers: int, rows: int):
    """The stage's stream over one data set."""
    source = {"data": SourceConfig(str(path))}
    if stage == "lm":
        return lm_stream(LmData(source, workers=workers), Stream(0, 0, 1, rows, 1), tokenizer)
    return instruct_stream(InstructData(source, workers=workers), Stream(0, 0, 1, rows, 1), tokenizer)


def measure(stage: str, path: Path, images: list[tuple[bytes, int]], tokenizer: Tokenizer, workers: int) -> list[float]:
    """Pictures per second: bare, of the stream in this process, and with reading processes."""
    if stage == "lm":
        images = [(content, REFERENCE) for content, _ in images]
    per_sample = {"captions": 1, "edit": 2, "compositional": 3}[path.name]
    samples, rows = len(images) // per_sample, 8
    rates = [[], [], []]
    own = stream_over(stage, path, tokenizer, 0, 1 if stage == "lm" else rows)
    aside = stream_over(stage, path, tokenizer, workers, 1 if stage == "lm" else rows)
    for stream in (own, aside):
        next(stream)

    def read(stream, clock) -> float:
        begun, done = clock(), 0
        while done < samples * per_sample:
            batch = next(stream)
            done += (0 if batch["pixels"] is None else len(batch["pixels"])) + len(batch.get("target", ()))
        return done / (clock() - begun)

    for _ in range(5):
        rates[0].append(len(images) / bare(images))
        rates[1].append(read(own, time.process_time))
        if workers:
            rates[2].append(read(aside, time.perf_counter) / workers)
    aside.close()
    return [statistics.median(values) if values else float("nan") for values in rates]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=int, default=120, help="samples of each data set")
    parser.add_argument("--side", type=int, default=640, help="shorter side of the photographs in pixels")
    parser.add_argument("--workers", type=int, default=1, help="reading processes of the second measurement")
    given = parser.parse_args()
    keep_memory()  # as the launcher does
    torch.set_num_threads(1)
    random.seed(0)
    reached = True
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = Tokenizer.from_files(*write_vocabulary(Path(folder)))
        sets = write_sets(Path(folder), given.samples, given.side)
        beside = f"with {given.workers} process(es)"
        print(f"{'':28}{'bare':>8}{'stream':>8}{'share':>8}{beside:>20}{'share':>8}")
        cases = [("instruct", name) for name in sets] + [("lm", "captions")]
        for stage, name in cases:
            floor, own, aside = measure(stage, Path(folder, name), sets[name], tokenizer, given.workers)
            reached &= own / floor >= GOAL
            print(
                f"{stage + ', ' + name:28}{floor:8.1f}{own:8.1f}{own / floor:8.0%}{aside:20.1f}{aside / floor:8.0%}",
                flush=True,
            )
    print(f"pictures per second and core; goal: {GOAL:.0%} of bare: {'reached' if reached else 'NOT reached'}")
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
