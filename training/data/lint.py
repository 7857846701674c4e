"""Check a data set before it is trained on, and show twelve of its samples.

    python -m training.data.lint PATH [--kind edit] [--sheet sheet.png] [--limit 10000] [--json findings.json]

Every sample is read and its pictures are decoded, as in training. The table says what is unusable and why; the contact
sheet, PATH-sheet.png beside the data set, shows twelve samples with their prompts. Exit code 0: fit for training;
1: more than --max-bad per cent of the samples are unusable, or a file is damaged; 2: no data set of a known layout, or
the results cannot be written.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.progress import track
from rich.table import Table

from ..base.display import markup, printable
from ..base.signals import stoppable
from .cookers import cook, unknown_endings
from .data_config import DataConfig, Kind
from .dataset_sheet import dataset_sheet
from .decoding import decode, decode_mask
from .index import DataError, IndexedDataset, index_dataset
from .process_map import process_map
from .reader import Reader, detect_kind
from .sample_types import BadSample, CompositionalSample, EditSample, Filtered, one_bad_sample

CHUNK = 200
SHOWN = 12
LISTED = 5


@dataclass
class Findings:
    """What was found in some samples. bad, odd: reason -> keys; odd samples are used all the same."""

    samples: int = 0
    images: int = 0
    without_image: int = 0
    characters: int = 0
    bad: dict[str, list[str]] = field(default_factory=dict)
    odd: dict[str, list[str]] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: Findings) -> Findings:
        def merged(first: dict, second: dict) -> dict:
            return {reason: first.get(reason, []) + second.get(reason, []) for reason in first | second}

        return Findings(
            self.samples + other.samples,
            self.images + other.images,
            self.without_image + other.without_image,
            self.characters + other.characters,
            merged(self.bad, other.bad),
            merged(self.odd, other.odd),
            self.left_out + other.left_out,
        )

    @property
    def bad_samples(self) -> int:
        return sum(map(len, self.bad.values()))


@dataclass
class Checker:
    """Checks samples of a data set as training would read them. Each process that gets it opens the files itself."""

    dataset: IndexedDataset
    kind: str
    max_pixels: int
    max_megabytes: float

    @cached_property
    def reader(self) -> Reader:
        return Reader(self.dataset, self.kind, max_megabytes=self.max_megabytes)

    def __call__(self, numbers: range) -> Findings:
        """What is found in these samples."""
        found = Findings()
        for index in numbers:
            found.samples += 1
            key = None
            try:
                crude = self.reader[index]
                key = crude["__key__"]
                sample = cook(self.kind, crude, self.max_pixels)
                with one_bad_sample():
                    contents = sample.contents()
                    sizes = [decode(content).size for content in contents if isinstance(content, bytes)]
                    oddities = _oddities(sample, sizes)
                oddities += [f"part not read: .{printable(ending)}" for ending in unknown_endings(crude)]
            except Filtered as bad:
                found.left_out[bad.reason] += 1
            except BadSample as bad:
                found.bad.setdefault(bad.reason, []).append(key or self.reader.key(index))
            else:
                found.images += len(sizes)
                found.without_image += not sizes
                found.characters += sum(len(content) for content in contents if isinstance(content, str))
                for oddity in oddities:
                    found.odd.setdefault(oddity, []).append(key)
        return found


def _oddities(sample: Any, sizes: list[tuple[int, int]]) -> list[str]:
    """What is odd about a sample. sizes: of its pictures, in the order of `contents`."""
    odd = set()
    if isinstance(sample, EditSample):
        if any(before != after for before, after in zip(sizes[::2], sizes[1::2], strict=True)):
            odd.add("before and after differ in size")
    elif isinstance(sample, CompositionalSample):
        if not sample.entities:
            odd.add("no entity")
        for entity, (width, height) in zip(sample.entities, sizes, strict=False):
            if width != height:
                odd.add("crop is not square")
            if entity.mask is not None:
                mask = decode_mask(entity.mask)
                if mask.size != (width, height):
                    odd.add("mask and crop differ in size")
                if mask.getbbox() is None:
                    odd.add("mask is empty")
            if entity.on_white is not None:
                decode(entity.on_white)
    return sorted(odd)


def check_all(checker: Checker, limit: int, workers: int, console: Console) -> Findings:
    """Check the first `limit` samples of a data set (0: all) with several processes."""
    size = len(checker.dataset)
    numbers = range(min(limit or size, size))
    ranges = [numbers[start : start + CHUNK] for start in range(0, len(numbers), CHUNK)]
    found = Findings()
    results = process_map(checker, ranges, workers)
    for result in track(results, "Reading", total=len(ranges), console=console, transient=True):
        found += result
    return found


def show(path: str, dataset: IndexedDataset, kind: str, found: Findings, console: Console) -> None:
    """Print the summary table."""
    table = Table(title=markup(f"{path}: {kind}"), title_justify="left", title_style="bold")
    table.add_column("what")
    table.add_column("count", justify="right")
    table.add_column("share", justify="right")
    table.add_column("for example", overflow="fold")

    def row(name: str, count: int, keys: list[str] = (), style: str = "") -> None:
        share = f"{100 * count / max(found.samples, 1):.2f} %" if (keys or style) and "file" not in name else ""
        table.add_row(markup(name), f"{count:,}", share, markup(", ".join(keys[:LISTED])), style=style)

    row("files with samples", len(dataset.shards))
    row("samples", len(dataset))
    row("  of them read", found.samples)
    row("pictures", found.images)
    if found.without_image:
        row("samples without a picture", found.without_image)
    row("characters of text per sample", round(found.characters / max(found.samples - found.bad_samples, 1)))
    if dataset.unread:
        row("other files there, not read", len(dataset.unread), list(dataset.unread), "yellow")
    for shard in dataset.damaged:
        table.add_row(markup(shard.problem), "1", "", markup(shard.name), style="red")
    for reason, count in found.left_out.most_common():
        row(f"left out: {reason}", count, style="dim")
    for reason, keys in sorted(found.odd.items()):
        row(f"odd: {reason}", len(keys), keys, "yellow")
    for reason, keys in sorted(found.bad.items(), key=lambda item: -len(item[1])):
        row(f"unusable: {reason}", len(keys), keys, "red")
    console.print(table)


def report(path: str, dataset: IndexedDataset, kind: str, found: Findings) -> dict:
    """The same for machines."""
    return {
        "path": path,
        "kind": kind,
        "files": len(dataset.shards),
        "samples": len(dataset),
        "read": found.samples,
        "pictures": found.images,
        "without_picture": found.without_image,
        "unread_files": list(dataset.unread),
        "damaged_files": {shard.name: shard.problem for shard in dataset.damaged},
        "unusable": found.bad,
        "odd": found.odd,
        "left_out": dict(found.left_out),
    }


def _check_numbers(given: argparse.Namespace) -> None:
    """DataError for a limit that would let anything pass, or nothing."""
    for name, least, most in (
        ("limit", 0, math.inf),
        ("workers", 1, math.inf),
        ("max_bad", 0, 100),
        ("max_megapixels", 1e-6, 1e6),
        ("max_megabytes", 1e-6, 1e6),
    ):
        value, upper = getattr(given, name), "" if most == math.inf else f" and at most {most:g}"
        if not least <= value <= most:
            raise DataError(f"--{name.replace('_', '-')}: {value:g} must be at least {least:g}{upper}.")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m training.data.lint", description=__doc__.partition("\n")[0])
    parser.add_argument("path", help="a folder of .tar, .jsonl or .tsv files, or one such file")
    parser.add_argument("--kind", choices=get_args(Kind), default="auto", help="layout, where it cannot be recognised")
    parser.add_argument("--sheet", type=Path, help="where the contact sheet goes (default: PATH-sheet.png)")
    parser.add_argument("--limit", type=int, default=0, help="read only so many samples (default: all)")
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="reading processes")
    parser.add_argument("--max-bad", type=float, default=DataConfig.max_bad, help="per cent of samples (default: 5)")
    for limit in ("megapixels", "megabytes"):
        default = getattr(DataConfig, f"max_{limit}")
        told = f"as data.max_{limit} in training (default: {default:g})"
        parser.add_argument(f"--max-{limit}", type=float, default=default, help=told)
    parser.add_argument("--index-folder", help="where indexes go, if not beside the data")
    parser.add_argument("--json", type=Path, help="also write the findings to this file")
    given = parser.parse_args(arguments)
    console = Console()
    try:
        _check_numbers(given)
        dataset = index_dataset(given.path, given.index_folder)
        kind = detect_kind(dataset) if given.kind == "auto" else given.kind
        if not len(dataset):
            raise DataError(f"No sample can be read in {given.path}.")
    except (DataError, BadSample) as error:
        unknown = f"{given.path}: {error}; name it with --kind. See docs/data-layouts.md."
        print(printable(error if isinstance(error, DataError) else unknown), file=sys.stderr)
        return 2
    max_pixels = int(given.max_megapixels * 1e6)
    checker = Checker(dataset, kind, max_pixels, given.max_megabytes)
    found = check_all(checker, given.limit, given.workers, console)
    show(given.path, dataset, kind, found, console)
    path = Path(given.path).resolve()
    sheet = given.sheet or path.with_name(f"{path.stem}-sheet.png")
    option = "--json"
    try:
        if given.json:
            given.json.write_text(json.dumps(report(given.path, dataset, kind, found), indent=1, ensure_ascii=False))
        option = "--sheet"
        if (shown := dataset_sheet(dataset, kind, SHOWN, max_pixels)) is not None:
            shown.save(sheet)
            console.print(markup(f"Twelve samples: {sheet}"), highlight=False)
    except OSError as error:
        said = f"{error.filename} cannot be written ({error.strerror}); give another file with {option}."
        print(said, file=sys.stderr)
        return 2
    share = 100 * found.bad_samples / max(found.samples, 1)
    fit = share <= given.max_bad and not dataset.damaged
    verdict = "Fit for training." if fit else "Not fit for training:"
    reasons = [f"{share:.1f} % of the samples are unusable (--max-bad {given.max_bad:g})"] * (share > given.max_bad)
    reasons += [f"{len(dataset.damaged)} damaged files"] * bool(dataset.damaged)
    console.print(verdict, ", ".join(reasons), style="green" if fit else "red", highlight=False)
    return 0 if fit else 1


if __name__ == "__main__":
    sys.exit(stoppable(main, "nothing was changed."))
