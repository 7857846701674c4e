"""What makes a subject the model's own: tuned references and adapters, measured on subjects that were held out.

    python -m emoji_world.own_subjects --output RUNS/own            goes on where it was stopped, between two pieces
    python -m emoji_world.own_subjects --output RUNS/own --table    what is finished

Every row takes the same photographs (scenes with masks and captions), prompts and noise. Of the group `stage3`, two
nouns that stage 3 never showed, the U-Net and stages 1 and 2 have seen pictures; of `unknown` nothing was ever trained.
The last three identities of each noun are for choosing settings alone; all that is told is of the first five. "before"
is what tuning starts with, the mean of the photographs. An adapter is trained by `training.run` on the same ones.
"""

import argparse
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import yaml

from kosmos_core import KosmosG, Reference
from kosmos_core.diffusers.stable_diffusion import StableDiffusion
from kosmos_core.mask_boxes import largest_box, square_around
from kosmos_core.reference import View
from training import export, run
from training.base.precision import faster_on_cpu
from training.base.processes import ProcessGroup
from training.data.shard_writer import Parts
from training.data.synthetic import write_tars
from training.personalize.subject_run import Models

from .atlas import ASSETS
from .features import ObjectFeatures
from .judge import Judge, PromptCase, draw_prompts, in_words
from .options import whole_number
from .own_photographs import opened, own_signals, tuned, write_photographs, zero_shot
from .own_subject_rows import (
    REPORTED,
    ROWS,
    Adapter,
    Row,
    all_subjects,
    kept,
    name_of,
    pieces,
    reported,
    subjects_of,
    table,
)
from .sampling import sample
from .scenes import BACKGROUNDS, HELD_OUT_NOUNS, EmojiWorld, Identity, WorldSettings
from .training_data import SampleMaker, png

WEIGHTS, STABLE_DIFFUSION = ASSETS / "emoji-world-kosmos-g.safetensors", ASSETS / "emoji-world-sd.safetensors"
PROMPTS, PROMPTS_TO_CHOOSE, PROMPTS_OF_OTHERS = 20, 8, 10  # for each subject
SAMPLING_STEPS = 6
SEED = 31
GENERAL = 400  # samples of each kind that stand for stage 3's data beside the photographs
CONFIG = Path(__file__).parent / "configs" / "instruct.yaml"


def photographs_of(world: EmojiWorld, identity: Identity, row: Row, folder: Path) -> Path:
    """The row's photographs of a subject, the same in every row."""
    seed = SEED, sorted(all_subjects(world)).index(identity)
    return write_photographs(world, identity, folder / name_of(identity), seed, row.photographs, row.masks)


def adapter_data(folder: Path, noun: str) -> Iterator[Parts]:
    """The photographs as stage 3's constructed samples: the subject's phrase and its crop with its mask."""
    for pixels, mask, caption in opened(folder):
        left, top, side = square_around(largest_box(mask), mask.shape)
        box = np.s_[top : top + side, left : left + side]
        phrase = f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
        described = {
            "caption": caption.replace("<i>", phrase),
            "entities": [{"text": phrase, "span": [0, len(phrase)]}],
        }
        yield {
            "png": png(pixels),
            "0.png": png(np.ascontiguousarray(pixels[box])),
            "0.mask.png": png(np.ascontiguousarray(mask[box])),
            "json": json.dumps(described).encode(),
        }


def background_of(image: np.ndarray) -> str:
    """The name of the plain background that a picture's border is nearest to."""
    border = np.median(np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]]).astype(float), axis=0)
    return min(BACKGROUNDS, key=lambda name: float(np.square(border - BACKGROUNDS[name]).sum()))


def distance(image: np.ndarray, other: np.ndarray) -> float:
    """Root mean square of the difference of two pictures, in levels."""
    return float(np.sqrt(np.square(image.astype(float) - other).mean()))


def copy_distance(world: EmojiWorld) -> float:
    """Below this a picture is a likely copy: 5 % of the pairs of photographs of a subject are that near."""
    rng, found = np.random.default_rng(SEED), []
    for identity in subjects_of(world, "stage3"):
        images = [world.render(world.draw(rng, [identity]))[0] for _ in range(10)]
        found += [distance(images[i], images[j]) for i in range(10) for j in range(i)]
    return float(np.percentile(found, 5))


class Study:
    """Pieces of rows, one subject each, and what they are made with."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.world = folder, EmojiWorld.named("full")
        self.alone = ProcessGroup(0, 1, torch.device("cpu"))
        self.models = Models.load(str(WEIGHTS), str(STABLE_DIFFUSION), "auto", self.alone)
        painter = StableDiffusion(STABLE_DIFFUSION)
        self.unet, self.vae = painter.unet(), painter.vae()
        features = ObjectFeatures()
        known = Judge(features, self.world)
        strangers = EmojiWorld(self.world.atlas, WorldSettings(self.world.size, HELD_OUT_NOUNS, ()))
        self.judges = {"stage3": known, "unknown": Judge(features, strangers, known)}
        self.copied_below = copy_distance(self.world)

    def prompts(self, row: Row, group: str, identity: Identity, told: bool) -> list[PromptCase]:
        """The prompts of a piece; those of others and of text differ from subject to subject, not from row to row."""
        subjects = subjects_of(self.world, group, told)
        count = PROMPTS_OF_OTHERS if row.asks != "own" else PROMPTS if told else PROMPTS_TO_CHOOSE
        if row.asks == "own":
            drawn = draw_prompts(self.world, subjects, count * len(subjects), 1, SEED)
            return [prompt for prompt in drawn if prompt.identities[0] == identity]
        drawn = draw_prompts(self.world, self.world.groups["seen"], count * len(subjects), 1, SEED)
        start = subjects.index(identity) * count
        return drawn[start : start + count]

    def piece(self, name: str, group: str, identity: Identity) -> dict:
        """The values of one subject's prompts by metric, and the seconds that tuning and adapter took."""
        row = ROWS[name]
        photographs = photographs_of(self.world, identity, row, self.folder / "photographs")
        began, models = time.process_time(), self.models
        if row.adapter:
            path = self.adapted(row.adapter, identity, photographs)
            models = Models.load(str(path), str(STABLE_DIFFUSION), "auto", self.alone)
        noun = identity.noun if row.noun else ""
        if row.tuning:
            output = self.folder / "tuned.safetensors"
            reference = tuned(photographs, models, self.world.size, row.tuning, name_of(identity), noun, output)
        else:
            reference = zero_shot(photographs)
        seconds = time.process_time() - began
        reference = Reference(reference.source, noun=noun)
        prompts = self.prompts(row, group, identity, reported(name))
        images = self.painted(row, models.encoder, prompts, reference)
        values = self.judges[group].singles("", images, prompts).values
        values["background"] = np.array(
            [background_of(image) == x.background.colour for image, x in zip(images, prompts, strict=True)], float
        )
        if row.asks == "own":
            shown = [pixels for pixels, _, _ in opened(photographs)]
            nearest = [min(distance(image, other) for other in shown) for image in images]
            values["copied"] = np.array([found < self.copied_below for found in nearest], float)
        return {"seconds": seconds, "values": {metric: found.tolist() for metric, found in values.items()}}

    def painted(self, row: Row, encoder: KosmosG, prompts: list[PromptCase], reference: Reference) -> np.ndarray:
        if row.asks == "text":
            conditions = encoder.encode([in_words(self.world, prompt) for prompt in prompts])
        elif row.asks == "others":
            own = [[Reference(View(torch.from_numpy(x.references[0])), noun=x.identities[0].noun)] for x in prompts]
            conditions = encoder.encode([prompt.marks for prompt in prompts], own)
        else:
            conditions = encoder.encode([prompt.marks for prompt in prompts], [[reference]] * len(prompts))
        return sample(
            self.unet,
            self.vae,
            conditions,
            encoder.encode(""),
            self.world.size,
            seed=SEED,
            steps=SAMPLING_STEPS,
            precision=faster_on_cpu(),
        )

    def adapted(self, how: Adapter, identity: Identity, photographs: Path) -> Path:
        """The weight file with the adapter of a subject merged; rows that ask otherwise find it there."""
        folder = self.folder / "adapters" / name_of(identity)
        noise = " ".join(map(str, how.snr_bounds or ("every noise",)))
        name = f"{how.steps} steps, rate {how.rate:g}, {noise}{', general' if how.general else ''}"
        path, own = folder / f"{name}.safetensors", folder / name
        if path.exists():
            return path
        shutil.rmtree(own, ignore_errors=True)
        write_tars(own / "data", adapter_data(photographs, identity.noun), 10)
        sources: dict = {"own": {"path": str(own / "data"), "weight": 5}}
        if how.general:
            for kind, weight in (("compositional", 2), ("edit", 2), ("instruct_captions", 1)):
                sources[kind] = {"path": str(self.general(kind)), "weight": weight}
            sources["instruct_captions"]["kind"] = "captions"
        settings = yaml.safe_load(CONFIG.read_text())
        settings |= {"weights": str(WEIGHTS), "run_folder": str(own / "run"), "steps": how.steps}
        settings |= {"trainable": {"lora": 16}, "batch": {"size": 8, "micro": 8, "streams": 1}}
        settings["task"] |= {"stable_diffusion": str(STABLE_DIFFUSION), "alignment": 0.0}
        settings["task"]["snr_bounds"] = None if how.snr_bounds is None else list(how.snr_bounds)
        settings["data"] |= {"sources": sources}
        settings |= {"optim": {"lr": how.rate, "warmup_steps": 5}, "log": {"tensorboard": False, "sample_every": 0}}
        (own / "run.yaml").write_text(yaml.safe_dump(settings))
        with own_signals(), torch.enable_grad():
            code = run.main(["--config", str(own / "run.yaml")])
        if code:
            raise SystemExit(f"the adapter of {name_of(identity)} could not be trained")
        export.export(own / "run", path, step=how.steps)
        shutil.rmtree(own)
        return path

    def general(self, kind: str) -> Path:
        """A data set of stage 3, made once."""
        folder = self.folder / "general" / kind
        if not folder.exists():
            make, part = SampleMaker(self.world, SEED), folder.with_name(f"{kind}.part")
            shutil.rmtree(part, ignore_errors=True)
            made = make.captions(GENERAL, seen=True) if kind == "instruct_captions" else getattr(make, kind)(GENERAL)
            write_tars(part, made, GENERAL)
            part.rename(folder)
        return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the photographs, adapters and rows")
    parser.add_argument(
        "--of-each",
        type=whole_number(1),
        default=REPORTED,
        help="fewer subjects of each noun in the rows beside before and tuned",
    )
    parser.add_argument("--table", action="store_true", help="print what is finished, make nothing")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    world = EmojiWorld.named("full")
    if not options.table:
        study = None
        for group, name, identity in pieces(world, options.of_each):
            path = kept(options.output, group, name, identity)
            if path.exists():
                continue
            study = study or Study(options.output)
            found = study.piece(name, group, identity)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_suffix(".part").write_text(json.dumps(found))
            path.with_suffix(".part").rename(path)
            print(f"{group}, {name}, {name_of(identity)}: {found['seconds']:.0f} s", flush=True)
    table(options.output, world, print)


if __name__ == "__main__":
    main()
