"""`coco`: FID on captions of COCO's 2014 validation pictures, of Kosmos-G and of Stable Diffusion in one run."""

from __future__ import annotations

import json
import random
import sys
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

from ..base.errors import ConfigError
from ..base.processes import ProcessGroup
from ..base.text import decode_text
from .command_options import contents_of_jobs, open_generators, open_output, sampling_of
from .fid import PROTOCOLS, ImageFiles, check_extractor, frechet_distance, name_of_reals, treatments, warning_of_size
from .generate import generate
from .image_generator import SD_ROW, Sampling
from .jobs import Job
from .output_folder import OutputFolder
from .score import require_generated
from .subjects import check_images, image_files
from .table import markdown

CAPTIONS, SEED = 30_000, 0
SAMPLER, STEPS, GUIDANCE = "ddim", 250, 3.0  # arXiv 2310.02992, section 4.2
PUBLISHED = {"Kosmos-G (its paper)": 10.99, "Stable Diffusion 1.5 (Kosmos-G's paper)": 9.34}


def run(options: Namespace, process_group: ProcessGroup) -> None:
    """The whole command: generate each row's pictures, then FID under both protocols, as results.json and table.md."""
    captions = sample_captions(options.annotations, options.captions)
    reals = real_images(options.images)
    rows = {"kosmosg": str(options.weights), SD_ROW: SD_ROW}
    rows = {name: rows[name] for name in options.rows}
    jobs = {name: caption_jobs(captions, name) for name in rows}
    sampling = sampling_of(options, SAMPLER, STEPS, GUIDANCE)
    if options.only == "score":
        for own in jobs.values():
            require_generated(own, OutputFolder(options.output))
    else:
        make = open_generators(options, {name: (rows[name], jobs[name]) for name in rows}, sampling, process_group)
    if options.only != "generate" and not process_group.rank:
        check_extractor(options.inception, options.extractor, options.layer)
        check_images(reals)
        if warning := warning_of_size(len(captions), len(reals)):
            print(warning, file=sys.stderr)
    folder, sampling = open_output(
        options,
        sampling,
        process_group,
        lambda: contents_of_jobs(options, rows.values(), [job for own in jobs.values() for job in own]),
        weights=str(options.weights),
        captions=len(captions),
        annotations=Path(options.annotations).name,
    )
    if options.only != "score":
        for name in rows:
            generate(jobs[name], make[name], folder, process_group, options.batch_size)
    if options.only == "generate" or process_group.rank:
        return
    distances = {}
    for name in rows:
        require_generated(jobs[name], folder)
        paths = [folder.path / job.path for job in jobs[name]]
        distances[name] = {}
        for protocol in PROTOCOLS:
            for_fakes, for_reals = treatments(protocol)
            distances[name][protocol] = frechet_distance(
                ImageFiles(paths, for_fakes),
                ImageFiles(reals, for_reals),
                inception=options.inception,
                cache=options.statistics or folder.path / "statistics",
                device=process_group.device,
                reals_name=name_of_reals(reals, protocol, options.inception),
                extractor=options.extractor,
                layer=options.layer,
            )
            print(f"FID {name} ({protocol}): {distances[name][protocol]:.3f}")
    _report(folder, distances, sampling, len(captions), len(reals))


def sample_captions(annotations: str | Path, count: int | None) -> list[tuple[int, str]]:
    """(image id, caption) of `count` captions drawn by seed 0, as the original draws its 30,000; all if None is left.

    ConfigError where the file is not COCO's captions or has fewer.
    """
    try:
        entries = json.loads(decode_text(Path(annotations).read_bytes()))["annotations"]
        found = [(int(entry["image_id"]), str(entry["caption"])) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ConfigError(
            f"--annotations: {annotations} holds no COCO captions ({error!r:.100}); give captions_val2014.json"
        ) from error
    count = min(CAPTIONS, len(found)) if count is None else count
    if count > len(found):
        raise ConfigError(f"--captions: {count} are asked for, {annotations} holds {len(found)}")
    return random.Random(SEED).sample(found, count)


def real_images(folder: str | Path) -> list[Path]:
    """All pictures of a folder by name; ConfigError where there are fewer than two."""
    folder = Path(folder)
    found = image_files(folder) if folder.is_dir() else []
    if len(found) < 2:
        raise ConfigError(f"--images: {folder} holds {len(found)} pictures; give the folder of val2014's pictures")
    return found


def caption_jobs(captions: list[tuple[int, str]], row: str) -> list[Job]:
    """A job for each caption; the same caption has the same noise in every row."""
    jobs = []
    for index, (image, caption) in enumerate(captions):
        text = caption.replace("<i>", "").strip()
        jobs.append(Job(f"pictures/{row}/{index:05d}_{image}.png", text, text, seed=index))
    return jobs


def _report(folder: OutputFolder, distances: dict, sampling: Sampling, captions: int, reals: int) -> None:
    title = (
        f"COCO FID: {captions} captions against {reals} real pictures; {sampling.scheduler}, {sampling.steps} steps, "
        f"guidance {sampling.guidance:g}, {sampling.size} px"
    )
    rows = {name: dict(found) for name, found in distances.items()}
    if captions == CAPTIONS:
        rows |= {f"published: {name}": {"kosmosg": value} for name, value in PUBLISHED.items()}
    warning = warning_of_size(captions, reals)
    table = markdown(title, rows, {protocol: f"FID, {protocol}" for protocol in PROTOCOLS}, warning)
    results = {"fid": distances, "captions": captions, "reals": reals, "sampling": asdict(sampling)}
    if warning:
        results["warning"] = warning
    folder.write("results.json", json.dumps(results, indent=2) + "\n")
    folder.write("table.md", table)
    print(table, end="")
