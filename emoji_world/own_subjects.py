"""What tuned references give for subjects that the model was not trained on: before and after, prompt by prompt.

    python -m emoji_world.own_subjects photographs --group unknown --output RUNS/own
    python -m training.personalize --weights assets/world/emoji-world-kosmos-g.safetensors \\
        --sd assets/world/emoji-world-sd.safetensors --size 64 --images RUNS/own --subjects RUNS/own/subjects.yaml \\
        --output RUNS/own/tuned
    python -m emoji_world.own_subjects evaluate --group unknown --output RUNS/own --tuned RUNS/own/tuned

Of the group `unknown` nothing was ever trained, the U-Net included; of `stage3` (two nouns that stage 3 never showed)
the U-Net and stages 1 and 2 have seen pictures. Every subject gets photographs in scenes, with masks and captions. The
row "before" is the zero-shot start of the tuning: the mean of the same photographs. Noise is the same in both rows;
every finished piece is kept, so that the command goes on where it was stopped.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image

from kosmos_core import Reference, load_model
from kosmos_core.crops import crop_subject
from kosmos_core.diffusers.stable_diffusion import StableDiffusion
from kosmos_core.reference import average
from training.base.precision import faster_on_cpu

from .atlas import ASSETS
from .features import ObjectFeatures
from .judge import BenchmarkRow, Judge, draw_prompts
from .sampling import sample
from .scenes import HELD_OUT_NOUNS, WORLDS, EmojiWorld, Identity, WorldSettings

GROUPS = {"unknown": HELD_OUT_NOUNS, "stage3": WORLDS["full"].instruct_held_out}
PIECE = 10  # prompts that are painted and kept together
SEED = 31


def name_of(identity: Identity) -> str:
    return f"{identity.noun}_{identity.look}_{identity.hue}"


def subjects_of(world: EmojiWorld, group: str) -> list[Identity]:
    """The group's two nouns in two looks each, once in either hue."""
    first, second, *_ = world.atlas.looks
    return [Identity(noun, look, hue) for noun in GROUPS[group] for look, hue in ((first, 0), (second, 120))]


def write_photographs(world: EmojiWorld, group: str, count: int, folder: Path) -> None:
    """A folder per subject with so many scenes of it, masks and captions, and the list of the subjects."""
    rng = np.random.default_rng(SEED)
    entries = []
    for identity in subjects_of(world, group):
        own = folder / name_of(identity)
        own.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            scene = world.draw(rng, [identity])
            pixels, (mask,) = world.render(scene)
            Image.fromarray(pixels).save(own / f"{number:02}.png")
            Image.fromarray(mask).save(own / f"{number:02}.mask.png")
            (own / f"{number:02}.txt").write_text(f"<i> {scene.background.phrase}")
        entries.append({"name": own.name, "noun": identity.noun, "kind": "object", "picked": "00.png"})
    prompts = {"object": ["{} on a blue background"]}
    (folder / "subjects.yaml").write_text(yaml.safe_dump({"prompts": prompts, "subjects": entries}))


def zero_shot(folder: Path, names: list[str]) -> Reference:
    """The start of the tuning: the mean of the photographs that it was tuned on, cut out on white."""
    views = []
    for name in names:
        mask = np.asarray(Image.open(folder / f"{Path(name).stem}.mask.png").convert("L")) > 127
        views.append(Reference.of_crop(crop_subject(np.asarray(Image.open(folder / name)), mask)))
    return average(views, keep_norm=True)


class Evaluation:
    """Pictures of a group's subjects on plain backgrounds, judged among all identities of the world."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.world = options, EmojiWorld.named("full")
        self.encoder = load_model(options.kosmos_g)
        diffusion = StableDiffusion(options.stable_diffusion)
        self.unet, self.vae = diffusion.unet(), diffusion.vae()
        features = ObjectFeatures()
        self.judge = Judge(features, self.world)
        if options.group == "unknown":
            strangers = EmojiWorld(self.world.atlas, WorldSettings(self.world.size, HELD_OUT_NOUNS, ()))
            self.judge = Judge(features, strangers, self.judge)
        self.prompts = draw_prompts(self.world, subjects_of(self.world, options.group), options.count, 1, SEED)

    def references(self, tuned: bool) -> dict[Identity, Reference]:
        """Of each subject, by identity: its tuned file, or what the tuning began with."""
        found = {}
        for identity in dict.fromkeys(prompt.identities[0] for prompt in self.prompts):
            name = name_of(identity)
            photographs = sorted(
                file.name for file in (self.options.output / name).glob("*.png") if not file.name.endswith(".mask.png")
            )
            kept = photographs[:4] if len(photographs) == 5 else photographs[:-1] or photographs
            noun = identity.noun if self.options.noun else ""
            if tuned:
                reference = Reference.load(self.options.tuned / f"{name}.safetensors")
            else:
                reference = zero_shot(self.options.output / name, kept)
            found[identity] = Reference(reference.source, noun=noun)
        return found

    def row(self, tuned: bool) -> BenchmarkRow:
        """One row; its finished pieces are kept in a file of the output folder."""
        name = ("after" if tuned else "before") + (", noun given" if self.options.noun else "")
        kept = (self.options.tuned if tuned else self.options.output) / f"{self.options.group}-{name}.json"
        values = json.loads(kept.read_text()) if kept.exists() else {}
        references = self.references(tuned)
        null = self.encoder.encode("")
        for start in range(len(next(iter(values.values()), [])), len(self.prompts), PIECE):
            prompts = self.prompts[start : start + PIECE]
            conditions = self.encoder.encode(
                [prompt.marks for prompt in prompts], [[references[prompt.identities[0]]] for prompt in prompts]
            )
            images = sample(
                self.unet,
                self.vae,
                conditions,
                null,
                self.world.size,
                seed=start,
                steps=self.options.steps,
                batch=PIECE,
                precision=faster_on_cpu(),
            )
            for metric, found in self.judge.singles(name, images, prompts).values.items():
                values.setdefault(metric, []).extend(found.tolist())
            kept.write_text(json.dumps(values))
            print(f"{name}: {start + len(prompts)} of {len(self.prompts)}", flush=True)
        return BenchmarkRow(f"{self.options.group}, {name}", {key: np.array(own) for key, own in values.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("photographs", "evaluate"))
    parser.add_argument("--group", choices=GROUPS, required=True)
    parser.add_argument("--output", type=Path, required=True, help="folder of the photographs and the rows")
    parser.add_argument("--photographs", type=int, default=5, help="of each subject")
    parser.add_argument("--tuned", type=Path, help="folder of the tuned files; without it the row before alone")
    parser.add_argument("--noun", action="store_true", help="give the noun with the reference")
    parser.add_argument("--count", type=int, default=200, help="prompts per row")
    parser.add_argument("--steps", type=int, default=6, help="sampling steps")
    parser.add_argument("--kosmos_g", type=Path, default=ASSETS / "emoji-world-kosmos-g.safetensors")
    parser.add_argument("--stable_diffusion", type=Path, default=ASSETS / "emoji-world-sd.safetensors")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    if options.command == "photographs":
        write_photographs(EmojiWorld.named("full"), options.group, options.photographs, options.output)
        return
    evaluation = Evaluation(options)
    before = evaluation.row(tuned=False)
    rows = [before.summary()]
    if options.tuned:
        after = evaluation.row(tuned=True)
        rows += [after.summary(), *(after.compare(before, metric) for metric in after.values)]
    for row in rows:
        print(json.dumps(row))


if __name__ == "__main__":
    main()
