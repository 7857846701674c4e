"""Which subjects a command is about: one folder of photographs, or a list of subjects in DreamBench's layout."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

from kosmos_core.file_names import LONGEST_PART
from kosmos_core.reference import Encoded, Reference
from kosmos_core.safetensors_file import WeightsError
from kosmos_core.weights import read_config

from ..base.errors import ConfigError
from ..evaluate.subjects import DREAMBENCH, read_subjects, subject_images
from .photographs import Note, Sizes, read_photographs
from .subject_run import SubjectTask

SUFFIX = ".safetensors"
BUILT_IN = "dreambench"


def tasks_of(options: Namespace, note: Note) -> list[SubjectTask]:
    """The subjects with their photographs, all of which have been read: what is wrong with one is told before the first
    step of any. ConfigError."""
    noun = _checked("--noun", noun=" ".join(options.noun.split()))
    _checked("--weight", weight=options.weight)
    output, sizes = Path(options.output), Sizes(options.size, _seen(options.weights))
    if not options.subjects:
        if (length := len(os.fsencode(output.name))) > LONGEST_PART:
            raise ConfigError(
                f"--output: the name {output.name[:20]}… has {length} bytes, expected at most {LONGEST_PART}."
            )
        if output.is_dir() or output.suffix != SUFFIX:
            raise ConfigError(f"--output: {output} is no name of a {SUFFIX} file; give one, such as rex{SUFFIX}.")
        photographs = read_photographs(options.images, sizes, note)
        return [SubjectTask(output.stem, noun, options.weight, photographs, output)]
    if output.exists() and not output.is_dir():
        raise ConfigError(f"--output: {output} is a file; with --subjects give a folder for one file per subject.")
    subjects = DREAMBENCH if options.subjects == BUILT_IN else read_subjects(options.subjects)
    folders = [subject_images(options.images, subject, "--images")[0].parent for subject in subjects.subjects]
    tasks = [
        SubjectTask(
            subject.name,
            _checked(f"--subjects: subject '{subject.name}'", noun=" ".join(subject.noun.split())),
            options.weight,
            read_photographs(folder, sizes, note, f"--images, subject '{subject.name}'"),
            output / f"{subject.name}{SUFFIX}",
        )
        for subject, folder in zip(subjects.subjects, folders, strict=True)
    ]
    try:
        for folder in (output, *(task.output.parent for task in tasks)):  # a name may have folders of its own
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output: {output} cannot be made ({error.strerror}); choose another folder.") from error
    return tasks


def _checked(option: str, **own: Any) -> str:
    """The noun, if that is given; ConfigError, which begins with `option`, where a reference cannot have noun or
    weight."""
    try:
        return Reference(Encoded(torch.zeros(1, 1), "", ""), **own).noun
    except ValueError as error:
        raise ConfigError(f"{option}: {error}") from error


def _seen(weights: str) -> int:
    """Side of the pictures that the encoder sees."""
    try:
        return read_config(weights)[0].vision.image_size
    except WeightsError as error:
        raise WeightsError(f"--weights: {error}") from error
