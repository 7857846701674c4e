"""What the prompt node costs over the bare `model.encode`: tokens, ComfyUI's casting layers, memory management, report.

    python -m dev.benchmarks.node [--config tiny|medium|official] [--rounds 25]

Both encode the same things in float32 on one thread: a prompt with two pictures, its negative and its text alone (the
node's three outputs), each by a pass of its own, with nothing remembered. They take turns, the other one first in every
other round; seconds are medians of processor time and `ratio` is that of the medians, since what else the machine does
slows single calls and not pairs of them.
`packed_seconds` is one call of model.encode for all three, which the node does not make: a row's last bits would depend
on its neighbours, and a new negative would change the picture's conditioning. Fails where the ratio is above 1.03.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch

from kosmos_core import KosmosG, load_model, save_model
from tests.tiny.kosmos_file import tiny_tokenizer

from ..install import COMFYUI_TREE, ROOT, copy_comfyui
from .encode import CONFIGS

ALLOWED = 1.03
PACK = "kosmos_g_pack"
TEXT, TEXT_ALONE, NEGATIVE = (
    "a dog <i> wearing a hat <i> at the beach",
    "a dog wearing a hat at the beach",
    "an old car made of glass",
)


def import_pack(cpu: bool = True) -> tuple[ModuleType, ModuleType]:
    """The node pack's `adapter` and `text_encode` beside ComfyUI's own modules, without a server."""
    copy_comfyui(Path(sys.executable))
    sys.path.insert(0, str(COMFYUI_TREE))  # before this checkout: ComfyUI has a module `nodes` of its own
    from comfy.cli_args import args

    args.cpu = cpu
    spec = importlib.util.spec_from_file_location(PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    sys.modules[PACK] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[PACK])
    return importlib.import_module(f"{PACK}.nodes.adapter"), importlib.import_module(f"{PACK}.nodes.text_encode")


def write(config: str, path: Path) -> None:
    """A random model of a size with a small vocabulary."""
    made = CONFIGS[config]()
    tokenizer = tiny_tokenizer(made.resampler.latents)
    made = dataclasses.replace(made, decoder=dataclasses.replace(made.decoder, vocabulary=tokenizer.vocabulary))
    save_model(KosmosG(made, tokenizer=tokenizer).initialize(0), path)


def seconds(run: Callable[[], object]) -> float:
    """Processor seconds of one call."""
    start = time.process_time()
    run()
    return time.process_time() - start


@torch.inference_mode()  # as ComfyUI runs nodes
def measure(path: Path, rounds: int) -> dict[str, float]:
    """Everything that the JSON object reports."""
    adapter, text_encode = import_pack()
    clip = adapter.load_clip(path, torch.float32)
    encoder = clip.cond_stage_model
    model = load_model(path)
    batches = [torch.rand((1, 256 + 64 * n, 320, 3), generator=torch.Generator().manual_seed(n)) for n in range(2)]

    def node() -> list:
        images = {f"image_{n}": batch for n, batch in enumerate(batches, 1)}
        return text_encode.KosmosGTextEncode.execute(clip, TEXT, NEGATIVE, **images).result[:3]

    def bare() -> list[torch.Tensor]:
        images = [batch[0] for batch in batches]
        return [model.encode(TEXT, images), model.encode(NEGATIVE), model.encode(TEXT_ALONE)]

    def packed() -> torch.Tensor:
        return model.encode([TEXT, NEGATIVE, TEXT_ALONE], [[batch[0] for batch in batches], [], []])

    def forgetting(run: Callable[[], object]) -> float:
        for remembered in (encoder._cached_texts, encoder.model._cached_images, model._cached_images):
            remembered.clear()
        return seconds(run)

    for (seen, _), expected in zip((output[0] for output in node()), bare(), strict=True):
        if not torch.equal(seen, expected):
            raise AssertionError("the node and model.encode do not give the same, so their times mean nothing")
    forgetting(packed)
    runs = {"bare_seconds": bare, "node_seconds": node, "packed_seconds": packed}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        for name in runs if number % 2 else reversed(runs):
            times[name].append(forgetting(runs[name]))
    medians = {name: statistics.median(seen) for name, seen in times.items()}
    return medians | {"ratio": medians["node_seconds"] / medians["bare_seconds"]}


def main() -> int:
    """Command line: write a random model, measure, print one JSON object; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", choices=CONFIGS, default="medium")
    parser.add_argument("--rounds", type=int, default=25)
    options = parser.parse_args()
    sys.argv[1:] = []  # ComfyUI would read them
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.safetensors"
        write(options.config, path)
        measured = measure(path, options.rounds)
    print(json.dumps({"config": options.config, "rounds": options.rounds} | measured, indent=1))
    return 0 if measured["ratio"] <= ALLOWED else 1


if __name__ == "__main__":
    sys.exit(main())
