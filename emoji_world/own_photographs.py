"""Photographs of one subject, as its owner would take them, and the reference that is made of them or tuned to them."""

import contextlib
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from kosmos_core import Reference
from kosmos_core.crops import crop_subject
from kosmos_core.reference import average
from training.base.signals import StopSignal, numbers
from training.personalize.photographs import Sizes, read_photographs
from training.personalize.subject_run import Models, SubjectTask, tune_all
from training.personalize.tuning import TuningConfig

from .scenes import EmojiWorld, Identity


def write_photographs(
    world: EmojiWorld, identity: Identity, folder: Path, seed: Sequence[int], count: int = 5, masks: bool = True
) -> Path:
    """Scenes of an identity with captions and, if so, masks; those of a seed are the same, however many are taken."""
    rng = np.random.default_rng(list(seed))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number in range(count):
        scene = world.draw(rng, [identity])
        pixels, (mask,) = world.render(scene)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(f"<i> {scene.background.phrase}")
        if masks:
            Image.fromarray(mask).save(folder / f"{number:02}.mask.png")
    return folder


def opened(folder: Path) -> Iterator[tuple[np.ndarray, np.ndarray, str]]:
    """Pixels, mask and caption of each photograph."""
    for path in sorted(folder.glob("[0-9][0-9].png")):
        mask = path.with_suffix(".mask.png")
        pixels = np.asarray(Image.open(path))
        inside = np.asarray(Image.open(mask)) > 0 if mask.exists() else np.ones(pixels.shape[:2], bool)
        yield pixels, inside, path.with_suffix(".txt").read_text()


def zero_shot(folder: Path) -> Reference:
    """The start of the tuning: the mean of the photographs that are not held out, cut out on white."""
    crops = [crop_subject(pixels, mask) for pixels, mask, _ in opened(folder)]
    views = [Reference.of_crop(crop) for crop in (crops[:-1] or crops)]
    return average(views, keep_norm=True)


def tuned(
    folder: Path, models: Models, size: int, config: TuningConfig, name: str, noun: str, output: Path
) -> Reference:
    """The reference tuned to the photographs, of pictures of `size` pixels; `output` is its file, made anew."""
    sizes = Sizes(size, models.encoder.config.vision.image_size)
    output.unlink(missing_ok=True)
    task = SubjectTask(name, noun, 1.0, read_photographs(folder, sizes, print), output)
    with own_signals(), torch.enable_grad():
        if not tune_all([task], models, config, StopSignal(), False, print):
            raise SystemExit("stopped; the same command goes on")
    return Reference.load(output)


@contextlib.contextmanager
def own_signals() -> Iterator[None]:
    """Give the signals back that a command takes for itself while within."""
    before = {number: signal.getsignal(number) for number in numbers()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
