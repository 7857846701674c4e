"""The demo: a real ComfyUI draws workflows/two_subjects.json with the pack's sample files.

    make demo               # prints where the picture lies
    make demo SERVE=1       # and leaves ComfyUI running, with every workflow in its template browser
    make demo PORT=8500     # the same on a port of your choice

Where assets/world/ holds no weights, tiny random ones take their place. Everything it writes is in demo_output/.
"""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image

from tests.tiny.comfyui_files import save_tiny_checkpoint
from tests.tiny.kosmos_file import save_tiny_kosmos
from training.base import contact_sheet as sheet

from .client import Client
from .install import ROOT
from .server import PACK_NAME, free_port, prepare_folder, running_server
from .workflow import to_api

WORKFLOW = ROOT / "workflows/two_subjects.json"
WORLD = ROOT / "assets/world"
KOSMOS, CHECKPOINT = "models/kosmos_g/emoji-world-kosmos-g.safetensors", "models/checkpoints/emoji-world-sd.safetensors"
OUTPUT = ROOT / "demo_output"
SHOWN = 256  # pixels of a side in the overview
USUAL_PORT = 8188
TRAINED = "The weights are the small ones of assets/world/, trained on pictures of 64 x 64 pixels."
RANDOM = (
    "The weights are tiny and random, because assets/world/ holds no trained ones: the picture is coloured noise. "
    "It shows that everything works, not what Kosmos-G can do."
)


def prepare(folder: Path) -> str:
    """Make ComfyUI's folder and return an honest word about its weights; the server copies trained ones itself."""
    prepare_folder(folder)
    if all((WORLD / Path(name).name).is_file() for name in (KOSMOS, CHECKPOINT)):
        return TRAINED
    save_tiny_kosmos(folder / KOSMOS)
    save_tiny_checkpoint(folder / CHECKPOINT)
    for image in (WORLD / "samples").glob("*.png"):
        shutil.copyfile(image, folder / "input" / image.name)
    return RANDOM


def references(workflow: dict[str, Any]) -> list[str]:
    """File names of the images that a workflow loads, in the order of its nodes; of a saved sample, of its subject."""
    loaders = [node for node in workflow["nodes"] if node["type"] in ("LoadImage", "KosmosGLoadReference")]
    names = [node["widgets_values"][0] for node in sorted(loaders, key=lambda node: node["id"])]
    return [str(Path(name).with_suffix(".png")) for name in names]


def save_overview(folder: Path, names: list[str], drawn: Path, path: Path) -> None:
    """The reference pictures and the drawn one in a row, enlarged."""
    images = [*(folder / "input" / name for name in names), drawn]
    row = sheet.row([sheet.thumbnail(Image.open(image), SHOWN, Image.Resampling.BICUBIC) for image in images])
    sheet.page(row, margin=0).save(path)


def taken(port: int) -> bool:
    """Whether something listens on a port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def draw(address: str, workflow: dict[str, Any]) -> dict[str, str]:
    """Queue the workflow and return the reference of the saved picture, which carries the workflow with it."""
    client = Client(address)
    try:
        for sentence in client.post("/kosmos_g/samples")["left"]:
            print(sentence)
        run = client.run(to_api(workflow, client.get("/object_info")), workflow=workflow)
    finally:
        client.close()
    return next(image for node in run.outputs.values() for image in node.get("images", []))


def main() -> int:
    """Run the demo; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", action="store_true", help="leave ComfyUI running until Ctrl-C")
    parser.add_argument("--port", type=int, help=f"where ComfyUI listens; {USUAL_PORT} or a free one if not given")
    options = parser.parse_args()
    if options.port is not None and not 0 < options.port < 65536:
        parser.error(f"the port is {options.port}; expected 1 to 65535, or none to take {USUAL_PORT} or a free one")
    if options.port is not None and taken(options.port):
        parser.error(
            f"port {options.port} is taken by another program: choose another port, or none to find a free one"
        )
    port = options.port or (free_port() if taken(USUAL_PORT) else USUAL_PORT)
    folder = OUTPUT / "comfyui"
    remark = prepare(folder)
    workflow = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    print(remark, "\nStarting ComfyUI ...", flush=True)
    started = time.monotonic()
    with running_server(folder, port=port) as server:
        saved = draw(server.address, workflow)
        image = OUTPUT / "two_subjects.png"
        shutil.copyfile(folder / "output" / saved["subfolder"] / saved["filename"], image)
        save_overview(folder, references(workflow), image, OUTPUT / "overview.png")
        print(f"Drawn in {time.monotonic() - started:.0f} s, ComfyUI's start included: {image}")
        print(f"Beside its two reference pictures, enlarged: {OUTPUT / 'overview.png'}")
        address = f"http://{server.address}/?template={WORKFLOW.stem}&source={PACK_NAME}"
        print(f"The same graph in the browser: {address}")
        if options.serve:
            count = len(list(WORKFLOW.parent.glob("*.json")))
            print("Press Run there (top right, or Ctrl + Enter). Change the text or the seed and press it again.")
            print(f"All {count} workflows: press Templates in the bar on the left, choose {PACK_NAME}, then Run.")
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
