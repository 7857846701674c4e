"""Latents and CLIP states of a data set, computed once and kept beside its shards.

    python -m training.data.cache data/pairs --stable_diffusion stable-diffusion-v1-5            (stage 3: latents)
    python -m training.data.cache data/pairs --stable_diffusion stable-diffusion-v1-5 --what states       (stage 2)

A run with the same Stable Diffusion, precision and resolution uses them by itself; one that would compute others
refuses. What these options have made already is left as it is, so a command that was stopped goes on when it is given
again; rows of another model, resolution or precision are replaced. Latents of 512 pixels take 64 KB a sample in bf16,
the states of a caption 118 KB.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from kosmos_core.diffusers.stable_diffusion import StableDiffusion
from kosmos_core.safetensors_file import WeightsError

from ..base.display import printable, short
from ..base.errors import ConfigError
from ..base.precision import DTYPES, Choice, choose_precision
from ..base.processes import choose_device
from ..base.signals import stoppable
from .cached_rows import Maker, cache_path, content_key, made_by, write_rows
from .cookers import cook
from .data_config import DataConfig, Kind
from .decoding import centred, decode, target_pixels
from .frozen_outputs import latent_moments
from .index import DataError, IndexedDataset, index_dataset
from .process_map import process_map
from .reader import Reader, detect_kind
from .sample_types import BadSample, CaptionSample, CompositionalSample, EditSample
from .tasks import CLIP_LENGTH, caption_ids, clip_ids

CHUNK = 64  # samples that a reading process handles at once


@dataclass
class TargetReader:
    """The images that stage 3 may be asked to generate, decoded; each process that gets it opens the files itself."""

    dataset: IndexedDataset
    kind: str
    resolution: int

    def __call__(self, samples: range) -> list[tuple[bytes, Tensor]]:
        """Key and pixels of every target of some samples; what cannot be used has none."""
        found: list[tuple[bytes, Tensor]] = []
        for content in self._contents(samples):
            try:
                found.append((content_key(content), target_pixels(decode(content), self.resolution)))
            except BadSample:
                continue
        return found

    def _contents(self, samples: range) -> Iterator[bytes]:
        for sample in usable(self.dataset, self.kind, samples):
            if isinstance(sample, EditSample):
                yield from (after for _, after in sample.pairs)
            elif isinstance(sample, CompositionalSample):
                yield sample.target
            elif isinstance(sample, CaptionSample) and sample.image is not None:
                yield sample.image


def usable(dataset: IndexedDataset, kind: str, samples: range) -> Iterator[Any]:
    """The sound ones of some samples."""
    reader, pixels = Reader(dataset, kind), int(DataConfig.max_megapixels * 1e6)
    for number in samples:
        try:
            yield cook(kind, reader[number], pixels)
        except BadSample:
            continue


class Cache:
    """One kind of rows of one data set."""

    def __init__(self, dataset: IndexedDataset, kind: str, maker: Maker, options: argparse.Namespace) -> None:
        self.dataset, self.kind, self.maker, self.options = dataset, kind, maker, options

    def write(self, model: Any, tokenizer: Any) -> tuple[int, int]:
        """Make the files that are not there; returns the numbers of rows and of bytes written."""
        rows = written = first = 0
        for number in track(range(len(self.dataset.shards)), self.maker.what, console=Console(stderr=True)):
            shard = self.dataset.shards[number]
            path, samples = cache_path(self.dataset, number, self.maker.what), range(first, first + shard.count)
            first += shard.count
            made = made_by(path) if path.is_file() else {}
            if made and not self.maker.difference(made) and made.get("shard_size") == shard.size:
                continue
            of = self._latents(model, samples) if tokenizer is None else self._states(model, tokenizer, samples)
            made_rows = dict(of)
            if not made_rows:
                raise DataError(f"{printable(path)}: no sample of the shard has anything to make {self.maker.what} of.")
            write_rows(path, self.maker, shard.size, made_rows)
            rows, written = rows + len(made_rows), written + path.stat().st_size
        return rows, written

    def _latents(self, vae: Any, samples: range) -> Iterator[tuple[bytes, Tensor]]:
        chunks = [samples[place : place + CHUNK] for place in range(0, len(samples), CHUNK)]
        reader = TargetReader(self.dataset, self.kind, self.options.resolution)
        for targets in process_map(reader, chunks, self.options.workers):
            for place in range(0, len(targets), self.options.batch):
                part = targets[place : place + self.options.batch]
                images = centred(torch.stack([pixels for _, pixels in part])).to(vae.device)
                yield from zip((key for key, _ in part), latent_moments(vae, images).cpu(), strict=True)

    @torch.no_grad()
    def _states(self, clip: Any, tokenizer: Any, samples: range) -> Iterator[tuple[bytes, Tensor]]:
        ids = {content_key(own): own for own in self._captions(tokenizer, samples)}
        every = [*ids.items()]
        for place in range(0, len(every), self.options.batch):
            part = every[place : place + self.options.batch]
            tokens = torch.tensor([own for _, own in part], device=clip.device)
            yield from zip((key for key, _ in part), clip(tokens).last_hidden_state.cpu(), strict=True)

    def _captions(self, tokenizer: Any, samples: range) -> Iterator[list[int]]:
        yield clip_ids("", tokenizer, CLIP_LENGTH)  # of rows that data.empty_captions empties
        for sample in usable(self.dataset, self.kind, samples):
            try:
                yield caption_ids(sample, tokenizer)
            except BadSample:
                continue


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m training.data.cache", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", nargs="+", help="data sets, as data.sources names them")
    parser.add_argument("--stable_diffusion", required=True, help="as task.stable_diffusion")
    parser.add_argument("--clip_tokenizer", help="as task.clip_tokenizer")
    parser.add_argument("--what", choices=("latents", "states"), default="latents", help="for stage 3, or stage 2")
    parser.add_argument("--kind", choices=get_args(Kind), default="auto", help="layout of the samples")
    parser.add_argument("--resolution", type=int, default=512, help="as data.resolution, default 512")
    parser.add_argument("--precision", choices=get_args(Choice), default="bf16", help="as the run's, default bf16")
    parser.add_argument("--device", default="auto", help="auto, cuda, cpu or mps")
    parser.add_argument("--batch", type=int, default=16, help="images or captions at once, default 16")
    parser.add_argument("--workers", type=int, default=2, help="processes that decode images, default 2")
    parser.add_argument("--index_folder", help="as data.index_folder")
    options = parser.parse_args(arguments)
    for name, least in (("batch", 1), ("workers", 0), ("resolution", 8)):
        if getattr(options, name) < least:
            raise ConfigError(f"--{name}: {getattr(options, name)} must be at least {least}.")
    if options.resolution % 8:
        raise ConfigError(f"--resolution: {options.resolution} must be a multiple of 8, the autoencoder's factor.")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    try:
        options = _options(sys.argv[1:] if arguments is None else arguments)
        device = choose_device(options.device)
        precision = choose_precision(options.precision, device)
        diffusion = StableDiffusion(
            options.stable_diffusion,
            DTYPES[precision],
            device,
            clip_tokenizer=options.clip_tokenizer,
            option="--stable_diffusion",
            tokenizer_option="--clip_tokenizer",
        )
        latents = options.what == "latents"
        model = diffusion.vae() if latents else diffusion.text_encoder()
        tokenizer = None if latents else diffusion.tokenizer()
        maker = Maker.of(options.what, model, options.resolution if latents else None)
        for path in options.path:
            dataset = index_dataset(path, options.index_folder)
            try:
                kind = detect_kind(dataset) if options.kind == "auto" else options.kind
            except BadSample as bad:
                raise DataError(f"{printable(path)} has {bad.reason}; name the layout with --kind.") from None
            rows, written = Cache(dataset, kind, maker, options).write(model, tokenizer)
            there = "" if rows else ", all there already"
            print(f"{printable(Path(path))}: {rows:,} rows of {options.what} made, {short(written)}B{there}.")
    except (ConfigError, DataError, WeightsError, OSError) as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(stoppable(main, "the shards that are done stay, and the same command goes on."))
