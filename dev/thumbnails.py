"""Draw workflows/*.jpg: each workflow's graph as ComfyUI's front end shows it, under its pictures and what it drew.

    python -m dev.thumbnails
    python -m dev.thumbnails two_subjects --output DIR --kosmos KOSMOS-G-FILE --checkpoint SD-FILE

Without names all are drawn. The pictures come from the trained weights of assets/world/, or from the files that are
named. Without them, and for workflows that want models which the world does not have, only graphs are shown: tiny
random models run then.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from tests.tiny.comfyui_files import save_tiny_checkpoint, save_tiny_controlnet, save_tiny_lora
from tests.tiny.kosmos_file import save_tiny_kosmos
from training.base import contact_sheet as sheet

from .browser import browse, missing
from .client import Client
from .demo import world_weights
from .install import ROOT
from .server import prepare_folder, running_server
from .stand_ins import CHECKPOINT_WITH_CLIP, standing_in
from .workflow import to_api
from .world_workflows import SAVED, has_result, in_the_world, save_images

WIDTH, TILE, GAP = 1360, 384, 24  # three pictures and an arrow in a row; a multiple of the world's 32 and 64 pixels
QUALITY = 82
GREY = "#d0d0d0"


def compose(graph: Image.Image, references: list[Path], results: list[Path]) -> Image.Image:
    """References, an arrow and results in a row, enlarged without blur, above the graph."""
    graph = graph.resize((WIDTH, round(graph.height * WIDTH / graph.width)), Image.Resampling.LANCZOS)
    if not results:
        return graph
    parts = [*map(_enlarged, references), sheet.Block(TILE // 4, TILE // 4, _draw_arrow), *map(_enlarged, results)]
    above = sheet.padded(sheet.row(parts, GAP, centred=True), 0, GAP)
    below = sheet.Block(*graph.size, lambda canvas, x, y: canvas.paste(graph, (x, y)))
    return sheet.page(sheet.column([above, below], centred=True), margin=0, paper="#1b1b1f")


def _enlarged(path: Path) -> sheet.Block:
    image = Image.open(path).convert("RGB")
    whole_steps = TILE % image.width == 0 and TILE % image.height == 0
    return sheet.thumbnail(image, TILE, Image.Resampling.NEAREST if whole_steps else Image.Resampling.LANCZOS)


def _draw_arrow(canvas: Image.Image, left: int, top: int) -> None:
    side, half = TILE // 4, TILE // 8
    pen, middle = ImageDraw.Draw(canvas), top + half
    pen.polygon([(left + side, middle), (left + half, top), (left + half, top + side)], GREY)
    pen.rectangle((left, middle - side // 8, left + half, middle + side // 8), GREY)


def images_of(workflow: dict[str, Any], folder: Path) -> tuple[list[Path], list[Path]]:
    """Paths of the reference pictures that a workflow reads and of the pictures that it saved."""
    references, results = [], []
    for node in workflow["nodes"]:
        if node["type"] == "LoadImage":
            references.append(folder / "input" / node["widgets_values"][0])
        elif node["type"] == "KosmosGLoadReference":
            references.append(folder / "input" / SAVED)
        elif node["type"] == "SaveImage":
            results += sorted((folder / "output").glob(f"{node['widgets_values'][0]}_*.png"))[-1:]
    return references, results


def main() -> int:
    """Draw; returns the exit status."""
    known = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"workflows to draw: {', '.join(known)}")
    parser.add_argument("--output", type=Path, default=ROOT / "workflows", help="folder of the pictures")
    parser.add_argument("--kosmos", type=Path, help="a trained Kosmos-G file of the world")
    parser.add_argument("--checkpoint", type=Path, help="the world's Stable Diffusion as one file")
    options = parser.parse_args()
    environment = Path(sys.executable).parents[1]
    if lack := missing(environment):
        print(lack, file=sys.stderr)
        return 1
    if (options.kosmos is None) != (options.checkpoint is None):
        parser.error("--kosmos and --checkpoint belong together: give both, or neither for those of assets/world")
    shipped = world_weights()
    found = (shipped.kosmos, shipped.checkpoint) if shipped else None
    trained = (options.kosmos.resolve(), options.checkpoint.resolve()) if options.kosmos else found
    if unknown := sorted(set(options.names) - set(known)):
        parser.error(f"there is no workflow {', '.join(unknown)}; choose from {', '.join(known)}")
    workflows = {title: json.loads((ROOT / f"workflows/{title}.json").read_text()) for title in options.names or known}
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = prepare_folder(Path(name))
        with_result = set()
        kosmos = folder / "models/kosmos_g/kosmos.safetensors"
        if trained:
            kosmos.symlink_to(trained[0])
            names = "emoji-world-sd.safetensors", "emoji-world-kosmos-g.safetensors"
            (folder / "models/checkpoints" / names[0]).symlink_to(trained[1])
            (folder / "models/kosmos_g" / names[1]).symlink_to(trained[0])
            save_images(folder / "input")
            with_result = {title for title, workflow in workflows.items() if has_result(workflow)}
            workflows |= {title: in_the_world(title, workflows[title], *names) for title in with_result}
        else:
            save_tiny_kosmos(kosmos)
        if with_result != set(workflows):
            save_tiny_checkpoint(folder / "models/checkpoints" / CHECKPOINT_WITH_CLIP, text_encoder=True)
        save_tiny_controlnet(folder / "models/controlnet/tiny.safetensors")
        save_tiny_lora(folder / "models/loras/tiny.safetensors")
        for image in (ROOT / "assets/pictures").glob("*.jpg"):
            (folder / "input" / image.name).symlink_to(image)
        server = stack.enter_context(running_server(folder))
        client = Client(server.address)
        object_info = client.get("/object_info")
        client.close()
        for workflow in workflows.values():
            image = folder / "input" / SAVED if trained else None
            stack.enter_context(standing_in(to_api(workflow, object_info), folder, image))
        shots = folder / "shots"
        shots.mkdir()
        seen = browse(environment, server.address, workflows, Path(name), shots, with_result)
        options.output.mkdir(parents=True, exist_ok=True)
        for title, workflow in workflows.items():
            graph = Image.open(shots / f"{title}.png").convert("RGB")
            references, results = images_of(workflow, folder) if title in with_result else ([], [])
            compose(graph, references, results).save(options.output / f"{title}.jpg", quality=QUALITY)
    failed = {title: what for title, what in seen.items() if what["events"] != [["execution_success", ""]]}
    for title, what in failed.items():
        print(f"{title} did not run, so its picture shows no result: {what['refused'] or what['events']}")
    print(f"{len(workflows)} pictures in {options.output}, {len(with_result - set(failed))} of them with a result")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
