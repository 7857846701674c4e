"""What the weights in assets/world generate: a sheet for README, and the reference pictures that `make demo` uses.

    python -m emoji_world.showcase

Nothing is chosen by its result: the identities are drawn with a fixed seed, the first noise is taken.
"""

import argparse
from pathlib import Path

from PIL import Image

from kosmos_core import load_model
from kosmos_core.diffusers.stable_diffusion import StableDiffusion
from training.base import contact_sheet as sheet

from .atlas import ASSETS
from .generator import EmojiGenerator
from .judge import draw_prompts
from .scenes import EmojiWorld, Identity
from .sheets import enlarged

COLUMNS, SCALE, GAP = 8, 2, 8
BACKGROUNDS = ("blue", "yellow")


def singles(world: EmojiWorld, generator: EmojiGenerator) -> Image.Image:
    """References above what they give; the left half was seen in stage 3, the right half was held out from it."""
    half = COLUMNS // 2
    seen = world.groups["seen"]
    held = [x for x in world.identities if world.held_out_of_instruct(x)]
    prompts = draw_prompts(world, seen, half, 1, 51) + draw_prompts(world, held, half, 1, 52)
    references = [list(prompt.references) for prompt in prompts]
    rows = [[one[0] for one in references]]
    for colour in BACKGROUNDS:
        rows.append(list(generator.generate([f"<i> on a {colour} background"] * COLUMNS, references)))
    first, *generated = [sheet.row([enlarged(image, SCALE * world.size) for image in row], GAP) for row in rows]
    return sheet.page(sheet.column([first, sheet.column(generated, GAP)], 3 * GAP), GAP, "white")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", default="full")
    parser.add_argument("--kosmos_g", type=Path, default=ASSETS / "emoji-world-kosmos-g.safetensors")
    parser.add_argument("--stable_diffusion", type=Path, default=ASSETS / "emoji-world-sd.safetensors")
    parser.add_argument("--output", type=Path, default=ASSETS)
    arguments = parser.parse_args()
    world = EmojiWorld.named(arguments.world)
    for noun, look, hue in (("cat", "fluent-3d", 120), ("pizza", "fluent-3d", 0)):  # both were seen in stage 3
        image = Image.fromarray(world.reference(Identity(noun, look, hue)))
        image.resize((world.size, world.size), Image.Resampling.NEAREST).save(arguments.output / f"{noun}.png")
    diffusion = StableDiffusion(arguments.stable_diffusion, option="--stable_diffusion")
    generator = EmojiGenerator(diffusion, load_model(arguments.kosmos_g).eval(), world.size, guidance=4.0)
    singles(world, generator).save(arguments.output / "results.png")


if __name__ == "__main__":
    main()
