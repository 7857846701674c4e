"""The second step: subject and text fidelity of every picture, and the rows that stand beside them in the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from ..base.errors import ConfigError
from ..base.processes import ProcessGroup
from .feature_networks import FeatureNets, ImageFeatures, batches, prefetched
from .jobs import Job
from .output_folder import OutputFolder

METRICS = ("dino", "clip_i", "clip_t")
COPY_QUANTILE = 0.95
NO_PAIR = (
    "no subject has two real pictures, from which the copy threshold is taken; give --copy-threshold, such as 0.95"
)


@dataclass(frozen=True)
class References:
    """The real pictures of the subjects: all of them, and which one is picked, with their features."""

    images: dict[str, list[Path]]
    features: dict[str, ImageFeatures]
    picked: dict[str, int]

    @classmethod
    def read(cls, images: dict[str, list[Path]], picked: dict[str, str], nets: FeatureNets) -> References:
        """Features of all real pictures, subject by subject."""
        features = {name: nets.of_images(paths) for name, paths in images.items()}
        places = {name: [path.name for path in paths].index(picked[name]) for name, paths in images.items()}
        return cls(images, features, places)

    def of(self, subject: str, all_references: bool) -> ImageFeatures:
        """What results are compared with: every real picture of the subject, or the picked one."""
        picked = self.picked[subject]
        return self.features[subject] if all_references else self.features[subject][picked : picked + 1]


def fidelity(
    result: ImageFeatures, row: int, job: Job, references: References, all_references: bool
) -> dict[str, float]:
    """DINO, CLIP-I and `copy` of one picture, which is row `row` of `result`.

    The first two are cosines to the references, averaged over them and then over the job's subjects; `copy` is the
    largest cosine between the foregrounds of the picture and of any picture that the model was shown: of a tuned
    reference, which was made of them, any real picture of the subject.
    """
    per_subject = []
    for subject in job.subjects:
        real = references.of(subject, all_references)
        per_subject.append(((real.dino @ result.dino[row]).mean(), (real.clip @ result.clip[row]).mean()))
    dino, clip = torch.tensor(per_subject).mean(0).tolist()
    shown = [references.of(subject, bool(job.tuned)).foreground @ result.foreground[row] for subject in job.subjects]
    scores = {"dino": dino, "clip_i": clip, "copy": float(torch.cat(shown).max())}
    if len(job.subjects) > 1:
        scores["dino_per_subject"] = [float(dino) for dino, _ in per_subject]
    return scores


def require_generated(jobs: Sequence[Job], folder: OutputFolder) -> None:
    """ConfigError that counts the pictures which were never generated."""
    absent = [job.path for job in jobs if not (folder.path / job.path).exists()]
    if absent:
        raise ConfigError(
            f"{len(absent)} of {len(jobs)} pictures are missing in {folder.path}, the first is {absent[0]}; "
            "generate them first (leave out --only score)"
        )


def score(
    jobs: Sequence[Job],
    references: References,
    nets: FeatureNets,
    folder: OutputFolder,
    process_group: ProcessGroup,
    *,
    all_references: bool,
    batch_size: int = 32,
    threads: int = 1,
) -> int:
    """Score the pictures that have no scores yet, or others than the file there has; returns how many this process did.

    ConfigError where a picture cannot be read.
    """
    found = folder.records("scores") if process_group.rank == 0 else {}
    known = [job.path for job in jobs if job.path in found and found[job.path].get("file") == folder.digest(job.path)]
    scored = set(process_group.gather(known)[0])
    mine = [job for job in jobs if job.path not in scored][process_group.rank :: process_group.world_size]
    texts = list(dict.fromkeys(job.text for job in mine))
    text_features = dict(zip(texts, nets.of_texts(texts), strict=True)) if texts else {}
    prepared = prefetched(nets.prepare, [folder.path / job.path for job in mine], threads)
    for batch in batches(mine, batch_size):
        result = nets.of_prepared(list(islice(prepared, len(batch))))
        records = []
        for row, job in enumerate(batch):
            scores = fidelity(result, row, job, references, all_references)
            scores["clip_t"] = float(result.clip[row] @ text_features[job.text])
            records.append({**job.record(), **scores, "file": folder.digest(job.path)})
        folder.append("scores", records)
    process_group.barrier()
    return len(mine)


def oracle(references: References, jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """The row of real pictures: for each subject, the mean over all pairs of its different real pictures."""
    means = {}
    for name, features in references.features.items():
        count = len(features.dino)
        if count > 1:
            off = ~torch.eye(count, dtype=torch.bool)
            means[name] = [float((x @ x.T)[off].mean()) for x in (features.dino, features.clip)]
    records = []
    for group, subjects in {job.group: job.subjects for job in jobs}.items():
        if all(subject in means for subject in subjects):
            dino, clip = torch.tensor([means[subject] for subject in subjects]).mean(0).tolist()
            records.append({"subject": group, "dino": dino, "clip_i": clip})
    return records


def echo(references: References, jobs: Sequence[Job], nets: FeatureNets, all_references: bool) -> list[dict[str, Any]]:
    """The row of a model that returns the shown picture for every prompt (of several shown pictures, the mean).

    Its subject is perfect and the text is ignored: a model has to be better than this row in CLIP-T.
    """
    texts = list(dict.fromkeys(job.text for job in jobs))
    text_features = dict(zip(texts, nets.of_texts(texts), strict=True))
    records = {}
    for job in jobs:
        if (job.group, job.text) in records:
            continue
        scores = []
        for subject in job.subjects:
            shown = references.of(subject, False)
            dino_clip = fidelity(shown, 0, job, references, all_references)
            scores.append((dino_clip["dino"], dino_clip["clip_i"], float(shown.clip[0] @ text_features[job.text])))
        means = torch.tensor(scores).mean(0).tolist()
        records[job.group, job.text] = {"subject": job.group, **dict(zip(METRICS, means, strict=True))}
    return list(records.values())


def copy_threshold(references: References) -> float:
    """The 95th percentile of how similar the foregrounds of two real pictures of one subject are.

    A result above it is more similar to the shown picture than real pictures are to each other: a likely copy.
    ConfigError where no subject has two real pictures.
    """
    alike = []
    for features in references.features.values():
        count = len(features.foreground)
        above = torch.ones(count, count, dtype=torch.bool).triu(1)
        alike.append((features.foreground @ features.foreground.T)[above])
    alike = torch.cat(alike)
    if not len(alike):
        raise ConfigError(NO_PAIR)
    return float(alike.quantile(COPY_QUANTILE))
