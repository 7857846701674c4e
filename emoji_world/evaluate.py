"""What the world's Stable Diffusion and Kosmos-G have learned: JSON, a table and grids of pictures.

    python -m emoji_world.evaluate --world half --stable_diffusion RUNS/sd/diffusers \\
        --align RUNS/align.safetensors --instruct RUNS/instruct.safetensors --output RUNS/evaluation

Every row is `--count` prompts with fixed noise; intervals are 95 % bootstrap intervals over what they ask for.
Identities and nouns that were held out from stage 3 only, and those held out from everything, are reported apart;
nothing is tuned on them.
"""

import argparse
import json
from pathlib import Path

import torch

from kosmos_core import load_model
from kosmos_core.diffusers.stable_diffusion import StableDiffusion
from training.base.precision import faster_on_cpu

from .atlas import Atlas
from .features import ObjectFeatures
from .generator import EmojiGenerator
from .judge import BenchmarkRow, Judge, PromptCase, draw_prompts, in_words, real_pictures
from .options import positive_number, refused_by, whole_number
from .scenes import ALL_HUES, HELD_OUT_NOUNS, HUES, WORLD_NAMES, EmojiWorld, WorldSettings
from .sheets import pixel_grid


class Evaluation:
    """Rows of one world, in order of the table."""

    def __init__(self, world: EmojiWorld, count: int, guidance: float, diffusion: StableDiffusion):
        self.world, self.count, self.guidance, self.diffusion = world, count, guidance, diffusion
        self.judge = Judge(ObjectFeatures(), world)
        self.rows: list[BenchmarkRow] = []
        self.differences: list[dict] = []
        groups = {name: group for name, group in world.groups.items() if name != "probed nouns"}
        self.prompts = {name: draw_prompts(world, group, count, 1, 21) for name, group in groups.items()}
        self.pairs = draw_prompts(world, groups["seen"], count, 2, 22)

    def add(self, row: BenchmarkRow) -> BenchmarkRow:
        self.rows.append(row)
        print(json.dumps(row.summary()), flush=True)
        return row

    def oracle(self) -> None:
        """Real pictures of the same identity in other scenes, plain and through the autoencoder."""
        prompts = self.prompts["seen"]
        real = real_pictures(self.world, prompts)
        self.add(self.judge.singles("oracle: real pictures", real, prompts))
        vae = self.diffusion.vae()
        with torch.no_grad():
            pixels = torch.from_numpy(real).permute(0, 3, 1, 2).float() / 127.5 - 1
            made = vae.decode(vae.encode(pixels).latents).sample.clamp(-1, 1)
        again = ((made + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        self.add(self.judge.singles("oracle through the autoencoder", again, prompts))

    def by_text(self, name: str, generator: EmojiGenerator, prompts: list[PromptCase]) -> BenchmarkRow:
        images = generator.generate([in_words(self.world, p) for p in prompts])
        return self.add(self.judge.singles(name, images, prompts))

    def ceiling(self, name: str, generator: EmojiGenerator) -> None:
        """What the U-Net paints when its condition tells all that a reference shows."""
        for group, prompts in self.prompts.items():
            images = generator.generate([in_words(self.world, p, whole=True) for p in prompts])
            self.add(self.judge.singles(f"{name}, full captions, {group}", images, prompts))

    def text(self, name: str, generator: EmojiGenerator) -> BenchmarkRow:
        """Rows of one and two seen nouns; the first is returned."""
        row = self.by_text(f"{name}, text", generator, self.prompts["seen"])
        images = generator.generate([in_words(self.world, p) for p in self.pairs])
        self.add(self.judge.pairs(f"{name}, text, two", images, self.pairs))
        return row

    def by_image(
        self, name: str, generator: EmojiGenerator, prompts: list[PromptCase], shuffled: bool = False
    ) -> BenchmarkRow:
        references = [[p.shuffled] if shuffled else list(p.references) for p in prompts]
        images = generator.generate([p.marks for p in prompts], references)
        return self.add(self.judge.singles(name, images, prompts))

    def instruct(self, generator: EmojiGenerator, before: BenchmarkRow | None) -> None:
        """Stage 3's rows, and the differences that the claims rest on."""
        seen = self.text("stage 3", generator)
        for name, prompts in self.prompts.items():
            row = self.by_image(f"stage 3, {name}, by picture", generator, prompts)
            text = seen if name == "seen" else self.by_text(f"stage 3, {name}, the same in text", generator, prompts)
            other = self.by_image(f"stage 3, {name}, shuffled pictures", generator, prompts, shuffled=True)
            self.differences += [row.compare(text), row.compare(other), other.compare(text)]
            if name == "seen" and before is not None:
                self.differences.append(row.compare(before))
        images = generator.generate([p.marks for p in self.pairs], [list(p.references) for p in self.pairs])
        self.add(self.judge.pairs("stage 3, two by picture", images, self.pairs))

    def unknown(self, generator: EmojiGenerator, world: EmojiWorld, name: str) -> None:
        """Identities that the U-Net was not trained on; the gallery holds them beside the known ones."""
        prompts = draw_prompts(world, world.identities, self.count, 1, 23)
        known, self.judge = self.judge, Judge(self.judge.features, world, self.judge)
        row = self.by_image(f"stage 3, {name}, by picture", generator, prompts)
        other = self.by_image(f"stage 3, {name}, shuffled pictures", generator, prompts, shuffled=True)
        self.differences.append(row.compare(other))
        self.judge = known

    def write(self, folder: Path) -> str:
        folder.mkdir(parents=True, exist_ok=True)
        chance = {"identity": 1 / len(self.judge.identities), "noun": 1 / len(self.world.nouns)}
        report = {
            "guidance": self.guidance,
            "chance": chance,
            "rows": [row.summary() for row in self.rows],
            "differences": self.differences,
        }
        (folder / "evaluation.json").write_text(json.dumps(report, indent=1) + "\n")
        for number, row in enumerate(self.rows):
            pixel_grid(row.images[:24], 96).save(folder / f"{number:02d} {row.name.replace(':', ',')}.png")
        table = markdown(report)
        (folder / "evaluation.md").write_text(table)
        return table


def markdown(report: dict) -> str:
    """The report as a table; every cell is mean [low, high]."""
    metrics = ["similarity", "identity", "noun", "both nouns", "own reference"]
    lines = ["| row | prompts | " + " | ".join(metrics) + " |", "|---" * (len(metrics) + 2) + "|"]
    for row in report["rows"] + report["differences"]:
        cells = [f"{row[m][0]:.3f} [{row[m][1]:.3f}, {row[m][2]:.3f}]" if m in row else "" for m in metrics]
        lines.append(f"| {row['row']} | {row.get('prompts', '')} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", choices=WORLD_NAMES, default="full")
    parser.add_argument("--stable_diffusion", required=True, help="diffusers folder of the world")
    parser.add_argument("--align", help="Kosmos-G weights of stage 2")
    parser.add_argument("--instruct", help="Kosmos-G weights of stage 3")
    parser.add_argument("--ablation", action="append", default=[], metavar="NAME=FILE", help="more weights")
    parser.add_argument("--openmoji", type=Path, help="folder made by emoji_world.atlas --openmoji")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--count", type=whole_number(1), default=200, help="prompts per row")
    parser.add_argument("--guidance", type=positive_number, default=4.0)
    parser.add_argument("--steps", type=whole_number(1), default=20, help="sampling steps")
    parser.add_argument(
        "--precision", choices=("bf16", "fp32"), default=faster_on_cpu(), help="of the U-Net; default: the faster here"
    )
    arguments = parser.parse_args()
    world = EmojiWorld.named(arguments.world)
    ablations: dict[str, str] = {}
    for word in arguments.ablation:
        name, _, file = word.partition("=")
        if not (name and file) or name in ablations:
            parser.error(f"--ablation: {word!r} must be NAME=FILE, each name once")
        ablations[name] = file
    weights = {"--align": arguments.align, "--instruct": arguments.instruct} | ablations
    with refused_by(parser):
        diffusion = StableDiffusion(arguments.stable_diffusion, option="--stable_diffusion")
        encoders = {name: load_model(file).eval() for name, file in weights.items() if file}
        drawn = None
        if arguments.openmoji:
            drawn = EmojiWorld(Atlas.load(arguments.openmoji), world.settings)
        arguments.output.mkdir(parents=True, exist_ok=True)
    evaluation = Evaluation(world, arguments.count, arguments.guidance, diffusion)
    evaluation.oracle()

    def generator_of(name: str | None, clip_null: bool = False) -> EmojiGenerator:
        encoder = encoders[name] if name else None
        settings = {"steps": arguments.steps, "clip_null": clip_null, "precision": arguments.precision}
        return EmojiGenerator(diffusion, encoder, world.size, arguments.guidance, **settings)

    evaluation.text("frozen U-Net with its own CLIP", generator_of(None))
    evaluation.ceiling("frozen U-Net with its own CLIP", generator_of(None))
    before = None
    if arguments.align:
        generator = generator_of("--align", clip_null=True)
        evaluation.text("stage 2", generator)
        before = evaluation.by_image("stage 2, seen, by picture", generator, evaluation.prompts["seen"])
    if arguments.instruct:
        generator = generator_of("--instruct")
        evaluation.instruct(generator, before)
        hues = tuple(hue for hue in ALL_HUES if hue not in HUES)
        turned = EmojiWorld(world.atlas, WorldSettings(world.size, world.settings.instruct_held_out, ()), hues)
        evaluation.unknown(generator, turned, "held-out nouns in ten other hues")
        strangers = EmojiWorld(world.atlas, WorldSettings(world.size, HELD_OUT_NOUNS, ()))
        evaluation.unknown(generator, strangers, "nouns held out from everything")
        if drawn:
            evaluation.unknown(generator, drawn, "look held out from everything")
    for name in ablations:
        generator = generator_of(name)
        evaluation.text(name, generator)
        evaluation.by_image(f"{name}, seen, by picture", generator, evaluation.prompts["seen"])
    print(evaluation.write(arguments.output))


if __name__ == "__main__":
    main()
