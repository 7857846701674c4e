"""The pictures to make: one job for each, with everything that decides how it looks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base.errors import ConfigError
from ..base.text import decode_text
from ..base.yaml_text import load_yaml
from .protocols import Protocol, mark_nouns, prompt_of, words_of
from .subjects import SubjectSet, subject_images


@dataclass(frozen=True)
class Job:
    """One picture to make.

    path: where it goes, relative to the output folder; also its name in records.
    prompt: as Kosmos-G reads it. text: the same in plain words.
    conditions: the pictures of the prompt's marks. subjects: the names of what they show.
    tuned: files of references that take the places of the pictures, where there are any.
    seed, row, rows: its noise is row `row` of a block of `rows` drawn from `seed`.
    """

    path: str
    prompt: str
    text: str
    conditions: tuple[Path, ...] = ()
    subjects: tuple[str, ...] = ()
    seed: int = 0
    row: int = 0
    rows: int = 1
    tuned: tuple[Path, ...] = ()

    @property
    def shown(self) -> tuple[Path, ...]:
        """What the model is given for the prompt's marks: pictures, or files of references."""
        return self.tuned or self.conditions

    @property
    def group(self) -> str:
        """The subjects as one name: of the contact sheet and of the average that the picture belongs to."""
        return "+".join(self.subjects)

    def record(self) -> dict[str, Any]:
        """What a line of JSONL says of the picture."""
        return {
            "path": self.path,
            "subject": self.group,
            "prompt": self.prompt,
            "text": self.text,
            "seed": self.seed,
            "noise_row": self.row,
            "conditions": [str(path) for path in self.shown],
        }


def dreambench_jobs(subjects: SubjectSet, data: str | Path, protocol: Protocol) -> list[Job]:
    """Every prompt of every subject, as often as the protocol says (DreamBench: 30 x 25 x 4 = 3,000)."""
    jobs = []
    for subject in subjects.subjects:
        images = subject_images(data, subject)
        picked = next(path for path in images if path.name == subject.picked)
        jobs += _prompt_jobs(subjects.prompts[subject.kind], (subject.name,), (subject.noun,), (picked,), protocol)
    return jobs


def pair_jobs(path: str | Path, subjects: SubjectSet, data: str | Path, protocol: Protocol) -> list[Job]:
    """Prompts with several subjects, from a list in one of two forms.

    JSON: [{"prompt": "a bowl and a can on the beach", "image_paths": ["dataset/berry_bowl/02.jpg", ...],
    "nouns": ["bowl", "can"]}, ...]. This is UNO's `dreambench_multiip.json` (30 pairs x 25 prompts), whose entries
    have no `nouns`: they follow from the pictures' folders. Paths are tried beside the list and then below `data`.
    Other benchmarks, such as Multibench, are written in the same form with `nouns`.

    YAML: `pairs: [[berry_bowl, can], ...]`, names of subjects; each pair gets the prompts of its first subject's kind,
    or of live subjects if one of the two is alive.
    """
    path = Path(path)
    try:
        content = decode_text(path.read_bytes())
        entries = json.loads(content) if path.suffix == ".json" else load_yaml(content)["pairs"]
        if not isinstance(entries, list) or not entries:
            raise ValueError(f"it holds {entries!r:.100}")
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ConfigError(
            f"the list of pairs {path} cannot be read ({error}); expected a .json list of prompts with image_paths, "
            "or .yaml with `pairs`"
        ) from error
    if path.suffix != ".json":
        return [job for names in entries for job in _named_pair(names, path, subjects, data, protocol)]
    jobs, counts = [], {}
    for number, entry in enumerate(entries, 1):
        found = entry if isinstance(entry, dict) else {}
        prompt, images, nouns = found.get("prompt"), found.get("image_paths"), found.get("nouns") or []
        if not (prompt and images and _strings([prompt], images, nouns)):
            raise ConfigError(
                f"{path}: entry {number} needs `prompt` and a list of `image_paths`, it is {entry!r:.120}"
            )
        conditions = tuple(_resolve(image, path, data) for image in images)
        names = tuple(condition.parent.name for condition in conditions)
        nouns = nouns or [subjects.named(name).noun for name in names]
        if len(nouns) != len(conditions):
            raise ConfigError(f"{path}: entry {number} has {len(nouns)} nouns for {len(conditions)} pictures")
        marked = mark_nouns(prompt, nouns, protocol)
        index = counts[names] = counts.get(names, -1) + 1
        jobs += _samples(names, index, marked, prompt, conditions, protocol)
    return jobs


def _strings(*lists: Any) -> bool:
    return all(isinstance(entries, list) and all(isinstance(entry, str) for entry in entries) for entries in lists)


def _named_pair(names: Any, path: Path, subjects: SubjectSet, data: str | Path, protocol: Protocol) -> list[Job]:
    if not isinstance(names, list) or len(names) < 2:
        raise ConfigError(f"{path}: {names!r} is no pair; expected two names of subjects, such as [berry_bowl, can]")
    chosen = [subjects.named(name) for name in names]
    nouns = [subject.noun for subject in chosen]
    images = [next(p for p in subject_images(data, s) if p.name == s.picked) for s in chosen]
    kinds = [subject.kind for subject in chosen]
    kind = "live" if "live" in kinds else kinds[0]
    return _prompt_jobs(subjects.prompts[kind], tuple(names), nouns, tuple(images), protocol)


def _resolve(image: str, listed_in: Path, data: str | Path) -> Path:
    """The file of a listed picture: beside the list, or by its last two names below the data folder."""
    candidates = [listed_in.parent / image]
    tail = Path(*Path(image).parts[-2:])
    candidates += [Path(data) / tail, Path(data) / "dataset" / tail]
    for candidate in candidates:
        if candidate.is_file():
            return candidate.resolve()
    raise ConfigError(f"{listed_in} names {image}, found neither beside it nor as {candidates[1]} or {candidates[2]}")


def _prompt_jobs(
    templates: Sequence[str],
    names: tuple[str, ...],
    nouns: Sequence[str],
    conditions: tuple[Path, ...],
    protocol: Protocol,
) -> list[Job]:
    return [
        job
        for index, template in enumerate(templates)
        for job in _samples(
            names, index, prompt_of(template, nouns, protocol), words_of(template, nouns), conditions, protocol
        )
    ]


def _samples(
    names: tuple[str, ...], index: int, prompt: str, text: str, conditions: tuple[Path, ...], protocol: Protocol
) -> list[Job]:
    """The pictures of one prompt; where noise is shared, row sample * prompts + prompt, the order of the original."""
    shared, jobs = protocol.shared_noise, []
    for sample in range(protocol.samples):
        noise = (0, sample * shared + index % shared, shared * protocol.samples) if shared > 1 else (sample, 0, 1)
        path = f"pictures/{'+'.join(names)}/{index:02d}_{sample}.png"
        jobs.append(Job(path, prompt, text, conditions, names, *noise))
    return jobs
