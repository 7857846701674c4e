"""Safetensors files without loading them: a header reader for any file, and a writer that streams tensor by tensor.

The safetensors library maps files for reading but wants all tensors at once for writing; converting a checkpoint
must not hold it in memory, hence the writer here.
"""

from __future__ import annotations

import errno
import json
import operator
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .atomic import atomic_write

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
LARGEST_HEADER = (
    16 << 20
)  # bytes; the format allows 100 MB, which take gigabytes to read, and no model needs one of them


class WeightsError(ValueError):
    """A weight file cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself."""

    metadata: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]


def read_header(path: str | os.PathLike) -> Header:
    """Header of a safetensors file; WeightsError where it is none or was cut short."""
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path} is {'a folder' if path.is_dir() else 'missing'}; give a .safetensors file")
    size = path.stat().st_size
    with path.open("rb") as file:
        start, brace = file.read(8), file.read(1)
        length = int.from_bytes(start, "little")
        if start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and brace != b"{"):
            raise WeightsError(
                f"{path} is a PyTorch checkpoint (a pickle), which is not opened here; convert it with "
                f"`python -m kosmos_core.convert {path.name} kosmos-g.safetensors --spm ... --dict ...`"
            )
        if LARGEST_HEADER < length <= size:
            raise WeightsError(
                f"{path} has a header of {length:,} bytes, which no model needs (at most {LARGEST_HEADER:,} are read); "
                "give a Kosmos-G .safetensors file"
            )
        if len(start) < 8 or not 2 <= length <= LARGEST_HEADER:
            raise WeightsError(f"{path} is not a safetensors file; give a Kosmos-G .safetensors file")
        if 8 + length > size:
            raise WeightsError(f"{path} is cut short: {size} bytes, its header alone needs {8 + length}; copy it again")
        try:
            entries = json.loads(brace + file.read(length - 1))
            metadata = {key: str(value) for key, value in entries.pop("__metadata__", {}).items()}
            shapes = {name: tuple(map(operator.index, entry["shape"])) for name, entry in entries.items()}
            dtypes = {name: entry["dtype"] for name, entry in entries.items()}
            if not all(map(str.isprintable, entries)):
                raise ValueError("names that no line can show")
            end = 8 + length + max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise WeightsError(f"{path} is not a safetensors file (its header is unreadable); copy it again") from error
    if end > size:
        raise WeightsError(f"{path} is cut short: {size} bytes where its header promises {end}; copy it again")
    return Header(metadata, shapes, dtypes)


def write(
    path: str | os.PathLike,
    tensors: Iterable[tuple[str, Tensor, torch.dtype]],
    metadata: dict[str, str],
    *,
    new: bool = False,
) -> None:
    """Write (name, tensor, type on disk) one after the other; the file appears under its name only when complete.

    A tensor is converted when its turn comes and let go of afterwards. Raises OSError (full disk, no permission, no
    such folder) with the half-written file removed and an existing file untouched; FileExistsError where it has to be
    `new` and is not.
    """
    path, entries, offset = Path(path), {}, 0
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the name of the file to write in it")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: there is no folder {path.parent}; make it first")
    tensors = sorted(tensors, key=lambda entry: (-entry[2].itemsize, entry[0]))  # larger types first keeps alignment
    for name, tensor, dtype in tensors:
        stop = offset + tensor.numel() * dtype.itemsize
        entries[name] = {"dtype": NAMES[dtype], "shape": list(tensor.shape), "data_offsets": [offset, stop]}
        offset = stop
    header = json.dumps({"__metadata__": metadata, **entries}, separators=(",", ":")).encode()
    header += b" " * (-(8 + len(header)) % 64)  # so that a memory map holds the tensors at aligned addresses
    try:
        with atomic_write(path, new=new) as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for _, tensor, dtype in tensors:
                plain = tensor.detach().to("cpu", dtype).contiguous().flatten()
                if plain.numel():
                    file.write(memoryview(plain.view(torch.uint8).numpy()))
    except FileExistsError:
        raise
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        way_out = "make room, or give a folder on another disk" if full else "give a folder in which you may write"
        raise OSError(error.errno, f"{path} cannot be written ({error.strerror}); {way_out}") from error
