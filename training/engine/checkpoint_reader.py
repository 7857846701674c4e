"""Checkpoints read without running anything that is in them.

torch.distributed.checkpoint unpickles a checkpoint's table of contents and every object in it, and a pickle may run any
code. Here the table goes through an allow-list, and a run stores nothing but tensors: JSON as the bytes of a uint8
tensor. Older checkpoints hold counters, data positions and random states as pickles; an allow-list reads those too.
"""

from __future__ import annotations

import contextlib
import io
import json
import pickle
from collections.abc import Iterator, Mapping
from enum import Enum
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import metadata as contents
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.planner import ReadItem

from kosmos_core.original.strict_pickle import Allowed, Refused, StrictUnpickler

from ..base.errors import CheckpointError, ConfigError, TrainingStopped
from ..base.processes import ProcessGroup
from .checkpoint import innermost, reason

FAILURES = (Exception, CheckpointException)  # the latter derives from BaseException
CLASSES_OF_CONTENTS = (
    contents.Metadata,
    contents.MetadataIndex,
    contents.StorageMeta,
    contents.TensorStorageMetadata,
    contents.BytesStorageMetadata,
    contents.ChunkStorageMetadata,
    contents.TensorProperties,
    contents._MEM_FORMAT_ENCODING,
    _StorageInfo,
)


def _instance(kind: type, *values: Any) -> Any:
    """An instance that gets its fields afterwards, or a member of an enumeration."""
    return kind(*values) if issubclass(kind, Enum) else object.__new__(kind)


# Where the checkpoint was written, which nothing needs: read on any system, and as Python 3.13 names it too.
PATHS = {"PosixPath": PurePosixPath, "WindowsPath": PureWindowsPath}
TABLE_OF_CONTENTS = {
    ("torch", "Size"): Allowed(lambda sizes=(): torch.Size(sizes)),
    ("torch.serialization", "_get_layout"): Allowed(torch.serialization._get_layout),
    **{(kind.__module__, kind.__name__): Allowed(partial(_instance, kind)) for kind in CLASSES_OF_CONTENTS},
    **{("torch", name): kind for name, kind in vars(torch).items() if isinstance(kind, torch.dtype)},
    **{(module, name): Allowed(kind) for name, kind in PATHS.items() for module in ("pathlib", "pathlib._local")},
}


def _load_storage(content: bytes) -> Any:
    """torch's own function of this purpose unpickles whatever it is given."""
    return torch.load(io.BytesIO(content), weights_only=True)


def _rebuild(storage: Any, offset: int, size: tuple, stride: tuple, *_: Any) -> Tensor:
    return torch._utils._rebuild_tensor(storage, offset, size, stride)


class _OldArray:
    """The whole numbers of 32 bits of a NumPy array, read from its pickle (and a stand-in for its dtype).

    NumPy's own classes would do what the pickle says, and a pickle can say that bytes are addresses of Python objects.
    """

    def __init__(self, *_: Any) -> None:
        self.state: tuple = ()

    def __setstate__(self, state: tuple) -> None:
        self.state = state

    def tolist(self) -> list[int]:
        return numpy.frombuffer(self.state[-1], dtype="<u4").tolist()


def _from_buffer(content: bytes, *_: Any) -> _OldArray:
    """An array in the form in which Python 3.14 pickles it."""
    array = _OldArray()
    array.state = (bytes(content),)
    return array


OLD_STATE = {
    ("_codecs", "encode"): Allowed(lambda text, *_: text.encode("latin1")),
    ("collections", "OrderedDict"): Allowed(lambda *_: {}),
    ("torch.storage", "_load_from_bytes"): Allowed(_load_storage),
    ("torch._utils", "_rebuild_tensor_v2"): Allowed(_rebuild),
    **{("numpy", name): Allowed(_OldArray) for name in ("ndarray", "dtype")},
    **{(f"numpy.{core}.multiarray", "_reconstruct"): Allowed(_OldArray) for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): Allowed(_from_buffer) for core in ("core", "_core")},
}


class _Unpickler(StrictUnpickler):
    classes_with_state = frozenset({_OldArray, *CLASSES_OF_CONTENTS})
    largest = 2 << 30  # a table of contents takes 170 bytes for each tensor and process

    def __init__(self, file: io.BufferedIOBase, allowed: Mapping[tuple[str, str], Any]) -> None:
        super().__init__(file)
        self.allowed = allowed

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise Refused(f"it asks for {module}.{name}, which no checkpoint of a training contains")
        return self.allowed[module, name]

    def check_key(self, key: Any) -> None:
        if type(key) is not contents.MetadataIndex:
            super().check_key(key)
        elif type(key.fqn) is not str or type(key.offset) not in (torch.Size, type(None)):
            raise Refused("its table of contents has an entry without a name")


class _Reader(dcp.FileSystemReader):
    """DCP's reader, its table of contents read through the allow-list."""

    def read_metadata(self, *_: Any, **__: Any) -> contents.Metadata:
        with (Path(self.path) / ".metadata").open("rb") as file:
            metadata = _Unpickler(file, TABLE_OF_CONTENTS).load()
        for part in metadata.storage_data.values():
            if PureWindowsPath(part.relative_path).name != part.relative_path:
                raise Refused(f"it asks for the file {part.relative_path}, which is none of its own")
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _Planner(dcp.DefaultLoadPlanner):
    """DCP's planner, which takes plain bytes where it would unpickle any object."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        name, content = read_item.dest_index.fqn, None
        with contextlib.suppress(pickle.UnpicklingError):
            content = torch.load(value, weights_only=True)
        if not isinstance(content, bytes) or name not in self.original_state_dict:
            raise Refused(f"its entry {name} is an object of Python, where a training stores tensors or bytes")
        self.original_state_dict[name] = content


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever the content of a checkpoint leads to into a CheckpointError with a sentence."""
    try:
        yield
    except (CheckpointError, ConfigError, TrainingStopped):
        raise
    except FAILURES as error:
        if isinstance(refused := innermost(error), Refused):
            raise CheckpointError(
                f"{path} was not opened: {refused}. It may run code when it is loaded; take checkpoints from a source "
                f"that you trust."
            ) from error
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint ({reason(error)}); go on from an earlier one with --resume PATH."
        ) from error


def stored(path: Path) -> dict[str, tuple[int, ...] | None]:
    """The names of everything in a checkpoint with the shapes of what is a tensor.

    Raises:
        CheckpointError: it cannot be read, or its table of contents asks for code.
    """
    with reading(path):
        entries = _Reader(path).read_metadata().state_dict_metadata
        return {str(name): tuple(entry.size) if hasattr(entry, "size") else None for name, entry in entries.items()}


def load(state: dict[str, Any], path: Path, process_group: ProcessGroup | None = None) -> None:
    """Fill `state` in place from a checkpoint; with `process_group`, on all its processes together.

    Raises:
        CheckpointError: something is not in it, has another shape, or cannot be read.
    """
    single = process_group is None or not process_group.distributed
    group = None if single else process_group.group
    with reading(path):
        dcp.load(state, storage_reader=_Reader(path), planner=_Planner(), process_group=group, no_dist=single)


def to_tensor(value: Any) -> Tensor:
    """A value of numbers, strings, lists and dictionaries as the bytes of its JSON, a uint8 tensor."""
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def from_tensor(tensor: Tensor) -> Any:
    """The value that `to_tensor` made a tensor of; tuples come back as lists."""
    return json.loads(tensor.numpy().tobytes())


def placeholder(name: str, found: Mapping[str, tuple[int, ...] | None]) -> Tensor | bytes:
    """What `load` fills with an entry of `stored`: bytes of a tensor, or the pickle of an old checkpoint."""
    shape = found[name]
    return b"" if shape is None else torch.empty(shape, dtype=torch.uint8)


def value_of(entry: Tensor | bytes) -> Any:
    """The value of a filled `placeholder`; raises `Refused` for a pickle that asks for code."""
    if isinstance(entry, Tensor):
        return from_tensor(entry)
    return _Unpickler(io.BytesIO(entry), OLD_STATE).load()


def read_progress(path: Path) -> dict[str, Any]:
    """The counters of a checkpoint; CheckpointError where it cannot be read."""
    found = stored(path)
    if "progress" not in found:
        raise CheckpointError(f"{path} holds no counters; give a checkpoint of a training.")
    with reading(path):
        state = {"progress": placeholder("progress", found)}
        load(state, path)
        progress = value_of(state["progress"])
        if not isinstance(progress, dict) or not isinstance(progress.get("step"), int):
            raise ValueError("its counters are none of a training")
        return progress
