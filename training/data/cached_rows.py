"""What frozen models make of samples, kept beside the shards: `<shard>.latents` and `<shard>.states`.

Each file belongs to one shard and holds rows of numbers, each under a digest of the very bytes that it was made from,
so that a row can never be taken for another sample's, in whatever order or with whatever draws samples are read.
`Maker` says what made them; where anything of it differs from what a run would compute itself, the run refuses.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from kosmos_core.atomic import atomic_write
from kosmos_core.safetensors_file import read_header

from ..base.display import printable
from ..base.precision import name_of
from .index import DataError, IndexedDataset

FORMATS = {"bf16": "BF16", "fp16": "F16", "fp32": "F32"}  # as safetensors names them
VERSION = 1  # of the way from a sample to its row; raise it where that changes
OPEN_FILES = 16
COMMAND = "python -m training.data.cache"


@dataclass(frozen=True)
class Maker:
    """What made a file's rows: `latents` or `states`, by which weights, at which size, in which number format."""

    what: str
    weights: str  # digest of the frozen model's weights in its number format
    precision: str
    shape: tuple[int, ...]  # of a row
    resolution: int | None = None  # of latents
    version: int = VERSION

    @classmethod
    def of(cls, what: str, module: nn.Module, resolution: int | None = None) -> Maker:
        """What a frozen model as it is makes."""
        shape = _row_shape(module.config, resolution)
        return cls(what, weights_digest(module), name_of(module.dtype), shape, resolution)

    @property
    def rows(self) -> str:
        """Format and shape of a file's rows, as `made_by` tells them."""
        return _described(FORMATS[self.precision], self.shape)

    def difference(self, made: Mapping[str, Any]) -> str | None:
        """In words what of a file's maker is not as here; None where all is."""
        told = {
            "version": "by an earlier or later release",
            "resolution": f"at {made.get('resolution')} pixels, and this run has data.resolution {self.resolution}",
            "precision": f"in {made.get('precision')}, and this run computes in {self.precision}",
            "weights": "by other weights than those of task.stable_diffusion",
            "rows": f"wrongly: its rows are {made.get('rows')}, and not {self.rows}",
        }
        return next((words for key, words in told.items() if made.get(key) != getattr(self, key)), None)


def _described(number_format: str, shape: Sequence[int]) -> str:
    return f"{number_format} of {' x '.join(map(str, shape))}"


def _row_shape(config: Any, resolution: int | None) -> tuple[int, ...]:
    """Mean and deviation of an image's latents, or CLIP's states of a caption, from the configuration of the model."""
    if resolution is None:
        return (config.max_position_embeddings, config.hidden_size)
    levels = getattr(config, "encoder_block_out_channels", None) or config.block_out_channels
    side = resolution // 2 ** (len(levels) - 1)
    return (2, config.latent_channels, side, side)


def weights_digest(module: nn.Module) -> str:
    """32 hexadecimal digits that change with any weight of a model or its number format."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def content_key(content: bytes | Sequence[int]) -> bytes:
    """The digest under which the row of an encoded image, or of a caption's token ids, is kept."""
    content = content if isinstance(content, bytes) else ",".join(map(str, content)).encode()
    return hashlib.blake2b(content, digest_size=16).digest()


def cache_path(dataset: IndexedDataset, shard: int, what: str) -> Path:
    """The file of a shard's rows."""
    path = dataset.root / dataset.shards[shard].name
    return path.with_name(f"{path.name}.{what}")


def write_rows(path: Path, maker: Maker, shard_size: int, rows: Mapping[bytes, Tensor]) -> None:
    """Write a shard's rows by their keys; shard_size: the shard's bytes."""
    keys = torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.uint8).view(len(rows), 16)
    made = {"made": json.dumps({**asdict(maker), "shard_size": shard_size})}
    with atomic_write(path) as file:
        file.write(safetensors.torch.save({"keys": keys, "rows": torch.stack([*rows.values()])}, made))


def made_by(path: Path) -> dict[str, Any]:
    """What a file says of its maker, with `rows`, their format and shape; empty where it is no such file."""
    try:
        header = read_header(path)
        if header.shapes["keys"] != (header.shapes["rows"][0], 16) or header.dtypes["keys"] != "U8":
            return {}
        rows = _described(header.dtypes["rows"], header.shapes["rows"][1:])
        return dict(json.loads(header.metadata["made"])) | {"rows": rows}
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError):
        return {}


@dataclass
class CachedRows:
    """The rows of a data set's shards. Picklable; each process opens the files itself."""

    source: str
    dataset: IndexedDataset
    maker: Maker
    _files: OrderedDict[int, tuple[dict[bytes, int], Any]] = field(default_factory=OrderedDict)

    def __post_init__(self) -> None:
        self._starts = [0, *accumulate(shard.count for shard in self.dataset.shards)]

    @classmethod
    def of(cls, source: str, dataset: IndexedDataset, maker: Maker) -> CachedRows | None:
        """The rows of a data set; None where none of its shards has any.

        Raises DataError where only some shards have them, or something else made them than `maker`.
        """
        what, numbers = maker.what, range(len(dataset.shards))
        paths = [cache_path(dataset, number, what) for number in numbers]
        there = [path.is_file() for path in paths]
        if not any(there):
            return None
        way_out = f"run `{COMMAND}` again, or train with --data.use_cache false."
        if not all(there):
            missing = printable(dataset.shards[there.index(False)].name)
            raise DataError(
                f"data.sources.{source}: {there.count(True)} of {len(there)} shards have {what} beside them, and "
                f"{missing} has none; {way_out}"
            )
        for number, path in zip(numbers, paths, strict=True):
            made = made_by(path)
            difference = maker.difference(made) if made else "incompletely: it cannot be read"
            if not difference and made.get("shard_size") != dataset.shards[number].size:
                difference = "from another file than lies beside it now"
            if difference:
                raise DataError(f"data.sources.{source}: {printable(path)} was made {difference}; {way_out}")
        return cls(source, dataset, maker)

    def row(self, sample: int, key: bytes) -> Tensor | None:
        """The row under a key in the file of a sample's shard; sample: its number in the data set."""
        keys, rows = self._open(bisect_right(self._starts, sample) - 1)
        place = keys.get(key)
        return None if place is None else rows[place : place + 1][0].clone()

    def stale(self, key: str) -> DataError:
        """The error of a sample that is sound and has no row."""
        return DataError(
            f"data.sources.{self.source}: {key} has no {self.maker.what} beside its shard, so those were made from "
            f"other data; run `{COMMAND}` again, or train with --data.use_cache false."
        )

    def _open(self, shard: int) -> tuple[dict[bytes, int], Any]:
        if shard not in self._files:
            if len(self._files) >= OPEN_FILES:
                self._files.popitem(last=False)
            file = safetensors.safe_open(cache_path(self.dataset, shard, self.maker.what), framework="pt")
            keys = file.get_tensor("keys").numpy().tobytes()
            numbered = {keys[first : first + 16]: first // 16 for first in range(0, len(keys), 16)}
            self._files[shard] = numbered, file.get_slice("rows")
        self._files.move_to_end(shard)
        return self._files[shard]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": OrderedDict()}
