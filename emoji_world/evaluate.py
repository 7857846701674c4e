"""What the world's Stable Diffusion and Kosmos-G have learned: JSON, a table and grids of pictures.

    python -m emoji_world.evaluate --world half --stable_diffusion RUNS/sd/diffusers \\
        --align RUNS/align.safetensors --instruct RUNS/instruct.safetensors --output RUNS/evaluation

Every row is `--count` prompts with fixed noise; intervals are 95 % bootstrap intervals over prompts. Identities that
were held out from stage 3 only, and those held out from everything, are reported apart; nothing is tuned on them.
"""

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer

from kosmos_core import KosmosG, load_model
from kosmos_core.diffusers.stable_diffusion import StableDiffusion
from training.base.precision import Precision, faster_on_cpu
from training.evaluate.statistics import bootstrap_interval

from .atlas import Atlas
from .diffusion import text_states
from .features import ObjectFeatures
from .sampling import sample
from .scenes import (
    BACKGROUNDS,
    HELD_OUT_NOUNS,
    WORLDS,
    Background,
    EmojiScene,
    EmojiWorld,
    Identity,
    Placed,
    WorldSettings,
)
from .sheets import pixel_grid

Pixels = np.ndarray


@dataclass
class PromptCase:
    """One picture to make: one or two identities on a background, and the pictures that show them."""

    identities: tuple[Identity, ...]
    background: Background
    references: tuple[Pixels, ...]
    shuffled: Pixels

    @property
    def marks(self) -> str:
        return " and ".join(["<i>"] * len(self.identities)) + f" {self.background.phrase}"


@dataclass
class BenchmarkRow:
    """Per-prompt values by metric; `compare` tests the difference to another row of the same prompts."""

    name: str
    values: dict[str, np.ndarray]
    images: np.ndarray | None = field(default=None, repr=False)

    def summary(self) -> dict:
        return {
            "row": self.name,
            "prompts": len(next(iter(self.values.values()))),
            **{metric: interval(values) for metric, values in self.values.items()},
        }

    def compare(self, other: "BenchmarkRow", metric: str = "similarity") -> dict:
        return {"row": f"{self.name} minus {other.name}", metric: interval(self.values[metric] - other.values[metric])}


def interval(values: np.ndarray, draws: int = 2000) -> list[float]:
    """Mean and the ends of its 95 % bootstrap interval."""
    return [round(float(x), 4) for x in (values.mean(), *bootstrap_interval(values, draws))]


class Judge:
    """Names what a picture shows: the identity of the nearest features among all of a world, and those of `known`."""

    def __init__(self, features: ObjectFeatures, world: EmojiWorld, known: "Judge | None" = None):
        self.features, self.identities = features, world.identities
        self.gallery = features([portrait(world, identity, "grey") for identity in self.identities])
        if known:
            self.identities = known.identities + self.identities
            self.gallery = torch.cat([known.gallery, self.gallery])
        self.number = {identity: n for n, identity in enumerate(self.identities)}
        self.nouns = np.array([identity.noun for identity in self.identities])

    def singles(self, name: str, images: np.ndarray, prompts: list[PromptCase]) -> BenchmarkRow:
        """Similarity to the identity asked for, whether it is the nearest of all, and whether the nearest one's noun is
        right."""
        scores = self.features(list(images)) @ self.gallery.T
        wanted = [self.number[prompt.identities[0]] for prompt in prompts]
        nearest = scores.argmax(1).numpy()
        nouns = self.nouns[nearest]
        values = {
            "similarity": scores[torch.arange(len(wanted)), wanted].numpy(),
            "identity": (nearest == np.array(wanted)).astype(float),
            "noun": np.array([noun == p.identities[0].noun for noun, p in zip(nouns, prompts, strict=True)], float),
        }
        return BenchmarkRow(name, values, images)

    def pairs(self, name: str, images: np.ndarray, prompts: list[PromptCase]) -> BenchmarkRow:
        """Both nouns right in their halves, and each half nearer to its own identity than to the other's."""
        middle = images.shape[2] // 2
        halves = [self.features(list(x)) @ self.gallery.T for x in (images[:, :, :middle], images[:, :, middle:])]
        both, own = [], []
        for row, prompt in enumerate(prompts):
            numbers = [self.number[identity] for identity in prompt.identities]
            nouns = [self.nouns[half[row].argmax()] for half in halves]
            both.append(float(all(n == x.noun for n, x in zip(nouns, prompt.identities, strict=True))))
            own.append(float(all(halves[i][row, numbers[i]] > halves[i][row, numbers[1 - i]] for i in range(2))))
        return BenchmarkRow(name, {"both nouns": np.array(both), "own reference": np.array(own)}, images)


def portrait(world: EmojiWorld, identity: Identity, colour: str) -> Pixels:
    """An identity alone in the middle of a plain background."""
    edge = (world.size - world.object_size) // 2
    return world.render(EmojiScene((Placed(identity, edge, edge, world.object_size),), Background(colour)))[0]


def draw_prompts(
    world: EmojiWorld, identities: list[Identity], count: int, entities: int, seed: int
) -> list[PromptCase]:
    """Prompts over the identities in turn; references stand on white, shuffled ones show another noun."""
    rng = np.random.default_rng(seed)
    order = [identities[i] for i in rng.permutation(len(identities))]
    prompts = []
    for number in range(count):
        chosen = [order[number % len(order)]]
        others = [x for x in identities if x.noun != chosen[0].noun]
        while len(chosen) < entities:
            chosen.append(others[rng.integers(len(others))])
        references = tuple(world.reference(x) for x in chosen)
        other = world.reference(others[rng.integers(len(others))])
        colour = str(rng.choice([name for name in BACKGROUNDS if name != "white"]))
        prompts.append(PromptCase(tuple(chosen), Background(colour), references, other))
    return prompts


@dataclass
class EmojiGenerator:
    """A frozen U-Net with an encoder in front: Kosmos-G, or its own CLIP where `encoder` is None.

    Guidance leads away from the encoder's null condition. Only stage 3 trains it: earlier, `clip_null` takes CLIP's.
    """

    diffusion: StableDiffusion
    encoder: KosmosG | None
    size: int  # pixels of a side
    guidance: float
    steps: int = 20
    seed: int = 1
    clip_null: bool = False
    precision: Precision = field(default_factory=faster_on_cpu)

    def __post_init__(self) -> None:
        self.unet, self.vae = self.diffusion.unet(), self.diffusion.vae()

    def clip(self) -> tuple[CLIPTextModel, CLIPTokenizer]:
        return self.diffusion.text_encoder(), self.diffusion.tokenizer()

    @torch.no_grad()
    def conditions(self, texts: list[str], images: list[list[Pixels]] | None = None) -> torch.Tensor:
        if self.encoder is None or (self.clip_null and texts == [""]):
            return text_states(*self.clip(), texts).float()
        found = []
        for start in range(0, len(texts), 16):
            own = None if images is None else [[Image.fromarray(x) for x in p] for p in images[start : start + 16]]
            found.append(self.encoder.encode(texts[start : start + 16], own))
        return torch.cat(found)

    def generate(self, texts: list[str], images: list[list[Pixels]] | None = None) -> np.ndarray:
        conditions, null = self.conditions(texts, images), self.conditions([""])
        settings = {"seed": self.seed, "guidance": self.guidance, "steps": self.steps, "precision": self.precision}
        return sample(self.unet, self.vae, conditions, null, self.size, **settings)


class Evaluation:
    """Rows of one world, in order of the table."""

    def __init__(self, world: EmojiWorld, count: int, guidance: float, diffusion: StableDiffusion):
        self.world, self.count, self.guidance, self.diffusion = world, count, guidance, diffusion
        self.judge = Judge(ObjectFeatures(), world)
        self.rows: list[BenchmarkRow] = []
        self.differences: list[dict] = []
        seen = [x for x in world.identities if not world.held_out_of_instruct(x)]
        held = [x for x in world.identities if world.held_out_of_instruct(x)]
        self.groups = {"seen": seen, "held out from stage 3": held}
        self.prompts = {name: draw_prompts(world, group, count, 1, 21) for name, group in self.groups.items()}
        self.pairs = draw_prompts(world, seen, count, 2, 22)

    def caption(self, prompt: PromptCase) -> str:
        nouns = [self.world.phrase(identity) for identity in prompt.identities]
        return " and ".join(nouns) + f" {prompt.background.phrase}"

    def add(self, row: BenchmarkRow) -> BenchmarkRow:
        self.rows.append(row)
        print(json.dumps(row.summary()), flush=True)
        return row

    def oracle(self) -> None:
        """Real pictures of the same identity in other scenes, plain and through the autoencoder."""
        prompts, rng = self.prompts["seen"], np.random.default_rng(4)
        real = np.stack(
            [self.world.render(EmojiScene(self.world.place(list(p.identities), rng), p.background))[0] for p in prompts]
        )
        self.add(self.judge.singles("oracle: real pictures", real, prompts))
        vae = self.diffusion.vae()
        with torch.no_grad():
            pixels = torch.from_numpy(real).permute(0, 3, 1, 2).float() / 127.5 - 1
            made = vae.decode(vae.encode(pixels).latents).sample.clamp(-1, 1)
        again = ((made + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        self.add(self.judge.singles("oracle through the autoencoder", again, prompts))

    def by_text(self, name: str, generator: EmojiGenerator, prompts: list[PromptCase]) -> BenchmarkRow:
        images = generator.generate([self.caption(p) for p in prompts])
        return self.add(self.judge.singles(name, images, prompts))

    def text(self, name: str, generator: EmojiGenerator) -> BenchmarkRow:
        """Rows of one and two seen nouns; the first is returned."""
        row = self.by_text(f"{name}, text", generator, self.prompts["seen"])
        images = generator.generate([self.caption(p) for p in self.pairs])
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
        """Identities that nothing was trained on; the gallery holds them beside the known ones."""
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
    parser.add_argument("--world", choices=WORLDS, default="full")
    parser.add_argument("--stable_diffusion", required=True, help="diffusers folder of the world")
    parser.add_argument("--align", help="Kosmos-G weights of stage 2")
    parser.add_argument("--instruct", help="Kosmos-G weights of stage 3")
    parser.add_argument("--ablation", action="append", default=[], metavar="NAME=FILE", help="more weights")
    parser.add_argument("--openmoji", type=Path, help="folder made by emoji_world.atlas --openmoji")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--count", type=int, default=200, help="prompts per row")
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--steps", type=int, default=20, help="sampling steps")
    parser.add_argument(
        "--precision", choices=("bf16", "fp32"), default=faster_on_cpu(), help="of the U-Net; default: the faster here"
    )
    arguments = parser.parse_args()
    world = EmojiWorld.named(arguments.world)
    diffusion = StableDiffusion(arguments.stable_diffusion, option="--stable_diffusion")
    evaluation = Evaluation(world, arguments.count, arguments.guidance, diffusion)
    evaluation.oracle()

    def generator_of(weights: str | None, clip_null: bool = False) -> EmojiGenerator:
        encoder = load_model(weights).eval() if weights else None
        settings = {"steps": arguments.steps, "clip_null": clip_null, "precision": arguments.precision}
        return EmojiGenerator(diffusion, encoder, world.size, arguments.guidance, **settings)

    evaluation.text("frozen U-Net with its own CLIP", generator_of(None))
    before = None
    if arguments.align:
        generator = generator_of(arguments.align, clip_null=True)
        evaluation.text("stage 2", generator)
        before = evaluation.by_image("stage 2, seen, by picture", generator, evaluation.prompts["seen"])
    if arguments.instruct:
        generator = generator_of(arguments.instruct)
        evaluation.instruct(generator, before)
        strangers = EmojiWorld(world.atlas, WorldSettings(world.size, HELD_OUT_NOUNS, ()))
        evaluation.unknown(generator, strangers, "nouns held out from everything")
        if arguments.openmoji:
            drawn = EmojiWorld(Atlas.load(arguments.openmoji), world.settings)
            evaluation.unknown(generator, drawn, "look held out from everything")
    for ablation in arguments.ablation:
        name, _, file = ablation.partition("=")
        generator = generator_of(file)
        evaluation.text(name, generator)
        evaluation.by_image(f"{name}, seen, by picture", generator, evaluation.prompts["seen"])
    print(evaluation.write(arguments.output))


if __name__ == "__main__":
    main()
