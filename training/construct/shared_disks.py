"""Whether every node of a cluster sees the folders of a run, asked before hours of work land on disks of their own."""

from __future__ import annotations

import contextlib
import secrets
from pathlib import Path

from ..base.errors import ConfigError
from ..base.shared_folder import appears
from .construct_config import ConstructConfig
from .input_shards import InputShard
from .places import Room, rooms
from .ray_cluster import ray


def require_seen_by_all(config: ConstructConfig, shards: list[InputShard]) -> None:
    """Leave a file of a random name in the output folder, and let a task on each node look for it and for the input.

    Raises:
        ConfigError: naming the folder and the nodes that do not see it.
    """
    nodes = [room for room in rooms() if room.cpus > 0]  # a head without cores runs none of the stages
    mark = Path(config.output, f".seen-by-all-{secrets.token_hex(8)}").resolve()
    sources = [str(Path(shards[number].path).resolve()) for number in sorted({0, len(shards) - 1})]
    look = ray.remote(_unseen)
    mark.touch()
    try:
        tasks = [look.options(num_cpus=0, scheduling_strategy=_on(node)) for node in nodes]
        answers = ray.get([task.remote([str(mark), *sources]) for task in tasks])
    finally:
        with contextlib.suppress(OSError):
            mark.unlink(missing_ok=True)
    blind = [node.address for node, unseen in zip(nodes, answers, strict=True) if str(mark) in unseen]
    if blind:
        raise ConfigError(
            f"output: {config.output} is not one folder for all nodes: {', '.join(blind)} does not see what was "
            "written there; choose a folder on a file system that all nodes share."
        )
    for source in sources:
        if without := [node.address for node, unseen in zip(nodes, answers, strict=True) if source in unseen]:
            raise ConfigError(
                f"input: {source} is not there on {', '.join(without)}; put the input on a file system that all nodes "
                "share, or a copy under the same path on each."
            )


def _on(node: Room) -> object:
    return ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node.node, soft=False)


def _unseen(paths: list[str]) -> list[str]:
    return [path for path in paths if not appears(Path(path))]
