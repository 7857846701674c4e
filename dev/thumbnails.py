"""Draw workflows/*.jpg: each workflow's graph as ComfyUI's front end shows it, under its pictures and what it drew.

    python -m dev.thumbnails
    python -m dev.thumbnails two_subjects --output DIR

Without names all are drawn. Everything comes from the sample files of the pack, as for whoever opens a workflow.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from training.base import contact_sheet as sheet

from .browser import browse, missing
from .client import Client
from .demo import references
from .install import ROOT
from .server import prepare_folder, running_server

WIDTH, TILE, GAP = 1360, 256, 24  # up to four pictures, an arrow and a result in a row; a multiple of 32 and 64 pixels
QUALITIES = (82, 70, 58)
LARGEST = 200_000  # bytes of a picture
GREY = "#d0d0d0"


def compose(graph: Image.Image, images: list[Path], results: list[Path]) -> Image.Image:
    """References, an arrow and results in a row, enlarged without blur, above the graph."""
    graph = graph.resize((WIDTH, round(graph.height * WIDTH / graph.width)), Image.Resampling.LANCZOS)
    parts = [*map(_enlarged, images), sheet.Block(TILE // 4, TILE // 4, _draw_arrow), *map(_enlarged, results)]
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
    save = next(node for node in workflow["nodes"] if node["type"] == "SaveImage")
    results = sorted((folder / "output").glob(f"{save['widgets_values'][0]}_*.png"))
    return [folder / "input" / name for name in references(workflow)], results


def save_small(image: Image.Image, path: Path) -> None:
    """Write a JPEG of at most LARGEST bytes, as good as that allows."""
    for quality in QUALITIES:
        image.save(path, quality=quality, optimize=True, progressive=True)
        if path.stat().st_size <= LARGEST:
            return


def main() -> int:
    """Draw; returns the exit status."""
    known = sorted(path.stem for path in (ROOT / "workflows").glob("*.json"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"workflows to draw: {', '.join(known)}")
    parser.add_argument("--output", type=Path, default=ROOT / "workflows", help="folder of the pictures")
    options = parser.parse_args()
    environment = Path(sys.executable).parents[1]
    if lack := missing(environment):
        print(lack, file=sys.stderr)
        return 1
    if unknown := sorted(set(options.names) - set(known)):
        parser.error(f"there is no workflow {', '.join(unknown)}; choose from {', '.join(known)}")
    workflows = {title: json.loads((ROOT / f"workflows/{title}.json").read_text()) for title in options.names or known}
    with tempfile.TemporaryDirectory() as name:
        folder = prepare_folder(Path(name))
        shots = folder / "shots"
        shots.mkdir()
        with running_server(folder) as server:
            client = Client(server.address)
            copied = client.post("/kosmos_g/samples")
            client.close()
            if copied["remark"]:
                print(copied["remark"], file=sys.stderr)
                return 1
            seen = browse(environment, server.address, workflows, folder, shots, workflows)
        failed = {title: what for title, what in seen.items() if what["events"] != [["execution_success", ""]]}
        for title, what in failed.items():
            print(f"{title} did not run and keeps its picture: {what['refused'] or what['events']}")
        options.output.mkdir(parents=True, exist_ok=True)
        for title in workflows.keys() - failed.keys():
            graph = Image.open(shots / f"{title}.png").convert("RGB")
            save_small(compose(graph, *images_of(workflows[title], folder)), options.output / f"{title}.jpg")
    print(f"{len(workflows) - len(failed)} pictures in {options.output}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
