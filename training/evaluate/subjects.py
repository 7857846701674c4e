"""DreamBench: 30 subjects, 25 prompts for each of their two kinds, and the one picture of each that Kosmos-G sees.

Subjects, class nouns and prompts are those of the DreamBooth data set (arXiv 2208.12242, `google/dreambooth`); the
picked pictures are those of Kosmos-G's own evaluation (arXiv 2310.02992, figure 8).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from kosmos_core import images as core_images
from kosmos_core.file_names import file_name_parts
from kosmos_core.images import is_image_name

from ..base.errors import ConfigError
from ..base.text import decode_text
from ..base.yaml_text import load_yaml

MASK = ".mask.png"  # behind a photograph's name without its ending; `training.personalize` reads it


@dataclass(frozen=True)
class Subject:
    """One subject: the name of its folder, its class noun, which prompts it gets, and the file that stands for it."""

    name: str
    noun: str
    kind: str
    picked: str


@dataclass(frozen=True)
class SubjectSet:
    """Subjects and, for each kind of them, prompts with `{}` in the noun's place."""

    name: str
    subjects: tuple[Subject, ...]
    prompts: dict[str, tuple[str, ...]]

    def named(self, name: str) -> Subject:
        """The subject with this folder name; ConfigError where there is none."""
        for subject in self.subjects:
            if subject.name == name:
                return subject
        raise ConfigError(
            f"'{name}' is no subject of {self.name}; known are {', '.join(x.name for x in self.subjects)}"
        )


_OBJECTS = {
    "backpack": ("backpack", "02"),
    "backpack_dog": ("backpack", "02"),
    "bear_plushie": ("stuffed animal", "03"),
    "berry_bowl": ("bowl", "02"),
    "can": ("can", "01"),
    "candle": ("candle", "02"),
    "clock": ("clock", "03"),
    "colorful_sneaker": ("sneaker", "01"),
    "duck_toy": ("toy", "01"),
    "fancy_boot": ("boot", "02"),
    "grey_sloth_plushie": ("stuffed animal", "04"),
    "monster_toy": ("toy", "04"),
    "pink_sunglasses": ("glasses", "04"),
    "poop_emoji": ("toy", "00"),
    "rc_car": ("toy", "03"),
    "red_cartoon": ("cartoon", "00"),
    "robot_toy": ("toy", "00"),
    "shiny_sneaker": ("sneaker", "01"),
    "teapot": ("teapot", "04"),
    "vase": ("vase", "02"),
    "wolf_plushie": ("stuffed animal", "04"),
}
_LIVE = {
    "cat": ("cat", "04"),
    "cat2": ("cat", "02"),
    "dog": ("dog", "02"),
    "dog2": ("dog", "02"),
    "dog3": ("dog", "05"),
    "dog5": ("dog", "00"),
    "dog6": ("dog", "02"),
    "dog7": ("dog", "01"),
    "dog8": ("dog", "04"),
}
_PLACES = (
    "a {} in the jungle",
    "a {} in the snow",
    "a {} on the beach",
    "a {} on a cobblestone street",
    "a {} on top of pink fabric",
    "a {} on top of a wooden floor",
    "a {} with a city in the background",
    "a {} with a mountain in the background",
    "a {} with a blue house in the background",
    "a {} on top of a purple rug in a forest",
)
_OBJECT_PLACES = (
    "a {} with a wheat field in the background",
    "a {} with a tree and autumn leaves in the background",
    "a {} with the Eiffel Tower in the background",
    "a {} floating on top of water",
    "a {} floating in an ocean of milk",
    "a {} on top of green grass with sunflowers around it",
    "a {} on top of a mirror",
    "a {} on top of the sidewalk in a crowded street",
    "a {} on top of a dirt road",
    "a {} on top of a white rug",
)
_OUTFITS = (
    "a {} wearing a red hat",
    "a {} wearing a santa hat",
    "a {} wearing a rainbow scarf",
    "a {} wearing a black top hat and a monocle",
    "a {} in a chef outfit",
    "a {} in a firefighter outfit",
    "a {} in a police outfit",
    "a {} wearing pink glasses",
    "a {} wearing a yellow shirt",
    "a {} in a purple wizard outfit",
)
_PROPERTIES = ("a red {}", "a purple {}", "a shiny {}", "a wet {}", "a cube shaped {}")

DREAMBENCH = SubjectSet(
    name="DreamBench",
    subjects=tuple(
        Subject(name, noun, kind, f"{picked}.jpg")
        for kind, table in (("object", _OBJECTS), ("live", _LIVE))
        for name, (noun, picked) in table.items()
    ),
    prompts={"object": _PLACES + _OBJECT_PLACES + _PROPERTIES, "live": _PLACES + _OUTFITS + _PROPERTIES},
)


def read_subjects(path: str | Path) -> SubjectSet:
    """Read a user's own subjects from YAML:

        name: my set
        prompts: {object: ["a {} on the beach", "a red {}"]}
        subjects: [{name: mug, noun: mug, kind: object, picked: 00.jpg}]

    `name` of a subject is its folder below the data folder, and so part of the paths of its results. ConfigError says
    which entry is wrong.
    """
    try:
        content = load_yaml(decode_text(Path(path).read_bytes()))
    except (OSError, ValueError) as error:
        raise ConfigError(f"the subject list {path} cannot be read: {error}") from error
    if not isinstance(content, dict) or not content.get("subjects") or not isinstance(content.get("prompts"), dict):
        raise ConfigError(f"the subject list {path} needs `prompts` (a list for each kind) and `subjects`")
    for kind, entries in content["prompts"].items():
        if not isinstance(entries, list) or not entries or not all(isinstance(entry, str) for entry in entries):
            raise ConfigError(f"{path}: the prompts of '{kind}' are {entries!r:.100}; expected a list of sentences")
    if unknown := [key for key in content if key not in ("name", "prompts", "subjects")]:
        raise ConfigError(f"{path}: `{unknown[0]}` is no key of a subject list; expected name, prompts and subjects")
    if not isinstance(content["subjects"], list):
        raise ConfigError(f"{path}: `subjects` is {content['subjects']!r:.100}; expected a list")
    prompts = {str(kind): tuple(entries) for kind, entries in content["prompts"].items()}
    for prompt in (prompt for entries in prompts.values() for prompt in entries):
        if prompt.count("{}") != 1:
            raise ConfigError(f"{path}: the prompt {prompt!r} must have {{}} exactly once, in the noun's place")
    subjects = []
    for number, entry in enumerate(content["subjects"], 1):
        try:
            subject = Subject(**entry)
        except TypeError as error:
            raise ConfigError(
                f"{path}: subject {number} is {entry!r}; it needs exactly name, noun, kind and picked"
            ) from error
        if other := next((key for key, value in entry.items() if not isinstance(value, str)), None):
            raise ConfigError(  # YAML reads 01 as 1, no as False and nothing as None
                f"{path}: the {other} of subject {number} is {entry[other]!r}; expected a text: put it in quotes"
            )
        try:
            file_name_parts(subject.name)
        except ValueError as error:
            raise ConfigError(f"{path}: the name of subject {number} is {subject.name[:130]!r}; {error}") from error
        if not subject.noun.strip() or "<i>" in subject.noun:
            raise ConfigError(
                f"{path}: the noun of subject '{subject.name}' is {subject.noun!r}; expected a word for it"
            )
        if subject.kind not in prompts:
            raise ConfigError(f"{path}: subject '{subject.name}' is of kind '{subject.kind}', which has no prompts")
        subjects.append(subject)
    names = [subject.name for subject in subjects]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"{path}: there are two subjects '{twice}', whose results would overwrite each other")
    return SubjectSet(str(content.get("name", Path(path).stem)), tuple(subjects), prompts)


def subject_images(data: str | Path, subject: Subject, option: str = "--data") -> list[Path]:
    """All pictures of a subject in `data` or `data/dataset`, in the order of their names, without their masks.

    ConfigError where the folder or the picked picture is missing; it names the `option` that gave `data`.
    """
    folders = [Path(data, subject.name), Path(data, "dataset", subject.name)]
    folder = next((folder for folder in folders if folder.is_dir()), None)
    if folder is None:
        raise ConfigError(
            f"the subject '{subject.name}' has no folder {folders[0]} or {folders[1]}; give {option} the folder that "
            "holds one folder per subject (a clone of google/dreambooth, or its dataset folder)"
        )
    images = [path for path in image_files(folder) if not path.name.lower().endswith(MASK)]
    if folder / subject.picked not in images:
        raise ConfigError(
            f"{folder} has no {subject.picked}, which stands for '{subject.name}'; it holds "
            f"{', '.join(path.name for path in images) or 'no pictures'}: fetch the data set again"
        )
    return images


def image_files(folder: Path) -> list[Path]:
    """The pictures of a folder by name; hidden files, such as macOS's `._01.jpg`, are none."""
    return sorted(path for path in folder.iterdir() if is_image_name(path.name) and not path.name.startswith("."))


def open_image(path: str | Path) -> Image.Image:
    """A picture file as everything else here reads it, see `kosmos_core.images.open_image`.

    ConfigError names a file that cannot be read to its end. None of DreamBench's 159 pictures has an EXIF tag that
    turns it, or transparency: there the original's evaluation, which heeds neither, sees the same pixels.
    """
    try:
        return core_images.open_image(path)
    except core_images.ImageError as error:
        what = str(error)
        raise ConfigError(f"{what[0].lower()}{what[1:-1]}; replace or remove the file") from error


def check_images(paths: Iterable[Path]) -> None:
    """Read every picture once, so that a broken one stops the command at its beginning and not after hours."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for _ in pool.map(_check_image, sorted(set(paths))):
            pass


def _check_image(path: Path) -> None:
    open_image(path)  # and let it go: the pictures of COCO do not fit into memory
