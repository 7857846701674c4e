"""What data construction costs beside its models, and whether its memory stays flat.

    python -m dev.benchmarks.construct [--pictures 240] [--rounds 3]
    python -m dev.benchmarks.construct --memory 20000

Speed: one process takes 1024 x 768 photographs through everything but the models, with logits of CLIPSeg's size ready
made. `decode_cut_encode_write` is read, decode, threshold, dilate, cut out, encode, write; `with_views_and_transport`
adds the smaller pictures that models see and the way between stages: as rows of Ray Data's blocks, which are copied
into memory and read from there as from Ray's object store. Beside it, in turns, the bare minimum: Pillow
decodes each picture once and encodes exactly the JPEG files that end up in the shard. Processor time, which other work
on the machine disturbs least. Prints one JSON object.

Memory: the real command's stages on Ray, with small pictures and no models; private memory of the driver and of all its
processes, by the number of pictures done.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import statistics
import sys
import tarfile
import tempfile
import threading
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import psutil
import torch
from PIL import Image
from ray.data.block import BlockAccessor
from rich.console import Console

from tests.tiny.drawings import drawing
from training.construct import chunk_stages
from training.construct.chunks import Chunk, SourceImage
from training.construct.construct_config import (
    CaptionConfig,
    ConstructConfig,
    EntityConfig,
    FilterConfig,
    SegmentConfig,
)
from training.construct.input_shards import find_shards
from training.construct.masks import Region
from training.construct.output_shards import ConstructionOutput

DISTINCT = 24
CAPTION = "a picture of a kite and a ball on the ground"


def photograph(number: int) -> np.ndarray:
    """(768, 1024, 3) with detail at every scale, as in a photograph; about 290 kB as a JPEG of quality 95."""
    rng = np.random.default_rng(number)
    pixels = np.zeros((768, 1024, 3), dtype=np.float32)
    for size, weight in ((4, 60), (16, 40), (64, 25), (192, 12), (384, 8)):
        noise = torch.from_numpy(rng.standard_normal((1, 3, size * 3 // 4, size)).astype(np.float32))
        grown = torch.nn.functional.interpolate(noise, size=(768, 1024), mode="bicubic")
        pixels += weight * grown[0].permute(1, 2, 0).numpy()
    return np.clip(pixels + 128, 0, 255).astype(np.uint8)


def blob(number: int) -> Region:
    """Logits (352, 352) of one entity with a ragged outline and some specks, 10 to 30 % of the picture."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[0:352, 0:352].astype(np.float32) / 352
    cx, cy = rng.uniform(0.3, 0.7, 2)
    radius = rng.uniform(0.17, 0.3)
    coarse = torch.from_numpy(rng.standard_normal((1, 1, 22, 22)).astype(np.float32))
    ragged = torch.nn.functional.interpolate(coarse, size=(352, 352), mode="bicubic")[0, 0].numpy()
    distance = radius - np.hypot(x - cx, y - cy)
    return Region((30 * distance + 0.8 * ragged - 0.85).astype(np.float32), 0.7)


def as_jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95)
    return file.getvalue()


def write_tar(path: Path, images: list[bytes], count: int, first: int = 0) -> None:
    with tarfile.open(path, "w") as tar:
        for number in range(first, first + count):
            for ending, content in (("jpg", images[number % len(images)]), ("txt", CAPTION.encode())):
                member = tarfile.TarInfo(f"{number:09}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def speed(count: int, rounds: int) -> dict:
    """Pictures per second of one core: ours, the bare minimum, and their ratio."""
    images = [as_jpeg(Image.fromarray(photograph(number))) for number in range(DISTINCT)]
    regions = [blob(number) for number in range(2 * DISTINCT)]
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in"), Path(folder, "out")
        source.mkdir()
        write_tar(source / "00000.tar", images, count)
        config = ConstructConfig(input=str(source), output=str(target), caption=CaptionConfig(kind="given"))

        def segmenter(pairs):
            return [regions[int(image.key) % DISTINCT + DISTINCT * (words == "ball")] for image, words in pairs]

        def extractor(captions):
            return [["kite", "ball"] for _ in captions]

        def captioner(chunk):
            return [image.given_caption for image in chunk]

        store = np.zeros(256 << 20, dtype=np.uint8)

        def passed_on(chunk: Chunk, own: bool = False) -> Chunk:
            """The chunk as the next stage gets it."""
            row = chunk.to_row()
            block = BlockAccessor.batch_to_block({name: np.asarray(value)[None] for name, value in row.items()})
            buffers, views, end = [], [], 0
            said = pickle.dumps(block, protocol=5, buffer_callback=buffers.append)
            for buffer in buffers:
                content = np.frombuffer(buffer.raw(), dtype=np.uint8)
                views.append(store[end : end + len(content)])
                views[-1][:] = content
                end += -(-len(content) // 64) * 64
            block = pickle.loads(said, buffers=[view.data.toreadonly() for view in views])
            return Chunk.from_row(next(iter(BlockAccessor.for_block(block).iter_rows(True))), own)

        (shard,) = find_shards(config)
        output, lock = ConstructionOutput.open(config)

        def ours() -> tuple[float, float]:
            """Seconds of the work on pictures, and of what serves the models and the transport between stages."""
            spent = {"work": 0.0, "serving": 0.0}
            mark = time.process_time()

            def book(name: str) -> None:
                nonlocal mark
                now = time.process_time()
                spent[name] += now - mark
                mark = now

            parts = []
            for chunk in chunk_stages.read_chunks(shard, 0, config):
                book("work")
                chunk = passed_on(chunk)
                chunk_stages.prepare(chunk, config)
                chunk = passed_on(chunk, own=True)
                chunk_stages.caption(chunk, captioner, config.filters)
                chunk = passed_on(chunk)
                chunk_stages.name_entities(chunk, extractor, config.filters)
                chunk = passed_on(chunk, own=True)
                chunk_stages.segment(chunk, segmenter)
                chunk = passed_on(chunk)
                book("serving")
                parts.append(output.write_part(chunk, chunk_stages.finish(chunk, config)))
            output.join(shard, parts)
            book("work")
            return spent["work"], spent["serving"]

        ours()
        with tarfile.open(target / "00000.tar") as tar:
            written = [
                np.asarray(Image.open(io.BytesIO(tar.extractfile(member).read())))
                for member in tar
                if member.name.endswith(".jpg") and int(member.name.partition(".")[0]) < DISTINCT
            ]

        def bare() -> float:
            """The same number of pictures: every source decoded, every JPEG of the shard encoded."""
            started = time.process_time()
            for number in range(count):
                Image.open(io.BytesIO(images[number % DISTINCT])).load()
            for number in range(len(written) * count // DISTINCT):
                buffer = io.BytesIO()
                Image.fromarray(written[number % len(written)]).save(buffer, "JPEG", quality=config.crops.jpeg_quality)
            return time.process_time() - started

        rows = [(*ours(), bare()) for _ in range(rounds)]
        lock.release()
        output.close()
    return {
        "pictures": count,
        "entities_per_picture": len(written) / DISTINCT - 1,
        "pictures_per_core_second": {
            "decode_cut_encode_write": round(count / statistics.median(work for work, _, _ in rows), 1),
            "with_views_and_transport": round(count / statistics.median(sum(row[:2]) for row in rows), 1),
            "bare_decode_and_encode": round(count / statistics.median(bare for _, _, bare in rows), 1),
        },
        "ratio_to_bare": {
            "decode_cut_encode_write": round(statistics.median(bare / work for work, _, bare in rows), 3),
            "with_views_and_transport": round(statistics.median(row[2] / sum(row[:2]) for row in rows), 3),
        },
    }


class NoCaptions:
    def __init__(self, config: CaptionConfig):
        pass

    def __call__(self, images: list[SourceImage]) -> list[str]:
        return [image.given_caption for image in images]


class NoModel:
    def __init__(self, config: EntityConfig):
        pass

    def __call__(self, captions: list[str]) -> list[list[str]]:
        return [["kite", "ball"] for _ in captions]


class Blobs:
    def __init__(self, config: SegmentConfig):
        self.regions = [blob(number) for number in range(8)]

    def __call__(self, pairs: list[tuple[SourceImage, str]]) -> list[Region]:
        return [self.regions[number % 8] for number in range(len(pairs))]


def memory(count: int) -> dict:
    """Private memory of all processes while `count` pictures pass, in four equal stretches of the run."""
    from training.construct.driver import construct

    here = "dev.benchmarks.construct"
    images = [as_jpeg(drawing(number)) for number in range(100)]
    seen: list[tuple[float, float, float]] = []
    done = threading.Event()
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in"), Path(folder, "out")
        source.mkdir()
        for number, first in enumerate(range(0, count, 500)):
            write_tar(source / f"{number:05}.tar", images, min(500, count - first), first)
        config = ConstructConfig(
            input=str(source),
            output=str(target),
            model_side=128,
            cpus=2,
            object_store_gb=0.2,
            filters=FilterConfig(min_side=64, duplicates="off"),
            caption=CaptionConfig(kind=f"{here}:NoCaptions", cpus=0.1),
            entities=EntityConfig(kind=f"{here}:NoModel", cpus=0.1),
            segment=SegmentConfig(kind=f"{here}:Blobs", cpus=0.1),
        )

        def watch() -> None:
            driver = psutil.Process()
            while not done.wait(2):
                shards = len(list(target.glob("*.stats.json")))
                if shards:
                    seen.append((shards * 500, _private(driver), _total(driver)))

        watcher = threading.Thread(target=watch)
        watcher.start()
        started = time.perf_counter()
        try:
            stats = construct(config, Console(file=sys.stderr))
        finally:
            done.set()
            watcher.join()
        seconds = time.perf_counter() - started
    quarters = [[s for s in seen if q * count / 4 <= s[0] < (q + 1) * count / 4 + 1] for q in range(4)]
    return {
        "pictures": stats["pictures"],
        "samples": stats["samples"],
        "seconds": round(seconds, 1),
        "driver_mb_by_quarter": [round(statistics.median(s[1] for s in q)) if q else None for q in quarters],
        "all_processes_mb_by_quarter": [round(statistics.median(s[2] for s in q)) if q else None for q in quarters],
    }


def _private(process: psutil.Process) -> float:
    return process.memory_full_info().uss / 2**20


def _total(driver: psutil.Process) -> float:
    """Ray's processes of this machine that the driver started, its own memory included, without shared pages."""
    total = _private(driver)
    for process in driver.children(recursive=True):
        try:
            total += _private(process)
        except psutil.Error:
            continue
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--pictures",
        dest="images",
        metavar="N",
        type=int,
        default=240,
        help="pictures per round of the speed measurement",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=int, default=0, help="pictures of the memory measurement; 0: only speed")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = memory(arguments.memory) if arguments.memory else speed(arguments.images, arguments.rounds)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
