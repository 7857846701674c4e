"""Check a data set before it is trained on, and show twelve of its samples.

    python -m training.data.lint PATH [--kind edit] [--sheet sheet.png] [--limit 10000] [--json findings.json]

Every sample is read, cooked and its pictures decoded as training would. The table says what is unusable and why; the
contact sheet, PATH-sheet.png beside the data set, shows twelve samples with their prompts. Exit code 0: fit for
training; 1: more than --max-bad per cent of the samples, or a file, are unusable; 2: no data set of a known layout, or
the results cannot be written.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

from rich.console import Console
from rich.progress import track
from rich.table import Table

from .cookers import COOKS
from .data_config import DataConfig, Kind
from .decoding import decode, decode_mask
from .index import DataError, Dataset, index_dataset
from .reader import Reader, detect_kind
from .sample_sheet import contact_sheet
from .samples import BadSample, CaptionSample, EditSample, Filtered, InterleavedSample, TextSample
from .tsv_cookers import ORIGINAL_COOKS

CHUNK = 200
SHOWN = 12
LISTED = 5


@dataclass
class Findings:
    """What was found in some samples. bad, odd: reason -> keys; odd samples are used all the same."""

    samples: int = 0
    images: int = 0
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
            self.characters + other.characters,
            merged(self.bad, other.bad),
            merged(self.odd, other.odd),
            self.left_out + other.left_out,
        )

    @property
    def bad_samples(self) -> int:
        return sum(map(len, self.bad.values()))


class Checker:
    """Checks samples of a data set as training would read them; built once per process."""

    def __init__(self, dataset: Dataset, kind: str):
        self.reader, self.cook = Reader(dataset, kind), (COOKS | ORIGINAL_COOKS)[kind]

    def check(self, start: int, stop: int) -> Findings:
        """What is found in samples start ... stop - 1."""
        found = Findings()
        for index in range(start, stop):
            found.samples += 1
            key = None
            try:
                crude = self.reader[index]
                key = crude["__key__"]
                text, images, oddities = _contents(self.cook(crude))
            except Filtered as bad:
                found.left_out[bad.reason] += 1
            except BadSample as bad:
                found.bad.setdefault(bad.reason, []).append(key or self.reader.key(index))
            else:
                found.images += images
                found.characters += len(text)
                for oddity in oddities:
                    found.odd.setdefault(oddity, []).append(key)
        return found


def _contents(sample) -> tuple[str, int, list[str]]:
    """A sample's text, its number of pictures, each decoded once, and what is odd about it."""
    odd = []
    if isinstance(sample, TextSample):
        return sample.text, 0, odd
    if isinstance(sample, InterleavedSample):
        images = [decode(segment) for segment in sample.segments if isinstance(segment, bytes)]
        return "".join(text for text in sample.segments if isinstance(text, str)), len(images), odd
    if isinstance(sample, EditSample):
        sizes = [[decode(image).size for image in pair] for pair in sample.pairs]
        odd += ["before and after differ in size"] * any(before != after for before, after in sizes)
        return sample.caption + sample.instruction, 2 * len(sizes), odd
    if isinstance(sample, CaptionSample):
        if sample.image is not None:
            decode(sample.image)
        return sample.caption, int(sample.image is not None), odd
    decode(sample.target)
    for entity in sample.entities:
        crop = decode(entity.crop)
        odd += ["crop is not square"] * (crop.width != crop.height)
        if entity.mask is not None:
            mask = decode_mask(entity.mask)
            odd += ["mask and crop differ in size"] * (mask.size != crop.size)
            odd += ["mask is empty"] * (mask.getextrema()[1] < 128)
    odd += ["no entity"] * (not sample.entities)
    return sample.caption, 1 + len(sample.entities), sorted(set(odd))


def check_all(dataset: Dataset, kind: str, limit: int, workers: int, console: Console) -> Findings:
    """Check the first `limit` samples of a data set with several processes."""
    stop = min(limit or len(dataset), len(dataset))
    ranges = [(start, min(start + CHUNK, stop)) for start in range(0, stop, CHUNK)]
    workers = min(workers, len(ranges))
    found = Findings()

    def results() -> Iterator[Findings]:
        if workers < 2:
            checker = Checker(dataset, kind)
            yield from (checker.check(*given) for given in ranges)
            return
        with ProcessPoolExecutor(workers, initializer=_receive, initargs=(dataset, kind)) as pool:
            yield from pool.map(_check_received, ranges)

    for result in track(results(), "Reading", total=len(ranges), console=console, transient=True):
        found += result
    return found


def _receive(dataset: Dataset, kind: str) -> None:
    global _checker
    _checker = Checker(dataset, kind)


def _check_received(given: tuple[int, int]) -> Findings:
    return _checker.check(*given)


def show(path: str, dataset: Dataset, kind: str, found: Findings, console: Console) -> None:
    """Print the summary table."""
    table = Table(title=f"{path}: {kind}", title_justify="left", title_style="bold")
    table.add_column("what")
    table.add_column("count", justify="right")
    table.add_column("share", justify="right")
    table.add_column("for example", overflow="fold")

    def row(name: str, count: int, keys: list[str] = (), style: str = "") -> None:
        share = f"{100 * count / max(found.samples, 1):.2f} %" if keys or style else ""
        table.add_row(name, f"{count:,}", share, ", ".join(keys[:LISTED]), style=style)

    row("files with samples", len(dataset.shards))
    row("samples", len(dataset))
    row("  of them read", found.samples)
    row("pictures", found.images)
    row("characters of text per sample", round(found.characters / max(found.samples - found.bad_samples, 1)))
    for shard in dataset.damaged:
        table.add_row(f"{shard.problem}", "1", "", shard.name, style="red")
    for reason, count in found.left_out.most_common():
        row(f"left out: {reason}", count, style="dim")
    for reason, keys in sorted(found.odd.items()):
        row(f"odd: {reason}", len(keys), keys, "yellow")
    for reason, keys in sorted(found.bad.items(), key=lambda item: -len(item[1])):
        row(f"unusable: {reason}", len(keys), keys, "red")
    console.print(table)


def report(path: str, dataset: Dataset, kind: str, found: Findings) -> dict:
    """The same for machines."""
    return {
        "path": path,
        "kind": kind,
        "files": len(dataset.shards),
        "samples": len(dataset),
        "read": found.samples,
        "pictures": found.images,
        "damaged_files": {shard.name: shard.problem for shard in dataset.damaged},
        "unusable": found.bad,
        "odd": found.odd,
        "left_out": dict(found.left_out),
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m training.data.lint", description=__doc__.partition("\n")[0])
    parser.add_argument("path", help="a folder of .tar, .jsonl or .tsv files, or one such file")
    parser.add_argument("--kind", choices=get_args(Kind), default="auto", help="layout, where it cannot be recognised")
    parser.add_argument("--sheet", type=Path, help="where the contact sheet goes (default: PATH-sheet.png)")
    parser.add_argument("--limit", type=int, default=0, help="read only so many samples (default: all)")
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="reading processes")
    parser.add_argument("--max-bad", type=float, default=DataConfig.max_bad, help="per cent of samples (default: 5)")
    parser.add_argument("--index-folder", help="where indexes go, if not beside the data")
    parser.add_argument("--json", type=Path, help="also write the findings to this file")
    given = parser.parse_args(arguments)
    console = Console()
    try:
        dataset = index_dataset(given.path, given.index_folder)
        kind = detect_kind(dataset) if given.kind == "auto" else given.kind
        if not len(dataset):
            raise DataError(f"No sample can be read in {given.path}.")
    except (DataError, BadSample) as error:
        unknown = f"{given.path}: none of the known layouts; name it with --kind. See training.data.cookers for them."
        print(error if isinstance(error, DataError) else unknown, file=sys.stderr)
        return 2
    found = check_all(dataset, kind, given.limit, given.workers, console)
    show(given.path, dataset, kind, found, console)
    path = Path(given.path).resolve()
    sheet = given.sheet or path.with_name(f"{path.stem}-sheet.png")
    option = "--json"
    try:
        if given.json:
            given.json.write_text(json.dumps(report(given.path, dataset, kind, found), indent=1, ensure_ascii=False))
        option = "--sheet"
        if (shown := contact_sheet(dataset, kind, SHOWN)) is not None:
            shown.save(sheet)
            console.print(f"Twelve samples: {sheet}", highlight=False)
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
    sys.exit(main())
