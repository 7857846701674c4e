"""What the commands make of the options that they share: how pictures are sampled, where they go, what makes them."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import asdict, fields
from functools import partial
from typing import Any

import torch

from kosmos_core.diffusers.stable_diffusion import StableDiffusion

from ..base.processes import ProcessGroup
from .image_generator import ImageGenerator, Sampling
from .output_folder import OutputFolder


def sampling_of(options: Namespace, scheduler: str, steps: int, guidance: float) -> Sampling:
    """How pictures are sampled; what the options leave open is the command's own default."""
    return Sampling(
        options.scheduler or scheduler,
        options.steps or steps,
        guidance if options.guidance is None else options.guidance,
        options.size,
    )


def open_output(
    options: Namespace, sampling: Sampling, process_group: ProcessGroup, **asked: Any
) -> tuple[OutputFolder, Sampling]:
    """The output folder, begun or resumed, and how its pictures are sampled.

    With `--only score` models and sampling are taken from the record of the pictures, not from the options. `asked` is
    what the record holds besides. ConfigError where the folder holds something else, WeightsError where there is
    nothing at `--sd`: before anything is written.
    """
    folder = OutputFolder(options.output, process_group.rank)
    settings = {"command": options.command, "sd": str(options.sd), "dtype": options.dtype, **asdict(sampling), **asked}
    scoring = getattr(options, "only", None) == "score"
    if scoring:
        recorded, names = folder.settings(), [field.name for field in fields(Sampling)]
        settings |= {key: recorded[key] for key in ("weights", "sd", "dtype", *names) if key in recorded}
        sampling = Sampling(**{name: settings[name] for name in names})
    else:
        StableDiffusion(options.sd, option="--sd")
    folder.start(settings, options.resume or scoring, process_group)
    return folder, sampling


def generator_factory(
    options: Namespace, weights: str, sampling: Sampling, device: torch.device
) -> Callable[[], ImageGenerator]:
    """What loads the models of one row, when there is something to generate."""
    return partial(
        ImageGenerator,
        weights,
        options.sd,
        sampling,
        device=device,
        dtype=options.dtype,
        clip_tokenizer=getattr(options, "clip_tokenizer", None),
    )
