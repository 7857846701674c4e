"""Where pictures come from: a folder of them, tars as img2dataset and Open Images' mirror write them, a CSV beside.

One tar, or `shard_size` pictures of a folder in the order of their names, is one input shard: the unit of work.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kosmos_core.images import IMAGE_ENDINGS

from ..base.errors import ConfigError
from .chunks import SourceImage
from .construct_config import ConstructConfig
from .open_images_table import OpenImagesTable

INPUT_ENDINGS = (*IMAGE_ENDINGS, "bmp", "gif", "tif", "tiff")
TARS = (".tar", ".tar.gz", ".tgz")
BESIDE = ("json", "txt")
CLEAN_KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")


class DamagedShard(Exception):
    """An input shard that cannot be read to its end; the message says why."""


@dataclass(frozen=True)
class InputShard:
    """One unit of work.

    name: of the output shard, without ending, relative to the output folder. files: the pictures, where `path` is a
    folder; None where it is a tar. fingerprint: changes when the input changes.
    """

    name: str
    path: str
    files: tuple[str, ...] | None
    fingerprint: str


def find_shards(config: ConstructConfig) -> list[InputShard]:
    """All input shards, in an order that depends on names alone.

    Raises:
        ConfigError: there is nothing to read.
    """
    root = Path(config.input).expanduser()
    if root.is_file() and root.name.endswith(TARS):
        return [_tar_shard(root, root.parent)]
    if not root.is_dir():
        expected = "expected a folder of pictures, a folder of tars or one tar"
        raise ConfigError(f"input: {config.input} is {'no tar' if root.exists() else 'not there'}; {expected}.")
    tars, images = [], []
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            if name.startswith("."):
                continue
            path = Path(folder, name)
            if name.endswith(TARS):
                tars.append(path)
            elif path.suffix.lower()[1:] in INPUT_ENDINGS:
                images.append(path.relative_to(root).as_posix())
    if not tars and not images:
        raise ConfigError(f"input: {config.input} holds neither pictures ({', '.join(INPUT_ENDINGS)}) nor tars.")
    shards = [_tar_shard(path, root) for path in sorted(tars)]
    images.sort()
    taken = {shard.name for shard in shards}
    for number, begin in enumerate(range(0, len(images), config.shard_size)):
        files = tuple(images[begin : begin + config.shard_size])
        sizes = "\n".join(f"{name} {(root / name).stat().st_size}" for name in files)
        name = f"pictures-{number:06}"
        while name in taken:
            name += "_"
        shards.append(InputShard(name, str(root), files, _digest(sizes)))
    return shards


def _tar_shard(path: Path, root: Path) -> InputShard:
    relative = path.relative_to(root).as_posix()
    ending = next(ending for ending in sorted(TARS, key=len, reverse=True) if relative.endswith(ending))
    name = relative.removesuffix(ending).replace(".", "_")
    return InputShard(name, str(path), None, _digest(f"{relative} {path.stat().st_size}"))


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def clean_key(name: str) -> str:
    """A sample's key from a file's name: letters, digits, - and _ only, and a different key for every name."""
    if CLEAN_KEY.fullmatch(name):
        return name
    return f"{re.sub(r'[^A-Za-z0-9_-]+', '_', name)[-60:].strip('_')}-{_digest(name)}"


def read_shard(shard: InputShard, config: ConstructConfig) -> Iterator[SourceImage]:
    """The pictures of a shard in their order, encoded as they are.

    Raises:
        DamagedShard: it cannot be read to its end; what came before is sound.
    """
    found = _in_folder(shard) if shard.files is not None else _in_tar(shard)
    open_images = OpenImagesTable.beside(config) if config.open_images else None
    seen: set[str] = set()
    for name, content, beside in found:
        stem, _, ending = name.rpartition(".")
        key = clean_key(stem if ending.lower() == "jpg" else f"{stem}-{ending.lower()}")
        while key in seen:
            key += "-again"
        seen.add(key)
        image = SourceImage(key, content, **{"source": name, "licence": config.licence, **_described(beside)})
        if not content:
            image.problem = "picture: unreadable"
        if open_images:
            open_images.describe(image, stem.rpartition("/")[2])
        yield image


def _described(beside: dict[str, bytes]) -> dict[str, str]:
    """Caption, origin and licence from the files beside a picture, as img2dataset writes them."""
    described: dict[str, str] = {}
    try:
        values = json.loads(beside.get("json", b"{}"))
    except ValueError:
        values = {}
    values = values if isinstance(values, dict) else {}
    text = beside["txt"].decode("utf-8", errors="replace") if "txt" in beside else values.get("caption")
    if isinstance(text, str):
        described["given_caption"] = " ".join(text.split())
    if isinstance(values.get("url"), str):
        described["source"] = values["url"]
    licence = values.get("license") or values.get("licence")
    if isinstance(licence, str):
        described["licence"] = licence
    return described


Found = tuple[str, bytes, dict[str, bytes]]


def _in_folder(shard: InputShard) -> Iterator[Found]:
    for name in shard.files or ():
        path = Path(shard.path, name)
        beside = {}
        for ending in BESIDE:
            companion = path.with_suffix(f".{ending}")
            if companion.is_file():
                beside[ending] = companion.read_bytes()
        try:
            content = path.read_bytes()
        except OSError:
            content = b""
        yield name, content, beside


def _in_tar(shard: InputShard) -> Iterator[Found]:
    """Pictures of a tar with what stands beside them: neighbours of the same name up to the first dot."""
    try:
        with open(shard.path, "rb") as raw:
            compressed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            file = gzip.GzipFile(fileobj=raw) if compressed else raw
            with tarfile.open(fileobj=file, mode="r:") as tar:
                yield from _grouped(tar)
                # tarfile takes any damaged header for the end. A sound archive has a block of zeros there.
                file.seek(tar.offset)
                end = file.read(tarfile.BLOCKSIZE)
                if len(end) < tarfile.BLOCKSIZE or end.strip(b"\0"):
                    raise DamagedShard(f"damaged or truncated at byte {tar.offset}")
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DamagedShard(f"{error}".strip() or type(error).__name__) from error


def _grouped(tar: tarfile.TarFile) -> Iterator[Found]:
    group = None
    images: list[tuple[str, bytes]] = []
    beside: dict[str, bytes] = {}
    for member in tar:
        tar.members = []  # or the list of members grows with the archive
        if not member.isfile():
            continue
        folder, slash, name = member.name.removeprefix("./").rpartition("/")
        stem, _, ending = name.partition(".")
        ending = ending.lower()
        if ending not in INPUT_ENDINGS and ending not in BESIDE:
            continue
        content = tar.extractfile(member).read()
        if len(content) < member.size:
            raise DamagedShard(f"{member.name} ends early")
        if f"{folder}{slash}{stem}" != group:
            yield from ((*image, beside) for image in images)
            group, images, beside = f"{folder}{slash}{stem}", [], {}
        if ending in BESIDE:
            beside[ending] = content
        else:
            images.append((f"{group}.{ending}", content))
    yield from ((*image, beside) for image in images)
