"""What the commands make of the options that they share: how pictures are sampled, where they go, what makes them."""

from __future__ import annotations

import hashlib
import json
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch

from kosmos_core.diffusers.stable_diffusion import StableDiffusion

from ..base.content_digest import content_digest, files_below
from ..base.processes import ProcessGroup
from .image_generator import SD_ROW, ImageGenerator, Sampling
from .jobs import Job
from .output_folder import OutputFolder


def sampling_of(options: Namespace, scheduler: str, steps: int, guidance: float) -> Sampling:
    """How pictures are sampled; what the options leave open is the command's own default.

    WeightsError where pictures are to be made and there is nothing at `--sd`: the first thing to be said.
    """
    if getattr(options, "only", None) != "score":
        StableDiffusion(options.sd, option="--sd")
    return Sampling(
        options.scheduler or scheduler,
        options.steps or steps,
        guidance if options.guidance is None else options.guidance,
        options.size,
    )


def open_output(
    options: Namespace,
    sampling: Sampling,
    process_group: ProcessGroup,
    contents: Callable[[], dict[str, str]],
    **asked: Any,
) -> tuple[OutputFolder, Sampling]:
    """The output folder, begun or resumed, and how its pictures are sampled.

    With `--only score` models and sampling are taken from the record of the pictures, not from the options. `contents`
    gives digests of what decides the pictures, `asked` is what the record holds besides. ConfigError where the folder
    holds something else: before anything is written.
    """
    folder = OutputFolder(options.output, process_group.rank)
    settings = {"command": options.command, "sd": str(options.sd), "dtype": options.dtype, **asdict(sampling), **asked}
    scoring = getattr(options, "only", None) == "score"
    if scoring:
        recorded, names = folder.settings(), [field.name for field in fields(Sampling)]
        settings |= {key: recorded[key] for key in ("weights", "sd", "dtype", *names) if key in recorded}
        sampling = Sampling(**{name: settings[name] for name in names})
    folder.start(settings, options.resume or scoring, process_group, contents)
    return folder, sampling


def open_generators(
    options: Namespace, rows: Mapping[str, tuple[str, Sequence[Job]]], sampling: Sampling, process_group: ProcessGroup
) -> dict[str, Callable[[], ImageGenerator]]:
    """What makes the pictures of each row, {name: (weights, jobs)}, all of it opened once before anything is painted.

    Each is loaded, and forgotten but for the first that has pictures to make, so that memory holds one at a time; where
    all pictures of all rows are there, none is. WeightsError or ConfigError where one cannot be used.
    """
    missing = [
        name for name, (_, jobs) in rows.items() if any(not Path(options.output, job.path).exists() for job in jobs)
    ]
    make = {
        name: partial(
            ImageGenerator,
            weights,
            options.sd,
            sampling,
            device=process_group.device,
            dtype=options.dtype,
            clip_tokenizer=getattr(options, "clip_tokenizer", None),
        )
        for name, (weights, _) in rows.items()
    }
    for name in missing[:0:-1]:
        make[name](device=torch.device("cpu"))
    if missing:
        opened = [make[missing[0]]()]
        again = make[missing[0]]
        make[missing[0]] = lambda: opened.pop() if opened else again()
    return make


def contents_of_jobs(options: Namespace, weights: Iterable[str], jobs: Sequence[Job]) -> dict[str, str]:
    """Digests of everything that decides the pictures of jobs, by the name that a person knows it by.

    With `--only score` models are not looked at: they are not needed, and need not be there.
    """
    tuned = sorted({path for job in jobs for path in job.tuned})
    told = [[job.path, job.prompt, job.text, list(job.subjects), job.seed, job.row, job.rows] for job in jobs]
    found = {"the prompts and their noise": hashlib.blake2b(json.dumps(told).encode(), digest_size=16).hexdigest()}
    sources: dict[str, Path] = {}
    for path in sorted({path for job in jobs for path in job.conditions}):
        name = f"the picture {'/'.join(path.parts[-2:])}"
        sources[f"the picture {path}" if name in sources else name] = path
    if getattr(options, "only", None) != "score":
        sources |= {f"--tuned {path}": path for path in tuned}
        sources |= {f"--weights {own}": Path(own) for own in weights if own != SD_ROW}
        sources[f"--sd {options.sd}"] = StableDiffusion(options.sd, option="--sd").path
    return found | {name: content_digest(*files_below(path)) for name, path in sources.items()}
