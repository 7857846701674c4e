"""Where pictures come from: a folder of them, tars as img2dataset and Open Images' mirror write them, a CSV beside.

One tar, or `shard_size` pictures of a folder in the order of their names, is one input shard: the unit of work. A tar
is read as the folder would be that it was packed from (`tar_members`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from kosmos_core.images import IMAGE_ENDINGS

from ..base.content_digest import RememberedDigests
from ..base.errors import ConfigError
from ..base.text import TEXT_ENDINGS, decode_text
from .chunks import SourceImage
from .construct_config import ConstructConfig
from .open_images_table import OpenImagesTable
from .tar_members import BESIDE, LONGEST_TEXT, Found, ending_of, in_tar

TARS = (".tar", ".tar.gz", ".tgz")
# No key and no shard begins with what readers of shards take for their own: "__key__", "._name", ".hidden".
CLEAN_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,79}")


@dataclass(frozen=True)
class InputShard:
    """One unit of work.

    name: of the output shard, without ending, relative to the output folder. files: the pictures, where `path` is a
    folder; None where it is a tar. beside: for each of `files`, what stands beside it. fingerprint: changes when the
    content of the input changes.
    """

    name: str
    path: str
    files: tuple[str, ...] | None
    fingerprint: str
    beside: tuple[tuple[str, ...], ...] = ()

    def without(self, positions: frozenset[int]) -> InputShard:
        """The shard whose result lacks the pictures at these positions: another fingerprint for other positions."""
        return replace(self, fingerprint=_digest(f"{self.fingerprint} {sorted(positions)}")) if positions else self


@dataclass
class InputFiles:
    """What was found: the shards, and the files that belong to none of them, counted by reason."""

    shards: list[InputShard]
    left_out: Counter[str] = field(default_factory=Counter)


def find_shards(config: ConstructConfig) -> list[InputShard]:
    """The shards of `find_input`."""
    return find_input(config).shards


def find_input(config: ConstructConfig, digests: RememberedDigests | None = None) -> InputFiles:
    """All input shards, in an order that depends on names alone.

    digests: those of earlier runs, so that content is read again only where it may have changed.

    Raises:
        ConfigError: there is nothing to read.
    """
    root, digests = Path(config.input).expanduser(), digests or RememberedDigests()
    if root.is_file() and root.name.lower().endswith(TARS):
        return InputFiles(_fingerprinted([_tar_shard(root, root.parent, set())], digests))
    if not root.is_dir():
        expected = "expected a folder of pictures, a folder of tars or one tar"
        raise ConfigError(f"input: {config.input} is {'no tar' if root.exists() else 'not there'}; {expected}.")
    if os.path.realpath(root) == os.path.realpath(config.output):
        raise ConfigError(f"output: {config.output} is the input itself; choose another folder.")
    left_out: Counter[str] = Counter()
    names = sorted(_walk(root, os.path.realpath(config.output), left_out))
    tars = [name for name in names if name.lower().endswith(TARS)]
    images = [name for name in names if ending_of(name) in IMAGE_ENDINGS]
    texts = {(_stem(name), ending_of(name)): name for name in names if ending_of(name) in BESIDE}
    endings = (ending_of(name) for name in names if not name.lower().endswith(TARS))
    unknown = (ending for ending in endings if ending not in (*IMAGE_ENDINGS, *BESIDE))
    left_out.update(f"file: .{ending} is not read" if ending else "file: no ending" for ending in unknown)
    beside = [tuple(texts[key] for ending in BESIDE if (key := (_stem(name), ending)) in texts) for name in images]
    alone = len(texts.keys() - {(_stem(name), ending) for name in images for ending in BESIDE})
    if alone:
        left_out["file: text without a picture"] = alone
    if not tars and not images:
        others = f" (it holds {', '.join(f'{count} x {why}' for why, count in sorted(left_out.items()))})"
        raise ConfigError(
            f"input: {config.input} holds neither pictures ({', '.join(IMAGE_ENDINGS)}) nor tars ({', '.join(TARS)})"
            f"{others if left_out else ''}."
        )
    taken: set[str] = set()
    shards = [_tar_shard(root / name, root, taken) for name in tars]
    for number, begin in enumerate(range(0, len(images), config.shard_size)):
        part = slice(begin, begin + config.shard_size)
        name = _untaken(f"pictures-{number:06}", taken)
        shards.append(InputShard(name, str(root), tuple(images[part]), "", tuple(beside[part])))
    return InputFiles(_fingerprinted(shards, digests), left_out)


def _walk(root: Path, output: str, left_out: Counter[str]) -> Iterator[str]:
    """Names of all files below `root`, relative to it; linked folders too, but each folder once and `output` never."""
    pending, seen = [root], {output}
    while pending:
        folder = pending.pop()
        real = os.path.realpath(folder)
        if real in seen:
            if real != output:
                left_out["folder: linked a second time"] += 1
            continue
        seen.add(real)
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            left_out["folder: cannot be read"] += 1
            continue
        for entry in entries:
            if entry.name.startswith("."):
                left_out["file: hidden"] += 1
            elif entry.is_dir():
                pending.append(Path(entry.path))
            elif entry.is_file():
                yield Path(entry.path).relative_to(root).as_posix()
            else:
                left_out["file: broken link" if entry.is_symlink() else "file: neither file nor folder"] += 1


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _tar_shard(path: Path, root: Path, taken: set[str]) -> InputShard:
    relative = path.relative_to(root).as_posix()
    ending = next(ending for ending in sorted(TARS, key=len, reverse=True) if relative.lower().endswith(ending))
    parts = PurePosixPath(relative[: -len(ending)] or "shard").parts
    # Readers pass over files and folders that begin with a dot or two underlines.
    name = "/".join(re.sub(r"^_*", "", part.replace(".", "_")) or "shard" for part in parts)
    return InputShard(_untaken(name, taken), str(path), None, "")


def _untaken(name: str, taken: set[str]) -> str:
    """The name, with underlines behind it where another shard has it already; it is taken from then on."""
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _fingerprinted(shards: list[InputShard], digests: RememberedDigests) -> list[InputShard]:
    """The shards with what their content is: of a tar the bytes, of pictures their own and those beside them."""
    groups = []
    for shard in shards:
        if shard.files is None:
            groups.append(([Path(shard.path)], [Path(shard.path).name]))
        else:
            names = [name for image, beside in zip(shard.files, shard.beside, strict=True) for name in (image, *beside)]
            groups.append(([Path(shard.path, name) for name in names], names))
    return [replace(shard, fingerprint=found) for shard, found in zip(shards, digests.of(groups), strict=True)]


def _digest(text: str) -> str:
    return hashlib.blake2b(_sound(text).encode(), digest_size=8).hexdigest()


def _sound(text: str) -> str:
    """The text without what UTF-8 cannot write: names that are no Unicode, halves of characters in JSON."""
    return text.encode("utf-8", "backslashreplace").decode()


def clean_key(name: str) -> str:
    """A sample's key from a file's name: letters, digits, - and _ only, and a different key for every name."""
    if CLEAN_KEY.fullmatch(name):
        return name
    return f"{re.sub(r'[^A-Za-z0-9_-]+', '_', name)[-60:].strip('_-') or 'picture'}-{_digest(name)}"


def read_shard(shard: InputShard, config: ConstructConfig) -> Iterator[SourceImage]:
    """The pictures of a shard in their order, encoded as they are; a file that is left out has its `problem`.

    Raises:
        DamagedShard: it cannot be read to its end; what came before is sound.
    """
    most = int(config.filters.max_megabytes * 1e6)
    found = _in_folder(shard, most) if shard.files is not None else in_tar(shard.path, most)
    open_images = OpenImagesTable.beside(config) if config.open_images else None
    seen: set[str] = set()
    for name, content, beside, problem in found:
        stem, _, ending = name.rpartition(".")
        key = clean_key(stem if ending.lower() == "jpg" else f"{stem}-{ending.lower()}")
        while key in seen:
            key += "-again"
        seen.add(key)
        described = {name: _sound(value) for name, value in _described(beside).items()}
        image = SourceImage(key, content, **{"source": _sound(name), "licence": config.licence, **described})
        if not content:
            problem = problem or "picture: unreadable"
        elif described.get("given_caption") is None and _caption(beside) is not None and config.caption.kind == "given":
            problem = "caption: not UTF-8"
        image.problem = problem
        if open_images and not image.problem:
            open_images.describe(image, stem.rpartition("/")[2])
        yield image


def _caption(beside: dict[str, bytes]) -> bytes | None:
    return next((beside[ending] for ending in TEXT_ENDINGS if ending in beside), None)


def _described(beside: dict[str, bytes]) -> dict[str, str]:
    """Caption, origin and licence from the files beside a picture, as img2dataset writes them."""
    described: dict[str, str] = {}
    try:
        values = json.loads(beside.get("json", b"{}"))
    except (ValueError, RecursionError):
        values = {}
    values = values if isinstance(values, dict) else {}
    try:
        written = _caption(beside)
        text = values.get("caption") if written is None else decode_text(written)
    except ValueError:
        text = None
    if isinstance(text, str):
        described["given_caption"] = " ".join(text.split())
    if isinstance(values.get("url"), str):
        described["source"] = values["url"]
    licence = values.get("license") or values.get("licence")
    if isinstance(licence, str):
        described["licence"] = licence
    return described


def _in_folder(shard: InputShard, most: int) -> Iterator[Found]:
    for name, names in zip(shard.files or (), shard.beside, strict=True):
        path, texts = Path(shard.path, name), [Path(shard.path, text) for text in names]
        content, beside, problem = b"", {}, ""
        try:
            if path.stat().st_size > most:
                problem = "picture: file too large"
            elif any(text.stat().st_size > LONGEST_TEXT for text in texts):
                problem = "picture: the text beside it is too large"
            else:
                beside = {ending_of(text.name): text.read_bytes() for text in texts}
                content = path.read_bytes()
        except OSError:
            problem = "picture: unreadable"
        yield name, content, beside, problem
