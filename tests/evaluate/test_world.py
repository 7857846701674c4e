"""The small emoji world, if its weights are at hand, through the very commands that measure the full model."""

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from kosmos_core.safetensors_file import read_header
from kosmos_core.weights import FORMAT
from training.evaluate.__main__ import main

WORLD = Path(__file__).parents[2] / "assets" / "world"
BACKGROUNDS = {"red": (205, 70, 65), "green": (120, 185, 110), "blue": (95, 145, 215), "white": (245, 245, 242)}


@pytest.fixture
def files() -> tuple[Path, Path]:
    """(Kosmos-G, Stable Diffusion) of the world, told by their content."""
    kosmos_g, sd = None, None
    for path in sorted(WORLD.glob("*.safetensors")):
        header = read_header(path)
        if any(name.startswith("model.diffusion_model.") for name in header.shapes):
            sd = path
        elif header.metadata.get("format") == FORMAT:
            kosmos_g = path
    if kosmos_g is None or sd is None:
        pytest.skip("the small world's weights are not in assets/world")
    return kosmos_g, sd


def save_subjects(folder: Path, nouns: int) -> Path:
    """Sprites of the atlas as subjects in DreamBooth's layout: one look of a noun on four plain backgrounds."""
    listed = json.loads((WORLD / "atlas.json").read_text())
    side = listed["sprite"]
    atlas = Image.open(WORLD / "atlas.png").convert("RGBA")
    subjects = []
    for sprite in listed["sprites"][:nouns]:
        left, top = sprite["column"] * side, sprite["row"] * side
        cut = atlas.crop((left, top, left + side, top + side)).resize((48, 48), Image.Resampling.LANCZOS)
        place = folder / f"{sprite['noun'].replace(' ', '_')}"
        place.mkdir(parents=True)
        for number, colour in enumerate(BACKGROUNDS.values()):
            image = Image.new("RGB", (64, 64), colour)
            image.paste(cut, (4 + 4 * (number % 2), 8), cut)
            image.save(place / f"{number:02d}.png")
        subjects.append({"name": place.name, "noun": sprite["noun"], "kind": "object", "picked": "03.png"})
    prompts = {"object": [f"a {{}} on a {colour} background" for colour in ("red", "blue")]}
    listed = folder / "subjects.yaml"
    listed.write_text(yaml.safe_dump({"name": "small world", "prompts": prompts, "subjects": subjects}))
    return listed


def test_the_small_world_is_measured_by_the_same_commands(files, dino, clip, tmp_path):
    kosmos_g, sd = files
    subjects = save_subjects(tmp_path / "data", 2)
    common = ["--weights", str(kosmos_g), "--sd", str(sd), "--size", "64", "--steps", "6", "--guidance", "4"]
    bench = ["--data", str(tmp_path / "data"), "--subjects", str(subjects), "--dino", str(dino), "--clip", str(clip)]
    out = tmp_path / "bench"
    assert main(["dreambench", "--protocol", "kosmosg", *common, *bench, "--output", str(out)]) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["rows"]["this model"]["dino"]["subjects"] == 2
    images = [Image.open(path).convert("RGB") for path in sorted(out.glob("pictures/*/*.png"))]
    assert len(images) == 2 * 2 * 4
    assert len({image.tobytes() for image in images}) == len(images)
    prompts = tmp_path / "data" / "prompts.yaml"
    name = yaml.safe_load(subjects.read_text())["subjects"][0]["name"]
    prompts.write_text(yaml.safe_dump([{"prompt": "<i> on a red background", "images": [f"{name}/03.png"]}]))
    page = tmp_path / "page"
    assert main(["compare", *common, "--prompts", str(prompts), "--seeds", "0", "--output", str(page)]) == 0
    assert (page / "index.html").is_file()
