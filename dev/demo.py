"""The demo: a real ComfyUI draws workflows/two_subjects.json.

    make demo            # prints where the picture lies
    make demo SERVE=1    # and leaves ComfyUI running with the same graph in the browser

Uses the weights in assets/world/ when they are there, else tiny random ones made on the fly. Everything it writes is in
demo_output/.
"""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from kosmos_core.weights import identify
from tests.tiny.comfyui_files import save_tiny_checkpoint
from tests.tiny.kosmos_file import save_tiny_kosmos
from training.base import contact_sheet as sheet

from .client import Client
from .install import ROOT
from .server import free_port, prepare_folder, running_server
from .workflow import to_api

WORKFLOW = ROOT / "workflows/two_subjects.json"
WORLD = ROOT / "assets/world"
IMAGES = ROOT / "assets/pictures"
OUTPUT = ROOT / "demo_output"
DEMO_PACK = "kosmos-g-demo"
SIZE = 64  # pixels of a side that the small models draw
SHOWN = 256  # pixels of a side in the overview
USUAL_PORT = 8188


@dataclass(frozen=True)
class DemoModels:
    """The two model files of the demo and an honest word about them."""

    kosmos: Path
    checkpoint: Path
    remark: str
    images: tuple[Path, Path]
    prompt: str | None = None  # None keeps the workflow's own
    guidance: float = 6.0


def world_weights() -> DemoModels | None:
    """The trained weights in assets/world, told apart by content; None where they are not there."""
    files = sorted(WORLD.glob("*.safetensors"))
    kinds = {path: identify(path) for path in files}
    kosmos = [path for path, kind in kinds.items() if kind is None]
    checkpoints = [path for path, kind in kinds.items() if kind and "Stable Diffusion checkpoint" in kind]
    if not kosmos or not checkpoints:
        return None
    remark = "The weights are the small ones of assets/world/, trained on pictures of 64 x 64 pixels."
    return DemoModels(
        kosmos[-1],
        checkpoints[-1],
        remark,
        (WORLD / "cat.png", WORLD / "pizza.png"),
        prompt="<i> and <i> on a blue background",
        guidance=4.0,
    )


def random_weights(folder: Path) -> DemoModels:
    """Tiny random weights: the whole path works, the picture is noise."""
    remark = (
        "The weights are tiny and random, because assets/world/ holds no trained ones: the picture is coloured noise. "
        "It shows that everything works, not what Kosmos-G can do."
    )
    kosmos = save_tiny_kosmos(folder / "tiny-random-kosmos-g.safetensors")
    checkpoint = save_tiny_checkpoint(folder / "tiny-random-sd15.safetensors")
    return DemoModels(kosmos, checkpoint, remark, (IMAGES / "cat.jpg", IMAGES / "coffee.jpg"))


def adapted_workflow(weights: DemoModels) -> dict[str, Any]:
    """The shipped workflow with the demo's file names, prompt and picture size."""
    workflow = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    images = iter(weights.images)
    for node in workflow["nodes"]:
        values = node.get("widgets_values")
        if node["type"] == "CheckpointLoaderSimple":
            values[0] = weights.checkpoint.name
        elif node["type"] == "KosmosGLoader":
            values[0] = weights.kosmos.name
        elif node["type"] == "EmptyLatentImage":
            values[:2] = SIZE, SIZE
        elif node["type"] == "LoadImage":
            values[0] = next(images).name
        elif node["type"] == "KosmosGTextEncode":
            values[0] = weights.prompt or values[0]
        elif node["type"] == "KSampler":
            values[3] = weights.guidance
    return workflow


def prepare(folder: Path) -> tuple[DemoModels, dict[str, Any]]:
    """Put models, pictures and the adapted workflow where ComfyUI and its template browser find them."""
    prepare_folder(folder)
    weights = world_weights() or random_weights(folder / "made")
    for path, kind in ((weights.kosmos, "kosmos_g"), (weights.checkpoint, "checkpoints")):
        target = folder / "models" / kind / path.name
        target.unlink(missing_ok=True)
        shutil.copyfile(path, target)
    for image in weights.images:
        shutil.copyfile(image, folder / "input" / image.name)
    workflow = adapted_workflow(weights)
    pack = folder / "custom_nodes" / DEMO_PACK
    (pack / "workflows").mkdir(parents=True, exist_ok=True)
    (pack / "__init__.py").write_text("NODE_CLASS_MAPPINGS = {}\n")
    (pack / "workflows" / WORKFLOW.name).write_text(json.dumps(workflow, indent=1), encoding="utf-8")
    return weights, workflow


def save_overview(weights: DemoModels, drawn: Path, path: Path) -> None:
    """The two reference pictures and the drawn one in a row, enlarged."""
    images = (*weights.images, drawn)
    row = sheet.row([sheet.thumbnail(Image.open(image), SHOWN, Image.Resampling.BICUBIC) for image in images])
    sheet.page(row, margin=0).save(path)


def usual_or_free_port() -> int:
    """ComfyUI's usual port, or any other where that is taken."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", USUAL_PORT)):
            return USUAL_PORT
    return free_port()


def draw(address: str, workflow: dict[str, Any]) -> dict[str, str]:
    """Queue the workflow and return the reference of the saved picture, which carries the workflow with it."""
    client = Client(address)
    try:
        run = client.run(to_api(workflow, client.get("/object_info")), workflow=workflow)
    finally:
        client.close()
    return next(image for node in run.outputs.values() for image in node.get("images", []))


def main() -> int:
    """Run the demo; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", action="store_true", help="leave ComfyUI running until Ctrl-C")
    serve = parser.parse_args().serve
    folder = OUTPUT / "comfyui"
    weights, workflow = prepare(folder)
    print(weights.remark, "\nStarting ComfyUI ...", flush=True)
    started = time.monotonic()
    with running_server(folder, port=usual_or_free_port()) as server:
        saved = draw(server.address, workflow)
        image = OUTPUT / "two_subjects.png"
        shutil.copyfile(folder / "output" / saved["subfolder"] / saved["filename"], image)
        save_overview(weights, image, OUTPUT / "overview.png")
        address = f"http://{server.address}/?template={WORKFLOW.stem}&source={DEMO_PACK}"
        print(f"Drawn in {time.monotonic() - started:.0f} s, ComfyUI's start included: {image}")
        print(f"Beside its two reference pictures, enlarged: {OUTPUT / 'overview.png'}")
        print(f"The same graph in the browser: {address}")
        if serve:
            print("ComfyUI keeps running. Ctrl-C stops it.", flush=True)
            try:
                server.process.wait()
            except KeyboardInterrupt:
                print()
        else:
            print("(ComfyUI stops now; `make demo SERVE=1` keeps it running.)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
