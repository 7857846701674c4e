"""`compare`: the same prompts and noise through several models, side by side on one page (paper, figure 6)."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from kosmos_core import Prompt, PromptError
from kosmos_core.file_names import file_name_parts

from ..base.errors import ConfigError
from ..base.precision import DTYPES
from ..base.processes import ProcessGroup
from ..base.text import decode_text
from ..base.yaml_text import load_yaml
from .command_options import contents_of_jobs, open_generators, open_output, sampling_of
from .feature_networks import FeatureNets
from .generate import generate
from .image_generator import SD_ROW, Sampling
from .jobs import Job
from .output_folder import OutputFolder
from .page import PAGE, figure
from .subjects import check_images, open_image

SAMPLER, STEPS, GUIDANCE = "dpmsolver++", 50, 6.0


@dataclass(frozen=True)
class PromptEntry:
    """One entry of the prompt file: the prompt, the pictures of its `<i>` marks, and the prompt in plain words."""

    prompt: str
    images: tuple[Path, ...]
    text: str


def run(options: Namespace, process_group: ProcessGroup) -> None:
    """The whole command: generate, score where DINO and CLIP are given, and write index.html and scores.json."""
    entries = read_prompts(options.prompts)
    check_images([path for entry in entries for path in entry.images])
    models = model_names(options.weights)
    for weights in models.values():
        if weights != SD_ROW and not Path(weights).is_file():
            raise ConfigError(f"--weights: {weights} is no file; give Kosmos-G files, or '{SD_ROW}' for SD's own text")
    if twice := next((seed for seed in options.seeds if options.seeds.count(seed) > 1), None):
        raise ConfigError(f"--seeds: {twice} is there twice, and would give the same pictures twice; name it once")
    if bool(options.dino) != bool(options.clip):
        given, other = ("dino", "clip") if options.dino else ("clip", "dino")
        raise ConfigError(f"--{given}: scores need --{other} too; give both, or neither for a page without scores")
    jobs = {name: _jobs(name, entries, options.seeds) for name in models}
    sampling = sampling_of(options, SAMPLER, STEPS, GUIDANCE)
    nets = None
    if options.dino and not process_group.rank:
        nets = FeatureNets(options.dino, options.clip, process_group.device, DTYPES[options.scoring_dtype])
    make = open_generators(options, {name: (models[name], jobs[name]) for name in models}, sampling, process_group)
    folder, sampling = open_output(
        options,
        sampling,
        process_group,
        lambda: contents_of_jobs(options, models.values(), [job for own in jobs.values() for job in own]),
        weights=models,
        seeds=options.seeds,
        prompts=[[entry.prompt, *map(str, entry.images)] for entry in entries],
    )
    for name in models:
        generate(jobs[name], make[name], folder, process_group, options.batch_size)
    if process_group.rank:
        return
    scores = {name: _scores(found, nets, folder) for name, found in jobs.items()}
    folder.write("scores.json", json.dumps({"models": models, "scores": scores}, indent=2) + "\n")
    references = _save_references(entries, folder)
    folder.write("index.html", _page(entries, references, options.seeds, scores, sampling))
    print(f"index.html and scores.json are in {folder.path}")


def read_prompts(path: str | Path) -> list[PromptEntry]:
    """Prompts from YAML: a list of {prompt: "a dog <i> at the beach", images: [dog.jpg]}, pictures relative to it.

    ConfigError names the entry where marks and pictures do not match or a picture is missing.
    """
    path = Path(path)
    try:
        entries = load_yaml(decode_text(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--prompts: {path} cannot be read: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise ConfigError(f"--prompts: {path} must be a list of entries with `prompt` and `images`")
    prompts = []
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str):
            raise ConfigError(f"--prompts: entry {number} of {path} needs `prompt`, it is {entry!r:.120}")
        unknown = set(entry) - {"prompt", "images"}
        if unknown:
            raise ConfigError(f"--prompts: entry {number} of {path} has an unknown key '{sorted(unknown)[0]}'")
        listed = entry.get("images") or []
        if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
            raise ConfigError(
                f"--prompts: entry {number} of {path}: `images` is {listed!r:.100}; expected a list of files"
            )
        images = tuple((path.parent / name).resolve() for name in listed)
        for image in images:
            if not image.is_file():
                raise ConfigError(f"--prompts: entry {number} of {path} names {image}, which is no file")
        try:
            parsed = Prompt.parse(entry["prompt"], images=len(images))
        except PromptError as error:
            raise ConfigError(f"--prompts: entry {number} of {path}: {error}") from error
        words = "".join(getattr(segment, "text", "") for segment in parsed.segments)
        prompts.append(PromptEntry(entry["prompt"], images, " ".join(words.split())))
    return prompts


def model_names(weights: Sequence[str]) -> dict[str, str]:
    """A short name for each weight file: its stem, numbered where stems repeat."""
    names: dict[str, str] = {}
    for path in weights:
        stem = path if path == SD_ROW else Path(path).stem
        name, number = stem, 2
        while name in names:
            name, number = f"{stem}-{number}", number + 1
        try:
            file_name_parts(name)
        except ValueError as error:
            raise ConfigError(
                f"--weights: {path} would have its pictures in a folder {name[:130]!r}; {error}"
            ) from error
        names[name] = path
    return names


def _jobs(model: str, entries: Sequence[PromptEntry], seeds: Sequence[int]) -> list[Job]:
    return [
        Job(f"pictures/{model}/{number:03d}_{seed}.png", entry.prompt, entry.text, entry.images, (model,), seed)
        for number, entry in enumerate(entries)
        for seed in seeds
    ]


def _scores(jobs: Sequence[Job], nets: FeatureNets | None, folder: OutputFolder) -> list[dict[str, Any]]:
    """A record for each picture; with networks DINO and CLIP-I to the shown pictures (mean) and CLIP-T."""
    records = [job.record() for job in jobs]
    if nets is None:
        return records
    results = nets.of_images([folder.path / job.path for job in jobs])
    texts = nets.of_texts([job.text or "a picture" for job in jobs])
    for row, (job, record) in enumerate(zip(jobs, records, strict=True)):
        record["clip_t"] = float(results.clip[row] @ texts[row]) if job.text else None
        if job.conditions:
            shown = nets.of_images(job.conditions)
            record["dino"] = float((shown.dino @ results.dino[row]).mean())
            record["clip_i"] = float((shown.clip @ results.clip[row]).mean())
    return records


def _save_references(entries: Sequence[PromptEntry], folder: OutputFolder) -> list[list[str]]:
    """Small copies of the shown pictures beside the page, so that the folder can be moved."""
    saved = []
    for number, entry in enumerate(entries):
        saved.append([])
        for place, path in enumerate(entry.images):
            image = open_image(path)
            image.thumbnail((512, 512))
            name = f"references/{number:03d}_{place}.png"
            folder.write(name, image)
            saved[-1].append(name)
    return saved


def _page(
    entries: Sequence[PromptEntry],
    references: list[list[str]],
    seeds: Sequence[int],
    scores: dict[str, list[dict]],
    sampling: Sampling,
) -> str:
    per_prompt = len(seeds)
    sections = []
    for number, entry in enumerate(entries):
        shown = "".join(figure(name, f"picture {place}") for place, name in enumerate(references[number], 1))
        cells = [f'<div class="column shown"><h3>shown</h3><div class="grid">{shown}</div></div>'] if shown else []
        for name, records in scores.items():
            own = records[number * per_prompt : (number + 1) * per_prompt]
            figures = "".join(figure(record["path"], _caption(record)) for record in own)
            cells.append(f'<div class="column"><h3>{escape(name)}</h3><div class="grid">{figures}</div></div>')
        sections.append(f'<section><h2>{escape(entry.prompt)}</h2><div class="row">{"".join(cells)}</div></section>')
    title = f"Kosmos-G: {', '.join(scores)}"
    note = (
        f"{len(entries)} prompts, seeds {', '.join(map(str, seeds))}, the same noise for every model; "
        f"{sampling.scheduler}, {sampling.steps} steps, guidance {sampling.guidance:g}, {sampling.size} px."
    )
    return PAGE.format(title=escape(title), note=escape(note), sections="\n".join(sections))


def _caption(record: dict[str, Any]) -> str:
    scores = [
        f"{label} {record[metric]:.3f}"
        for label, metric in (("DINO", "dino"), ("CLIP-T", "clip_t"))
        if record.get(metric) is not None
    ]
    return "\n".join([f"seed {record['seed']}", *filter(None, ["  ".join(scores)])])
