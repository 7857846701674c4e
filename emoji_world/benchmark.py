"""One command that judges Kosmos-G weights in the small world: numbers, a table and a sheet, in minutes on a CPU.

    python -m emoji_world.benchmark --weights W.safetensors --sd SD --output runs/benchmark
    python -m emoji_world.benchmark                                # the weights in assets/world

Copying cannot win it: the reference itself as an answer ("echo") stands on the wrong background; references in another
look or pose than asked for, inside a scene or to be edited are judged by what the prompt says; beside them stand real
pictures, text alone, another subject's reference, and references tuned to five photographs. Intervals are 95 %
bootstrap intervals over subjects. Nothing is chosen by its result: prompts, noise and steps are fixed. With
`pip install -e ".[world,benchmark]"` a second feature net judges, too.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from kosmos_core import Reference, load_model
from kosmos_core.atomic import atomic_write, write_file
from kosmos_core.diffusers.stable_diffusion import StableDiffusion
from training.base import contact_sheet as sheet
from training.base.precision import faster_on_cpu
from training.base.processes import ProcessGroup
from training.personalize.subject_run import Models
from training.personalize.tuning import TuningConfig

from .atlas import ASSETS
from .benchmark_cases import (
    Edit,
    background_colour,
    edits,
    in_scenes,
    look_swapped,
    object_is_grey,
    pose_of,
    pose_swapped,
)
from .features import feature_nets
from .generator import EmojiGenerator
from .judge import BenchmarkRow, Judge, PromptCase, draw_prompts, in_words, real_pictures
from .options import refused_by, require_file, whole_number
from .own_photographs import opened, tuned, write_photographs, zero_shot
from .prompt_weights import Painter, WeightedPrompt, cases_of, shipped
from .scenes import WORLD_NAMES, EmojiWorld, Identity
from .sheets import enlarged

RISING, ENOUGH = (0.5, 1.0, 2.0), 0.01  # weights whose effect has to rise; what is less than that is no fall
GUIDANCE = 4.0
SHOWN, SIDE = 10, 96  # pictures of each row on the sheet, and their pixels
KINDS = ("a word against a picture", "a picture against a word", "one of two words", "one of two pictures")
Pixels = np.ndarray


class Benchmark:
    """The rows of one file of weights, in order of the table."""

    def __init__(self, world: EmojiWorld, weights: Path, sd: str, count: int, own: int, settings: dict[str, Any]):
        self.world, self.paths, self.count, self.own = world, (str(weights), sd), count, own
        self.model, self.diffusion = load_model(weights).eval(), StableDiffusion(sd, option="--sd")
        self.kosmos = EmojiGenerator(self.diffusion, self.model, world.size, GUIDANCE, **settings)
        self.clip = EmojiGenerator(self.diffusion, None, world.size, GUIDANCE, **settings)
        self.judges = {name: Judge(net, world) for name, net in feature_nets().items()}
        self.judge = next(iter(self.judges.values()))
        self.rows: list[tuple[BenchmarkRow, list[Pixels] | None]] = []
        self.differences: list[dict] = []
        groups = {name: group for name, group in world.groups.items() if name != "probed nouns"}
        self.prompts = {name: draw_prompts(world, group, count, 1, 61) for name, group in groups.items()}
        self.pairs = draw_prompts(world, groups["seen"], count, 2, 62)

    def judged(
        self, name: str, images: Pixels, prompts: list[PromptCase], references: list[list[Pixels]] | None = None, **more
    ) -> BenchmarkRow:
        """A row of one object each: by every feature net, and whether the background is the one that was asked for."""
        found = [judge.singles(name, images, prompts) for judge in self.judges.values()]
        values = {
            metric if number == 0 else f"{metric} ({net})": numbers
            for number, (net, row) in enumerate(zip(self.judges, found, strict=True))
            for metric, numbers in row.values.items()
        }
        wanted = [prompt.background.colour for prompt in prompts]
        right = [background_colour(image) == colour for image, colour in zip(images, wanted, strict=True)]
        values["background"] = np.array(right, float)
        values["identity on it"] = values["identity"] * values["background"]  # which a copy has not
        return self.add(replace(found[0], values={**values, **more}), references)

    def add(self, row: BenchmarkRow, references: list[list[Pixels]] | None = None) -> BenchmarkRow:
        self.rows.append((row, None if references is None else [shown[0] for shown in references[:SHOWN]]))
        print(json.dumps(row.summary()), flush=True)
        return row

    def bounds(self) -> None:
        """What real pictures and the reference itself would get, and what the U-Net paints from CLIP's own captions."""
        for group, prompts in self.prompts.items():
            self.judged(f"real pictures, {group}", real_pictures(self.world, prompts), prompts)
        prompts = self.prompts["seen"]
        side = (self.world.size, self.world.size)
        echo = np.stack([np.asarray(Image.fromarray(p.references[0]).resize(side)) for p in prompts])
        self.judged("echo of the reference, seen", echo, prompts)
        for group, prompts in self.prompts.items():
            captions = [in_words(self.world, p, whole=True) for p in prompts]
            self.judged(f"CLIP, full captions, {group}", self.clip.generate(captions), prompts)

    def subjects(self) -> None:
        """One reference, of each group of identities; beside it text alone and another subject's reference."""
        for group, prompts in self.prompts.items():
            own, other = [list(p.references) for p in prompts], [[p.shuffled] for p in prompts]
            marks = [p.marks for p in prompts]
            row = self.judged(f"by picture, {group}", self.kosmos.generate(marks, own), prompts, own)
            text = self.judged(
                f"text alone, {group}", self.kosmos.generate([in_words(self.world, p) for p in prompts]), prompts
            )
            wrong = self.judged(f"shuffled references, {group}", self.kosmos.generate(marks, other), prompts, other)
            self.differences += [row.compare(text), row.compare(wrong)]

    def text_kept(self) -> None:
        """The nouns of captions, as a share of what CLIP in the same place gives."""
        prompts = self.prompts["seen"]
        clip = self.judged("CLIP, text, seen", self.clip.generate([in_words(self.world, p) for p in prompts]), prompts)
        own = next(row for row, _ in self.rows if row.name == "text alone, seen")
        self.differences.append(own.compare(clip, "noun"))

    def swapped(self) -> None:
        """The reference has another look than the words ask for: copying gives the wrong one."""
        prompts = look_swapped(self.world, self.world.groups["seen"], self.count)
        texts, references = [text for text, _ in prompts], [list(p.references) for _, p in prompts]
        images, asked = self.kosmos.generate(texts, references), [p for _, p in prompts]
        row = self.judged("look-swapped reference", images, asked, references)
        shown = [replace(p, identities=(p.shown,)) for p in asked]
        copied = self.judge.singles("copied", images, shown)
        row.values["asked look nearer"] = (row.values["similarity"] > copied.values["similarity"]).astype(float)

    def turned(self) -> None:
        """The reference is in another pose than the world draws: copying gives that pose."""
        prompts = pose_swapped(self.world, self.world.groups["seen"], self.count)
        references = [list(p.references) for p in prompts]
        images = self.kosmos.generate([p.marks for p in prompts], references)
        poses = [pose_of(image, self.world, p.identities[0], 1) > 0 for image, p in zip(images, prompts, strict=True)]
        self.judged("pose-swapped reference", images, prompts, references, copied=np.array(poses, float))

    def guard(self) -> None:
        """The reference is a whole scene: its background must stay behind."""
        prompts, colours = in_scenes(self.world, self.world.groups["seen"], self.count)
        references = [list(p.references) for p in prompts]
        images = self.kosmos.generate([p.marks for p in prompts], references)
        kept = [background_colour(image) == colour for image, colour in zip(images, colours, strict=True)]
        self.judged("copy guard: reference in a scene", images, prompts, references, copied=np.array(kept, float))

    def binding(self) -> None:
        """Two references: both nouns, and each half nearer to its own reference than to the other one."""
        references = [list(p.references) for p in self.pairs]
        by_picture = self.kosmos.generate([p.marks for p in self.pairs], references)
        self.add(self.judge.pairs("two references", by_picture, self.pairs), references)
        by_text = self.kosmos.generate([in_words(self.world, p) for p in self.pairs])
        self.add(self.judge.pairs("two nouns in text", by_text, self.pairs))
        self.add(self.judge.pairs("two, real pictures", real_pictures(self.world, self.pairs), self.pairs))

    def edited(self) -> None:
        """A scene and an instruction: it is followed, and the subject stays."""
        for name, followed in (("background", background_followed), ("in grey", grey_followed)):
            cases = edits(self.world, self.world.groups["seen"], self.count, name)
            references, prompts = [[case.image] for case in cases], [case.prompt for case in cases]
            images = self.kosmos.generate([f"<i> {case.instruction}" for case in cases], references)
            done = np.array([followed(image, case) for image, case in zip(images, cases, strict=True)], float)
            self.judged(f"edit: {name}", images, prompts, references, followed=done)

    def weights(self) -> None:
        """The weight of a word or a picture: what it names must not get less likely as it rises."""
        painter = Painter(self.world, self.model, self.diffusion)
        rises, gains = [], []
        for kind, cases in cases_of(self.world, max(2, self.count // len(KINDS))).items():
            if kind not in KINDS:
                continue
            prompts = [WeightedPrompt(self.model, case) for case in cases]
            chances = np.stack(
                [
                    painter.probabilities(painter.paint([shipped(prompt, weight) for prompt in prompts]), cases)
                    for weight in RISING
                ]
            )
            rises += monotone(chances).tolist()
            gains += (chances[-1] - chances[0]).tolist()
        self.add(BenchmarkRow("prompt weights 0.5, 1, 2", {"monotone": np.array(rises), "gain": np.array(gains)}))

    def own_subjects(self) -> None:
        """Five photographs of each of a few held-out subjects: their mean, and the reference that is tuned to them."""
        if not self.own:
            return
        subjects = spread(self.world.groups["held-out nouns"], self.own)
        prompts = draw_prompts(self.world, subjects, self.count, 1, 67)
        models = Models.load(*self.paths, "auto", ProcessGroup(0, 1, torch.device("cpu")))
        before, after, shown = {}, {}, {}
        with tempfile.TemporaryDirectory() as name:
            folder, output = Path(name) / "photographs", Path(name) / "tuned.safetensors"
            for number, subject in enumerate(subjects):
                write_photographs(self.world, subject, folder, (67, number))
                shown[subject] = next(opened(folder))[0]
                before[subject] = Reference(zero_shot(folder).source, noun=subject.noun)
                noun, config = subject.noun, TuningConfig()
                after[subject] = tuned(folder, models, self.world.size, config, name=noun, noun=noun, output=output)
        rows = []
        for name, references in (("mean of five photographs", before), ("tuned to five photographs", after)):
            images = self.kosmos.generate([p.marks for p in prompts], [[references[p.identities[0]]] for p in prompts])
            on_sheet = [[shown[p.identities[0]]] for p in prompts]
            rows.append(self.judged(f"{name}, held-out nouns", images, prompts, on_sheet))
        self.differences.append(rows[1].compare(rows[0]))

    def run(self) -> None:
        """Every row."""
        parts = (
            self.bounds,
            self.subjects,
            self.text_kept,
            self.swapped,
            self.turned,
            self.guard,
            self.binding,
            self.edited,
            self.weights,
            self.own_subjects,
        )
        for part in parts:
            part()


def spread(subjects: Sequence[Identity], count: int) -> list[Identity]:
    """So many of the subjects, at equal distances; all where there are fewer."""
    count = min(count, len(subjects))
    return [subjects[number * len(subjects) // count] for number in range(count)]


def monotone(chances: np.ndarray) -> np.ndarray:
    """1 for a prompt whose chance never falls as its weight rises, else 0: chances (weights, n) -> (n,)."""
    return (np.diff(chances, axis=0) > -ENOUGH).all(0).astype(float)


def background_followed(image: Pixels, case: Edit) -> bool:
    """Whether a background is the one that the instruction names."""
    return background_colour(image) == case.prompt.background.colour


def grey_followed(image: Pixels, case: Edit) -> bool:
    """Whether an object has lost its colours."""
    return object_is_grey(image)


def markdown(report: dict) -> str:
    """The report as a table; a cell is the mean with its interval."""
    metrics = list(dict.fromkeys(m for row in report["rows"] + report["differences"] for m in row if m not in OF_ROW))
    lines = ["| row | subjects | " + " | ".join(metrics) + " |", "|---" * (len(metrics) + 2) + "|"]
    for row in report["rows"] + report["differences"]:
        cells = [f"{row[m][0]:.3f} [{row[m][1]:.3f}, {row[m][2]:.3f}]" if m in row else "" for m in metrics]
        lines.append(f"| {row['row']} | {row.get('subjects', '')} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


OF_ROW = ("row", "prompts", "subjects")


def picture_sheet(rows: list[tuple[BenchmarkRow, list[Pixels] | None]]) -> Image.Image:
    """The first pictures of every row, below the references that they were given."""
    blocks = []
    for row, references in rows:
        if row.images is None:
            continue
        shown = [sheet.text(row.name, SHOWN * SIDE, 14)]
        if references is not None:
            small = [sheet.padded(enlarged(image, SIDE // 2), SIDE // 4, 2) for image in references]
            shown.append(sheet.row(small))
        shown.append(sheet.row([enlarged(image, SIDE) for image in row.images[:SHOWN]]))
        blocks.append(sheet.column(shown, 2))
    return sheet.page(sheet.column(blocks, 14))


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=ASSETS / "emoji-world-kosmos-g.safetensors")
    parser.add_argument("--sd", default=str(ASSETS / "emoji-world-sd.safetensors"), help="diffusers folder or file")
    parser.add_argument("--clip", default=str(ASSETS / "clip"), help="folder of CLIP, for an --sd that is a file")
    parser.add_argument("--world", choices=WORLD_NAMES, default="full", help="which says what is held out")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmark"))
    parser.add_argument("--count", type=whole_number(1), default=96, help="prompts of each row")
    parser.add_argument(
        "--tuned", type=whole_number(0), default=8, help="subjects that references are tuned to (0: those rows not)"
    )
    parser.add_argument("--steps", type=whole_number(1), default=8, help="sampling steps")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default=faster_on_cpu(), help="of the U-Net")
    arguments = parser.parse_args(words)
    if (arguments.output / "benchmark.json").exists():
        parser.error(f"--output: {arguments.output} holds a benchmark already; choose another folder")
    if arguments.output.is_file():
        parser.error(f"--output: {arguments.output} is a file; choose a folder")
    started = time.monotonic()
    world = EmojiWorld.named(arguments.world)
    settings = {"steps": arguments.steps, "precision": arguments.precision}
    if Path(arguments.sd).is_file():
        settings["clip_folder"] = arguments.clip
        require_file(parser, "--clip", Path(arguments.clip), "config.json", "the folder of CLIP's text half")
    with refused_by(parser):  # leaves no folder
        benchmark = Benchmark(world, arguments.weights, arguments.sd, arguments.count, arguments.tuned, settings)
        arguments.output.mkdir(parents=True, exist_ok=True)
    benchmark.run()
    rows = [row.summary() for row, _ in benchmark.rows]
    settings = {"weights": arguments.weights.name, "world": arguments.world, "steps": arguments.steps}
    settings |= {"count": arguments.count, "tuned": arguments.tuned, "feature nets": list(benchmark.judges)}
    settings |= {"minutes": round((time.monotonic() - started) / 60, 1)}
    report = {"settings": settings, "rows": rows, "differences": benchmark.differences}
    write_file(arguments.output / "benchmark.json", json.dumps(report, indent=1) + "\n")
    write_file(arguments.output / "benchmark.md", table := markdown(report))
    with atomic_write(arguments.output / "benchmark.png") as file:
        picture_sheet(benchmark.rows).save(file, "PNG")
    print(table)


if __name__ == "__main__":
    main()
