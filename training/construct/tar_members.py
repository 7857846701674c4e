"""The pictures of a tar and what stands beside them, bounded in memory whatever the tar claims.

Read as the folder would be that was packed: `holiday.1.jpg` is a picture of its own, and `holiday.1.txt` its caption.
Whatever is not read is handed on with the reason, to be counted.
"""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from kosmos_core.images import IMAGE_ENDINGS

from ..base.text import TEXT_ENDINGS

BESIDE = ("json", *TEXT_ENDINGS)
LONGEST_TEXT = 16_000_000  # bytes of a file beside a picture

Found = tuple[str, bytes, dict[str, bytes], str]
"""Name, content, what stands beside it by ending, and why it is left out ("" where it is not)."""


class DamagedShard(Exception):
    """An input shard that cannot be read to its end; the message says why."""


def ending_of(name: str) -> str:
    """The last ending of a file's name, lower case, without its dot; "" where it has none."""
    stem, dot, ending = name.rpartition("/")[2].rpartition(".")
    return ending.lower() if dot and stem else ""


def in_tar(path: str, most: int) -> Iterator[Found]:
    """Pictures of at most `most` bytes, with the neighbours of their name.

    Raises DamagedShard where the tar cannot be read to its end, or keeps a picture apart from what describes it.
    """
    try:
        with open(path, "rb") as raw:
            compressed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            file = _Bounded(gzip.GzipFile(fileobj=raw) if compressed else raw, max(most, LONGEST_TEXT))
            with tarfile.open(fileobj=file, mode="r:") as tar:
                yield from _grouped(tar, most)
                # tarfile takes any damaged header for the end. A sound archive has a block of zeros there.
                file.seek(tar.offset)
                end = file.read(tarfile.BLOCKSIZE)
                if len(end) < tarfile.BLOCKSIZE or end.strip(b"\0"):
                    raise DamagedShard(f"damaged or truncated at byte {tar.offset}")
    except DamagedShard:
        raise
    except Exception as error:  # a forged header makes tarfile raise nearly anything
        raise DamagedShard(" ".join(f"{error}".split()) or type(error).__name__) from error


class _Bounded(io.RawIOBase):
    """A file of which nothing reads more than `most` bytes at once: a header can claim any length for a name."""

    def __init__(self, file: BinaryIO, most: int) -> None:
        self.file, self.most = file, most

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self.most + tarfile.RECORDSIZE:
            raise DamagedShard(f"a header claims {size:,} bytes")
        return self.file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()


@dataclass
class _Group:
    """Neighbours of one name up to its first dot: pictures and texts by their whole name without the last ending."""

    name: str | None = None
    images: list[tuple[str, str, bytes, str]] = field(default_factory=list)  # stem, name, content, problem
    texts: dict[str, dict[str, bytes]] = field(default_factory=dict)


def _grouped(tar: tarfile.TarFile, most: int) -> Iterator[Found]:
    group, described, alone = _Group(), set(), set()
    for member in tar:
        tar.members = []  # or the list of members grows with the archive
        if member.isdir():
            continue
        name = member.name.removeprefix("./")
        ending, stem = ending_of(name), name.rpartition(".")[0]
        if name.rpartition("/")[2].startswith("."):
            yield name, b"", {}, "file: hidden"
        elif ending in IMAGE_ENDINGS:
            group, done = _continued(group, name), group
            if done is not group:
                yield from _finished(done, described, alone)
            if stem in alone:
                raise _apart(stem)
            problem = _problem(member, most, "picture")
            group.images.append((stem, name, b"" if problem else _content(tar, member), problem))
        elif ending in BESIDE:
            group, done = _continued(group, name), group
            if done is not group:
                yield from _finished(done, described, alone)
            if stem in described:
                raise _apart(stem)
            problem = _problem(member, LONGEST_TEXT, "file")
            if problem:
                yield name, b"", {}, problem
            else:
                group.texts.setdefault(stem, {})[ending] = _content(tar, member)
        else:
            yield name, b"", {}, f"file: .{ending} is not read" if ending else "file: no ending"
    yield from _finished(group, described, alone)


def _continued(group: _Group, name: str) -> _Group:
    folder, slash, file = name.rpartition("/")
    key = f"{folder}{slash}{file.partition('.')[0]}"
    return group if group.name == key else _Group(key)


def _finished(group: _Group, described: set[str], alone: set[str]) -> Iterator[Found]:
    """The pictures of a whole group, then the texts that describe none of them."""
    stems = {stem for stem, *_ in group.images}
    described |= stems
    for stem, name, content, problem in group.images:
        yield name, content, group.texts.get(stem, {}), problem
    for stem, endings in group.texts.items():
        if stem not in stems:
            alone.add(stem)
            for ending in endings:
                yield f"{stem}.{ending}", b"", {}, "file: text without a picture"


def _apart(stem: str) -> DamagedShard:
    return DamagedShard(
        f"the members of {stem} are not next to each other; pack it again with `tar --sort=name`, or give the folder"
    )


def _problem(member: tarfile.TarInfo, most: int, what: str) -> str:
    if not member.isreg():
        return f"{what}: a link, not a file"
    if member.issparse():
        return f"{what}: a file with holes"
    return f"{what}: file too large" if member.size > most else ""


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    # Not by tarfile's reader of a member, which copies its content once more; files with holes were left out before.
    tar.fileobj.seek(member.offset_data)
    content = tar.fileobj.read(member.size)
    if len(content) < member.size:
        raise DamagedShard(f"{member.name} ends early")
    return content
