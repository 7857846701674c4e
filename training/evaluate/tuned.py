"""Tuned references in the place of DreamBench's pictures: the same prompts and noise, another row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kosmos_core.reference import Encoded, Reference, image_embeddings, load_reference, model_fingerprint
from kosmos_core.safetensors_file import WeightsError
from kosmos_core.weights import read_config

from ..base.errors import ConfigError
from .jobs import Job

SUFFIX = ".safetensors"


def tuned_jobs(jobs: Sequence[Job], folder: str | Path) -> list[Job]:
    """The jobs with the file SUBJECT.safetensors of `folder` for each subject; their pictures go to `tuned/`.

    ConfigError where a subject has none.
    """
    found = []
    for job in jobs:
        files = tuple(Path(folder, f"{name}{SUFFIX}") for name in job.subjects)
        if missing := next((path for path in files if not path.is_file()), None):
            raise ConfigError(
                f"--tuned: {missing} is missing; make it with `python -m training.personalize --subjects`, or leave "
                "its subject out with --only-subjects"
            )
        found.append(replace(job, path=job.path.replace("pictures/", "tuned/", 1), tuned=files))
    return found


def opened(path: Path) -> Reference:
    """The reference of a file without its noun and weight: the words are the protocol's, as in the row of pictures."""
    return Reference(load_reference(path).source)


def check_tuned(jobs: Sequence[Job], weights: str) -> None:
    """ConfigError where a file is damaged, was encoded from a picture only, or belongs to other weights."""
    try:
        config, _ = read_config(weights)
    except WeightsError as error:
        raise WeightsError(f"--weights: {error}") from error
    shape = config.resampler.latents, config.decoder.width

    def fingerprint(whole: bool = False) -> str:
        return model_fingerprint(weights, whole)

    for path in dict.fromkeys(path for job in jobs for path in job.tuned):
        try:
            source = load_reference(path).source
            image_embeddings(source, config.vision.image_size, _no_picture, fingerprint, shape)
        except ValueError as error:
            raise ConfigError(f"--tuned: {error}") from error
        if not (isinstance(source, Encoded) and source.tuned):
            raise ConfigError(
                f"--tuned: {path} was encoded from a picture and not tuned; make it with "
                "`python -m training.personalize`"
            )


def _no_picture(_: object) -> None:
    raise AssertionError("a file's reference holds embeddings")
