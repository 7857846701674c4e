"""`dreambench`: subject-driven pictures of one or of several subjects, generated, scored and tabulated."""

from __future__ import annotations

import json
from argparse import Namespace
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..base.content_digest import content_digest, files_below
from ..base.errors import ConfigError
from ..base.precision import DTYPES
from ..base.processes import ProcessGroup
from .command_options import contents_of_jobs, open_generators, open_output, sampling_of
from .feature_networks import FeatureNets, network_folder
from .generate import generate
from .image_generator import Sampling
from .jobs import Job, dreambench_jobs, pair_jobs
from .output_folder import OutputFolder
from .protocols import PROTOCOLS, PUBLISHED, Protocol
from .score import METRICS, NO_PAIR, References, copy_threshold, echo, oracle, require_generated, score
from .statistics import subject_means, summarise, warning_of_size
from .subject_sheets import subject_sheet
from .subjects import DREAMBENCH, SubjectSet, check_images, read_subjects, subject_images
from .table import markdown
from .tuned import check_tuned, tuned_jobs

HEADINGS = {"dino": "DINO", "clip_i": "CLIP-I", "clip_t": "CLIP-T", "copied": "copies"}


def run(options: Namespace, process_group: ProcessGroup) -> None:
    """The whole command: generate what is missing, score what is unscored, write results.json, table.md and sheets."""
    protocol = PROTOCOLS[options.protocol]
    subjects = read_subjects(options.subjects) if options.subjects else DREAMBENCH
    jobs = zero_shot = _jobs(options, subjects, protocol)
    if options.tuned:
        tuned = tuned_jobs(zero_shot, options.tuned)
        if options.only != "score":
            check_tuned(tuned, options.weights)
        jobs = [*zero_shot, *tuned]
    images = {
        name: _real_images(name, subjects, options.data) for name in sorted({x for job in jobs for x in job.subjects})
    }
    check_images([path for paths in images.values() for path in paths])
    _check_conditions(jobs, images)
    scoring = options.only != "generate"
    if options.only == "score":
        require_generated(jobs, OutputFolder(options.output))
    if scoring and options.copy_threshold is None and all(len(paths) < 2 for paths in images.values()):
        raise ConfigError(NO_PAIR)
    sampling = sampling_of(options, protocol.scheduler, protocol.steps, protocol.guidance)
    if options.only != "score":
        make = open_generators(options, {"": (options.weights, jobs)}, sampling, process_group)
    nets = None
    if scoring:
        nets = FeatureNets(options.dino, options.clip, process_group.device, DTYPES[options.scoring_dtype])
    folder, sampling = open_output(
        options,
        sampling,
        process_group,
        lambda: contents_of_jobs(options, [options.weights], jobs),
        protocol=protocol.name,
        subjects=subjects.name,
        weights=str(options.weights),
        pairs=options.pairs,
        **({"tuned": str(options.tuned)} if options.tuned else {}),
        pictures=len(jobs),
    )
    if options.only != "score":
        generate(jobs, make[""], folder, process_group, options.batch_size)
    if nets is None:
        return
    require_generated(jobs, folder)
    folder.begin_scores(_scorer(options, images) if process_group.rank == 0 else {}, process_group)
    picked = {subject.name: subject.picked for subject in subjects.subjects}
    picked |= {name: path.name for job in jobs for name, path in zip(job.subjects, job.conditions, strict=True)}
    references = References.read(images, picked, nets)
    score(
        jobs, references, nets, folder, process_group, all_references=protocol.all_references, threads=options.threads
    )
    if process_group.rank == 0:
        threshold = copy_threshold(references) if options.copy_threshold is None else options.copy_threshold
        _report(jobs, references, nets, folder, subjects, protocol, sampling, threshold)


def _scorer(options: Namespace, images: dict[str, list[Path]]) -> dict[str, str]:
    """Digests of what decides the scores: the networks, their number format, and the real pictures."""
    found = {f"the real pictures of {name}": (paths, [path.name for path in paths]) for name, paths in images.items()}
    found |= {f"--{name}": files_below(network_folder(getattr(options, name))) for name in ("dino", "clip")}
    digests = {name: content_digest(*files) for name, files in found.items()}
    return digests | {"--scoring-dtype": options.scoring_dtype}


def _jobs(options: Namespace, subjects: SubjectSet, protocol: Protocol) -> list[Job]:
    jobs = (
        pair_jobs(options.pairs, subjects, options.data, protocol)
        if options.pairs
        else dreambench_jobs(subjects, options.data, protocol)
    )
    paths = Counter(job.path for job in jobs)
    if twice := next((job for job in jobs if paths[job.path] > 1), None):
        raise ConfigError(f"--pairs: {options.pairs} has {twice.group} twice, with the same pictures; name it once")
    if options.only_subjects:
        unknown = sorted(set(options.only_subjects) - {job.group for job in jobs})
        if unknown:
            raise ConfigError(
                f"--only-subjects: {unknown[0]} is not among {', '.join(sorted({job.group for job in jobs}))}"
            )
        jobs = [job for job in jobs if job.group in options.only_subjects]
    return jobs


def _check_conditions(jobs: list[Job], images: dict[str, list[Path]]) -> None:
    """Raise ConfigError where a shown picture is not one of its subject's real pictures, which scores compare with."""
    for job in jobs:
        for name, path in zip(job.subjects, job.conditions, strict=True):
            if path.name not in [known.name for known in images[name]]:
                raise ConfigError(f"--pairs: {path} is not among the pictures of '{name}' in --data")


def _real_images(name: str, subjects: SubjectSet, data: str | Path) -> list[Path]:
    subject = next((subject for subject in subjects.subjects if subject.name == name), None)
    if subject is None:
        raise ConfigError(f"'{name}' is no subject of {subjects.name}; describe it with --subjects")
    return subject_images(data, subject)


def _report(
    jobs: list[Job],
    references: References,
    nets: FeatureNets,
    folder: OutputFolder,
    subjects: SubjectSet,
    protocol: Protocol,
    sampling: Sampling,
    threshold: float,
) -> None:
    """Merge all records in the jobs' order, tabulate them beside the other rows, and draw a sheet per subject."""
    found = folder.records("scores")
    scored = [dict(found[job.path], copied=float(found[job.path]["copy"] > threshold)) for job in jobs]
    folder.write("scores.jsonl", "".join(json.dumps(record) + "\n" for record in scored))
    rows_of_jobs = list(zip(scored, jobs, strict=True))
    records = [record for record, job in rows_of_jobs if not job.tuned]
    tuned = [record for record, job in rows_of_jobs if job.tuned]
    metrics = (*METRICS, "copied")
    rows: dict[str, dict[str, Any]] = {
        "real pictures (oracle)": summarise(oracle(references, jobs), metrics),
        "input echoed": summarise(echo(references, jobs, nets, protocol.all_references), metrics),
        "this model": summarise(records, metrics),
    }
    if tuned:
        rows["tuned references"] = summarise(tuned, metrics)
    complete = subjects is DREAMBENCH and all("+" not in job.group for job in jobs)
    if complete and len({job.group for job in jobs}) == len(subjects.subjects):
        for name, figures in PUBLISHED[protocol.name].items():
            rows[f"published: {name}"] = dict(zip(METRICS, figures, strict=True))
    title = (
        f"{subjects.name}, protocol `{protocol.name}`: {len(scored)} pictures, {sampling.scheduler}, "
        f"{sampling.steps} steps, guidance {sampling.guidance:g}, {sampling.size} px. Mean over subjects [95 % "
        f"bootstrap over subjects]; copies: share above {threshold:.3f}."
    )
    warning = warning_of_size(len({job.group for job in jobs}))
    table = markdown(title, rows, HEADINGS, warning)
    results = {
        "protocol": protocol.name,
        "sampling": asdict(sampling),
        "copy_threshold": threshold,
        "rows": rows,
        **({"warning": warning} if warning else {}),
        "subjects": {metric: subject_means(records, metric) for metric in metrics},
        **({"tuned subjects": {metric: subject_means(tuned, metric) for metric in metrics}} if tuned else {}),
    }
    folder.write("results.json", json.dumps(results, indent=2) + "\n")
    folder.write("table.md", table)
    for group in dict.fromkeys(job.group for job in jobs):
        shown = next(job.conditions for job in jobs if job.group == group)
        title = " + ".join(group.replace("_", " ").split("+"))
        for name, found in ((group, records), (f"{group}, tuned", tuned)):
            own = [record for record in found if record["subject"] == group]
            if own:
                folder.write(f"sheets/{name}.png", subject_sheet(title, shown, own, folder.path, threshold))
    print(table, end="")
    print(f"\nresults.json, scores.jsonl, table.md and sheets/ are in {folder.path}")
