"""Where the processes of a run find room: each on one node of the cluster, with a whole core left for the tasks.

Ray places what asks for resources wherever they are free, one process after the other: three nodes of two cores may
end up with 0.8 and 0.9 free on two of them, and a task that wants a whole core waits for ever. So model processes are
placed here, and a run that nothing moves in says what is missing.
"""

from __future__ import annotations

import inspect
import socket
from dataclasses import dataclass
from typing import Any

from ..base.errors import ConfigError
from .construct_config import WorkerPool
from .ray_cluster import ray

# Ray's own commands for its state ask the dashboard, which a run on one machine does not start.
from ray._private import state  # isort: skip

PREPARE_CPUS = FINISH_CPUS = 1.0
READ_CPUS = 0.25  # reading waits for the disk
TASK_CPUS = PREPARE_CPUS + READ_CPUS  # what the tasks need on one node, so that none waits for another one's room
CREATION = ("DEPENDENCIES_UNREADY", "PENDING_CREATION", "RESTARTING")


@dataclass
class Room:
    """What is still free on one node: cores, GPUs, and the kind of its GPUs."""

    node: str
    address: str
    cpus: float
    gpus: float
    accelerators: frozenset[str]

    def fits(self, pool: WorkerPool, spare: float = 0.0) -> bool:
        """Whether one process of `pool` has room here and leaves `spare` cores."""
        return (
            self.cpus - pool.cpus >= spare - 1e-6
            and self.gpus >= (pool.gpus or 0.0) - 1e-6
            and (pool.accelerator is None or pool.accelerator in self.accelerators)
        )


def rooms() -> list[Room]:
    """The living nodes of the cluster, empty."""
    found = []
    for node in ray.nodes():
        if node["Alive"]:
            has = node["Resources"]
            kinds = frozenset(name.partition(":")[2] for name in has if name.startswith("accelerator_type:"))
            found.append(Room(node["NodeID"], node["NodeManagerAddress"], has.get("CPU", 0), has.get("GPU", 0), kinds))
    return found


def place(pools: dict[str, WorkerPool], nodes: list[Room]) -> dict[str, list[str]]:
    """The node of each process of each pool: the largest first, the node for the tasks kept free, the rest packed.

    Raises:
        ConfigError: a process is larger than what any node has left for it.
    """
    for tasks in sorted(nodes, key=lambda node: (node.gpus, -node.cpus)):  # tasks go where no GPU waits for them
        left = [Room(**vars(node)) for node in nodes]
        next(room for room in left if room.node == tasks.node).cpus -= TASK_CPUS
        if tasks.cpus >= TASK_CPUS and (placed := _packed(pools, left)) is not None:
            return placed
    wanted = ", ".join(f"{name} {pool.workers} x {_size(pool)}" for name, pool in pools.items())
    has = ", ".join(f"{node.address} {node.cpus:g} cpus {node.gpus:g} gpus" for node in nodes)
    raise ConfigError(
        f"caption.workers, entities.workers, segment.workers: every process has to fit on one node, and one node keeps "
        f"{TASK_CPUS:g} cpus for reading and writing; wanted are {wanted}, the cluster has {has}. Lower workers, cpus "
        "or gpus, or add a node."
    )


def _packed(pools: dict[str, WorkerPool], left: list[Room]) -> dict[str, list[str]] | None:
    """Each process on the fullest node that still has room for it; None where one has none."""
    placed: dict[str, list[str]] = {name: [] for name in pools}
    # The largest and the most particular choose first.
    order = sorted(pools.items(), key=lambda item: (item[1].accelerator or "", item[1].gpus or 0, item[1].cpus))
    for name, pool in reversed(order):
        for _ in range(pool.workers):
            fitting = [room for room in left if room.fits(pool)]
            if not fitting:
                return None
            room = min(fitting, key=lambda room: (room.gpus, room.cpus))
            room.cpus -= pool.cpus
            room.gpus -= pool.gpus or 0.0
            placed[name].append(room.node)
    return placed


def _size(pool: WorkerPool) -> str:
    gpus = f" and {pool.gpus:g} gpus" if pool.gpus else ""
    return f"{pool.cpus:g} cpus{gpus}{f' of {pool.accelerator}' if pool.accelerator else ''}"


def preferring(nodes: list[str]) -> dict[str, Any]:
    """Options for `Dataset.map`: one process after the other on the node meant for it, or where there is room.

    Ray 2.64 takes no such option any more; there its own choice has to do, and `what_is_missing` where it goes wrong.
    """
    if "ray_remote_args_fn" not in inspect.signature(ray.data.Dataset.map).parameters:
        return {}
    turn = iter(nodes)

    def options() -> dict[str, Any]:
        node = next(turn, None)
        if node is None:  # a pool that grows, or a process that takes the place of a dead one
            return {}
        return {"scheduling_strategy": ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=True)}

    return {"ray_remote_args_fn": options}


def what_is_missing() -> str | None:
    """Why nothing moves, where that is for want of room: no core for the tasks, or processes without a place."""
    alive = rooms()
    free = {room.node: 0.0 for room in alive}
    for node, has in state.available_resources_per_node().items():
        if node in free:
            free[node] = has.get("CPU", 0.0)
    nodes = ", ".join(f"{room.address} {free[room.node]:g} of {room.cpus:g}" for room in alive)
    homeless = sum(
        actor["State"] in CREATION and not actor["Address"]["IPAddress"]
        for actor in state.actors(job_id=ray.JobID.from_hex(ray.get_runtime_context().get_job_id())).values()
    )
    missing = [f"{homeless} model processes have no place"] if homeless else []
    if max(free.values(), default=0.0) < PREPARE_CPUS:
        missing.append("no node has a whole core free, which preparing and finishing a picture take")
    if not missing:
        return None
    return (
        f"{' and '.join(missing)} (free cpus: {nodes}). A node that joins with `ray start --address` is taken at once; "
        "or stop and start the same command with fewer workers or cpus: finished shards are kept."
    )


def head_answers(address: str) -> bool:
    """Whether something listens where the cluster's head was."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError:
        return False
    return True
