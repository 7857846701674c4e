"""Perceptual hashes of every input shard, kept in the output folder, and which pictures they leave out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from kosmos_core.atomic import atomic_write

from .construct_config import ConstructConfig
from .duplicates import near_duplicates
from .input_shards import InputShard


class HashFiles:
    """A file for each shard; its name holds what the hashes depend on, so that others are never taken for it.

    Without a search for duplicates there is none, and nothing is missing.
    """

    def __init__(
        self, config: ConstructConfig, shards: Sequence[InputShard], work: Path, contents: Mapping[str, str]
    ) -> None:
        self.distance = config.filters.duplicate_distance
        self.folder = work / "hashes"
        self.paths: list[Path] = []
        if config.filters.duplicates != "off":
            self.folder.mkdir(exist_ok=True)
            table = contents.get(f"open_images {config.open_images}")  # says how pictures are turned
            decides = json.dumps([asdict(config.filters), table]).encode()
            settings = hashlib.blake2b(decides, digest_size=4).hexdigest()
            for shard in shards:
                name = hashlib.blake2b(shard.name.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
                self.paths.append(self.folder / f"{name}.{shard.fingerprint}.{settings}.npz")
            for stale in set(self.folder.iterdir()) - set(self.paths):
                stale.unlink(missing_ok=True)
        self.missing_at_first = bool(self.missing())

    def missing(self) -> list[int]:
        """Numbers of the shards whose hashes are not there."""
        return [number for number, path in enumerate(self.paths) if not path.is_file()]

    def write(self, number: int, positions: np.ndarray, hashes: np.ndarray) -> None:
        """Keep the hashes of one shard; any process may do so."""
        with atomic_write(self.paths[number]) as file:
            np.savez(file, positions=positions, hashes=hashes)

    def duplicates(self) -> dict[int, frozenset[int]]:
        """Positions of pictures that repeat an earlier one, by shard number."""
        if not self.paths:
            return {}
        positions, hashes, owners = [], [], []
        for number, path in enumerate(self.paths):
            with np.load(path) as stored:
                positions.append(stored["positions"])
                hashes.append(stored["hashes"])
                owners.append(np.full(len(positions[-1]), number))
        repeated = near_duplicates(np.concatenate(hashes), self.distance)
        found: dict[int, set[int]] = {}
        owner, position = np.concatenate(owners)[repeated], np.concatenate(positions)[repeated]
        for number, place in zip(owner.tolist(), position.tolist(), strict=True):
            found.setdefault(number, set()).add(place)
        return {number: frozenset(places) for number, places in found.items()}
