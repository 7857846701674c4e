"""Convert other data sets to this package's layouts.

    python -m training.data.convert instructpix2pix SOURCE OUTPUT
    python -m training.data.convert openimages CSV OUTPUT --pictures DIR
    python -m training.data.convert mmc4 SOURCE OUTPUT --pictures DIR [--least-similarity 0.24]
    python -m training.data.convert obelics SOURCE OUTPUT --pictures DIR
    python -m training.data.convert omnigen2 SOURCE OUTPUT [--pictures DIR]
    python -m training.data.convert uno SOURCE OUTPUT [--pictures DIR]
    python -m training.data.convert original-tsv SOURCE OUTPUT --set openimage

A run that was stopped goes on when the same command is given again. What cannot be used is left out and counted: the
counts are printed and stand in OUTPUT/stats.json. The same input gives the same bytes on any number of workers.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ...base.display import markup, printable
from ...base.signals import stoppable
from ..index import DataError
from .conversion import FOLDER, PLAN, Converter, Outcome, convert_all
from .instructpix2pix import open_edits
from .omnigen2_uno import ImageInstructions
from .open_images import OpenImagesRows
from .original_tsv import SETS, OriginalTsv
from .web_documents import WebDocuments

LAYOUTS = ("instructpix2pix", "openimages", "mmc4", "obelics", "omnigen2", "uno", "original-tsv")


def open_converter(given: argparse.Namespace) -> Converter:
    """The converter of a command line."""
    work = given.output / FOLDER
    for name in ("shard_size", "workers"):
        if getattr(given, name) < 1:
            raise DataError(f"--{name.replace('_', '-')}: {getattr(given, name)} must be at least 1.")
    if not given.source.exists():
        raise DataError(f"{given.source} does not exist.")
    if given.output.exists() and not given.output.is_dir():
        raise DataError(f"{given.output} is a file. Choose a folder for the output.")
    if given.source.is_dir() and given.source.resolve() in given.output.resolve().parents:
        raise DataError(f"{given.output} lies in {given.source}, whose files are read. Choose a folder outside it.")
    if given.layout == "instructpix2pix":
        return open_edits(given.source)
    if given.layout == "openimages":
        return OpenImagesRows(given.source, given.images, work)
    if given.layout in ("mmc4", "obelics"):
        least = getattr(given, "least_similarity", 0.0)
        return WebDocuments(given.layout, given.source, given.images, work, least)
    if given.layout == "original-tsv":
        return OriginalTsv(given.source, given.set)
    return ImageInstructions(given.layout, given.source, given.images, work)


def _opened(given: argparse.Namespace) -> Converter:
    """The converter of a command line; where there is none, nothing is left behind."""
    new = not given.output.exists()
    try:
        return open_converter(given)
    except (DataError, OSError):
        if new and not (given.output / FOLDER / PLAN).exists():
            shutil.rmtree(given.output, ignore_errors=True)
        raise


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.data.convert", description=__doc__.partition("\n")[0])
    layouts = parser.add_subparsers(dest="layout", required=True)
    for name in LAYOUTS:
        layout = layouts.add_parser(name)
        layout.add_argument("source", type=Path, help="file or folder to convert")
        layout.add_argument("output", type=Path, help="folder for the shards")
        if name not in ("instructpix2pix", "original-tsv"):
            needed = name in ("openimages", "mmc4", "obelics")
            layout.add_argument(
                "--pictures", dest="images", type=Path, required=needed, help="folder of pictures or of their tars"
            )
        if name == "mmc4":
            layout.add_argument("--least-similarity", type=float, default=0.0, help="leave out pictures below (CLIP)")
        if name == "original-tsv":
            layout.add_argument("--set", choices=SETS, required=True, help="which of the three sets the files hold")
        layout.add_argument("--shard-size", type=int, default=1000, help="items per shard (default: 1000)")
        layout.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    return parser


def show(outcome: Outcome, output: Path, console: Console) -> None:
    """Print the summary."""
    table = Table(title=markup(output), title_justify="left", title_style="bold")
    table.add_column("what")
    table.add_column("count", justify="right")
    table.add_column("first of them, by number")
    table.add_row("items", f"{outcome.items:,}", "")
    for folder, count in outcome.written.items():
        table.add_row(f"written{f' to {folder}' if folder else ''}", f"{count:,}", "", style="green")
    for reason, count in outcome.lacking.items():
        table.add_row(markup(f"missing in samples: {reason}"), f"{count:,}", "", style="yellow")
    for reason, count in outcome.skipped.items():
        numbers = ", ".join(map(str, outcome.examples.get(reason, [])))
        table.add_row(markup(f"left out: {reason}"), f"{count:,}", numbers, style="yellow")
    console.print(table)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    given = _parser().parse_args(arguments)
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=console, transient=True) as progress:
            converter = _opened(given)
            outcome = convert_all(converter, given.output, given.shard_size, given.workers, progress)
    except DataError as error:
        print(printable(error), file=sys.stderr)
        return 2
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        told = f"{given.output}: {error.strerror or error}{place}. The complete shards stay; the same command goes on"
        print(printable(f"{told} from there."), file=sys.stderr)
        return 1
    show(outcome, given.output, console)
    return 0


if __name__ == "__main__":
    sys.exit(stoppable(main, "finished shards are kept; the same command goes on."))
