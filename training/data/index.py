"""Find a data set's files and index them, in Megatron-Energon's own index format: nothing to prepare by hand.

`<shard>.tar.idx` and `<file>.jsonl.idx` hold the byte offset of every sample as little-endian uint64, the end last:
what `energon prepare` writes, and an index that it wrote is used as it is. Unlike that command we keep the sound
samples of a truncated tar, allow the same key in two shards, and read folders that cannot be written: their indexes go
to a cache folder, beside links to the shards. Processes that index the same folder wait for each other.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock

from kosmos_core.atomic import write_file
from kosmos_core.images import is_image_name

from ..base.display import printable
from ..base.errors import TrainingStopped
from ..base.text import encoding_of
from .process_map import process_map

ENDINGS = (".tar", ".jsonl", ".tsv")
PACKED = (".tgz", *(f"{ending}.{packing}" for ending in ENDINGS for packing in ("gz", "zst", "bz2", "xz")))
UNSORTED = "members of a sample are not next to each other; pack them anew, with tar --sort=name"
RECORD_FOLDER = ".nv-meta"  # Energon's own
RECORD = f"{RECORD_FOLDER}/kosmos-g-index.json"


class DataError(TrainingStopped):
    """Data that cannot be trained on; the message says which, why and what to do."""


@dataclass(frozen=True)
class Shard:
    """One file of samples. size (bytes), modified (ns): when it was indexed; problem: why it ends early, if it does."""

    name: str
    count: int
    size: int
    modified: int
    problem: str | None = None


@dataclass(frozen=True)
class IndexedDataset:
    """An indexed data set: `root / shard.name` is the path of every shard, and its index lies beside it.

    shards: those with samples. damaged: those with a problem, whether they have samples or not. unread: other files in
    the folder.
    """

    root: Path
    ending: str
    shards: tuple[Shard, ...]
    damaged: tuple[Shard, ...] = ()
    unread: tuple[str, ...] = ()

    def __len__(self) -> int:
        return sum(shard.count for shard in self.shards)


def index_dataset(path: str | Path, index_folder: str | Path | None = None) -> IndexedDataset:
    """Index what is new or changed in a data set and return it.

    path: a folder with .tar, .jsonl or .tsv files, or one such file. index_folder: see `DataConfig.index_folder`.
    Raises DataError where there is nothing to read.
    """
    folder, names, ending, unread = _find(Path(path).expanduser())
    root = _index_root(folder, index_folder)
    with _locked(root):
        if root != folder:
            _link(folder, root, names)
        known = _known(root)
        stale = [name for name in names if not _fresh(root, name, known.get(name))]
        processes = os.cpu_count() or 1 if len(stale) > 4 else 1  # starting them takes longer than a few shards
        found = process_map(_index_shard, [(str(root), name) for name in stale], processes)
        known.update({shard.name: shard for shard in found})
        shards = tuple(known.get(name) or _adopt(root, name) for name in names)
        if stale or set(known) != set(names):
            record = {shard.name: asdict(shard) for shard in shards}
            write_file(root / RECORD, json.dumps(record, indent=1))
            _describe_to_energon(root, ending, shards)
    damaged = tuple(shard for shard in shards if shard.problem)
    unread = tuple(name for name in unread if not name.endswith(".idx"))
    dataset = IndexedDataset(root, ending, tuple(shard for shard in shards if shard.count), damaged, unread)
    if not dataset.shards:
        problems = "; ".join(f"{printable(shard.name)}: {shard.problem or 'holds no sample'}" for shard in shards[:5])
        raise DataError(f"No sample can be read in {path} ({problems}). Expected WebDataset tars, .jsonl or .tsv.")
    return dataset


def sample_offsets(path: Path) -> np.ndarray:
    """Byte offsets of a shard's samples and of their end, memory-mapped uint64."""
    return np.memmap(path.with_suffix(path.suffix + ".idx"), dtype="<u8", mode="r")


def has_index(dataset: IndexedDataset) -> bool:
    """Whether this machine's disk holds the files of a data set that another process has indexed, and their indexes."""
    for shard in dataset.shards:
        path = dataset.root / shard.name
        try:
            index = path.with_suffix(path.suffix + ".idx").stat()
            if path.stat().st_size != shard.size or index.st_size != 8 * (shard.count + 1):
                return False
        except OSError:
            return False
    return True


def _find(path: Path) -> tuple[Path, list[str], str, tuple[str, ...]]:
    """The folder, the names of its data files relative to it, sorted, their ending, and what else lies there.

    Endings count in any case. Raises DataError, rather than leave some of the data out, where only a part could be
    read: lines beside tars, packed files, links to nothing.
    """
    if path.is_file():
        if path.suffix.lower() not in ENDINGS:
            raise DataError(
                f"{printable(path)} is not a data file: expected one of {', '.join(ENDINGS)} or a folder of them."
            )
        return path.parent, [path.name], path.suffix.lower(), ()
    if not path.is_dir():
        raise DataError(f"The data folder {printable(path)} does not exist. Make it, or correct the path.")
    found: dict[str, list[str]] = {ending: [] for ending in (*ENDINGS, *PACKED, "")}
    for file in visible_files(path):
        name = file.relative_to(path).as_posix()
        ending = next((ending for ending in found if ending and name.lower().endswith(ending)), "")
        if ending and not file.exists():
            raise DataError(f"{printable(file)} is a link to a file that is not there. Correct or delete it.")
        found[ending].append(name)
    for names in found.values():
        names.sort()
    endings = [ending for ending in ENDINGS if found[ending]]
    packed = [name for ending in PACKED for name in found[ending]]
    if len(endings) > 1:
        first, second = (found[ending][0] for ending in endings[:2])
        raise DataError(
            f"{printable(path)} holds {' and '.join(endings)} files ({printable(first)}, {printable(second)}), of "
            "which only one kind can be read. Give each a folder and a source of its own."
        )
    if endings and packed:
        raise DataError(
            f"{printable(path)} holds {endings[0]} files and packed ones, which cannot be read by place: "
            f"{_named(packed)}. Unpack them, or move them elsewhere."
        )
    if endings:
        return path, found[endings[0]], endings[0], tuple(found[""])
    hint = ""
    if packed:
        hint = f" Unpack the compressed files first, e.g. {printable(packed[0])}."
    elif parquet := [name for name in found[""] if name.lower().endswith(".parquet")]:
        hint = f" For {_named(parquet)} see python -m training.data.convert --help."
    elif any(is_image_name(name) or name.lower().endswith((".txt", ".json")) for name in found[""]):
        hint = f" Pack loose files into a tar: tar --sort=name -cf SET/00000.tar -C {printable(path)} ."
    raise DataError(f"{printable(path)} holds no data file: expected {', '.join(ENDINGS)}.{hint}")


def _named(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(printable, names[:3])) + more


def visible_files(root: Path, without: str = "") -> Iterator[Path]:
    """Files below a folder that are not hidden, in linked folders too; a folder that is met again is not read again.

    without: folders below it that hold a folder of this name are passed over.
    """
    seen: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen or (without in folders and Path(folder) != root):
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not _hidden(Path(name)))
        yield from (Path(folder, name) for name in sorted(names) if not _hidden(Path(name)))


def _hidden(name: Path) -> bool:
    return any(part.startswith((".", "__")) for part in name.parts)


def _index_root(folder: Path, index_folder: str | Path | None) -> Path:
    """Where indexes are written: the folder itself if possible, else a folder of links in the cache."""
    if index_folder is None:
        if os.access(folder, os.W_OK):
            return folder
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        index_folder = Path(cache) / "kosmos-g" / "index"
    digest = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    return Path(index_folder).expanduser() / f"{folder.resolve().name}-{digest}"


@contextlib.contextmanager
def _locked(root: Path):
    """One process at a time; the lock ends with the process that holds it."""
    lock = root / RECORD_FOLDER / ".lock"
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(lock).acquire()
    except OSError as error:
        raise DataError(
            f"The index of {root} cannot be written ({error.strerror}). Set `index_folder` to a folder that can."
        ) from error
    with held:
        yield


def _link(folder: Path, root: Path, names: list[str]) -> None:
    for name in names:
        link, target = root / name, (folder / name).resolve()
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink() or link.readlink() != target:
            link.unlink(missing_ok=True)
            link.symlink_to(target)


def _known(root: Path) -> dict[str, Shard]:
    try:
        known = {name: Shard(**shard) for name, shard in json.loads((root / RECORD).read_bytes()).items()}
        return {name: shard for name, shard in known.items() if isinstance(shard.count, int) and shard.name == name}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}  # whatever else stands there, it is no record of ours


def _fresh(root: Path, name: str, known: Shard | None) -> bool:
    """Whether there is an index and it belongs to the file as it is now."""
    path = root / name
    index, state = path.with_suffix(path.suffix + ".idx"), path.stat()
    if known:
        unchanged = (known.size, known.modified) == (state.st_size, state.st_mtime_ns)
        return unchanged and (known.count == 0 or (index.is_file() and index.stat().st_size == 8 * (known.count + 1)))
    if not index.is_file() or index.stat().st_mtime_ns < state.st_mtime_ns:
        return False
    size = index.stat().st_size
    return size >= 16 and size % 8 == 0 and int(sample_offsets(path)[-1]) <= state.st_size


def _adopt(root: Path, name: str) -> Shard:
    """The record of a shard that another tool has indexed."""
    state = (root / name).stat()
    return Shard(name, len(sample_offsets(root / name)) - 1, state.st_size, state.st_mtime_ns)


def _index_shard(job: tuple[str, str]) -> Shard:
    root, name = Path(job[0]), job[1]
    path = root / name
    state = path.stat()
    try:
        offsets, problem = _tar_offsets(path) if path.suffix.lower() == ".tar" else _line_offsets(path)
    except Exception as error:  # a damaged header can raise anything: OverflowError for a size of 10^20
        offsets, problem = [], f"unreadable: {printable(getattr(error, 'strerror', None) or error)}"
    if len(offsets) > 1:
        write_file(path.with_suffix(path.suffix + ".idx"), np.asarray(offsets, dtype="<u8").tobytes())
    return Shard(name, max(len(offsets) - 1, 0), state.st_size, state.st_mtime_ns, problem)


def sample_name(member: tarfile.TarInfo) -> tuple[str, str] | None:
    """Key and part of a member, by Energon's own expressions; None where it belongs to no sample.

    Hidden files belong to none: macOS puts `cats/._a.jpg` before `cats/a.jpg`, which would all be of the key `cats/`.
    """
    from megatron.energon.flavors.webdataset.config import skip_meta_re, split_name_re  # late, see `streams.py`

    name = split_name_re.match(member.name)
    if not name or not member.isreg() or skip_meta_re.match(member.name) or name[1].endswith("/"):
        return None
    return name[1], name[2]


def _tar_offsets(path: Path) -> tuple[list[int], str | None]:
    """Offsets of the samples, and what is wrong with the file; a half-written last sample is left out.

    A sample is neighbouring members of one name up to its first dot. The name rules are Energon's own expressions, so
    that its reader sees the same samples.
    """
    offsets: list[int] = []
    end, last = 0, None
    keys: set[str] = set()
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members = []  # tarfile would keep every header of a large shard in memory
                    name = sample_name(member)
                    if name:
                        if name[0] != last:
                            if name[0] in keys:
                                return [], UNSORTED
                            offsets.append(member.offset)
                            last = name[0]
                            keys.add(last)
                        if not member.issparse() and member.offset_data + member.size > size:
                            raise tarfile.ReadError("unexpected end of data")
                    end = tar.offset  # of the next header; a sparse member is shorter than its size
            file.seek(end)
            if file.read(512).strip(b"\0") or end > size:
                raise tarfile.ReadError("damaged header")  # tarfile takes a damaged header for the end of the file
        except tarfile.TarError:
            # What precedes the break is sound but for its last sample, which may lack members.
            return (offsets if len(offsets) > 1 else []), "truncated tar"
    return [*offsets, end] if offsets else [], None


def _line_offsets(path: Path) -> tuple[list[int], str | None]:
    """Offsets of the lines that are not blank, and what is wrong with the file."""
    offsets, position = [], 0
    with path.open("rb") as file:
        if (encoding := encoding_of(file.read(4))) not in ("utf-8", "utf-8-sig"):
            return [], f"{encoding.upper()}, of which lines cannot be found by place: save it as UTF-8"
        file.seek(0)
        for line in file:
            if line.strip():
                offsets.append(position)
            position += len(line)
    return ([*offsets, position] if offsets else []), None


def _describe_to_energon(root: Path, ending: str, shards: tuple[Shard, ...]) -> None:
    """Leave what Energon's own tools need to open the folder, unless `energon prepare` already has."""
    folder = root / RECORD_FOLDER
    if ending != ".tar" or (folder / "index.sqlite").exists():
        return
    import yaml
    from megatron.energon import __version__

    counts = {shard.name: shard.count for shard in shards if shard.count}
    dataset = {"__module__": "megatron.energon", "__class__": "CrudeWebdataset", "subflavors": {}}
    split = {"split_parts": {"train": list(counts), "val": [], "test": []}, "exclude": []}
    write_file(folder / "split.yaml", yaml.safe_dump(split))
    write_file(folder / ".info.json", json.dumps({"energon_version": __version__, "shard_counts": counts}))
    write_file(folder / "dataset.yaml", yaml.safe_dump(dataset))
