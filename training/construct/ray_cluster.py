"""Ray: start it or reach a cluster, share out its GPUs and cores, and say its errors in plain words.

Construction imports Ray from here alone: what Ray reads from the environment when it is imported is set here.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import warnings
from collections.abc import Iterator
from dataclasses import replace

from ..base.errors import ConfigError
from .construct_config import ConstructConfig, WorkerPool

# Ray reports usage to its makers, draws bars of its own and logs inner warnings unless told before it is imported.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")

import ray
import ray.data
from ray._private import ray_constants

MODEL_STAGES = ("caption", "entities", "segment")
KINDS_WITHOUT_GPU = ("given", "spacy")
NO_START = "Ray did not start on this machine"


class ConstructionStopped(RuntimeError):
    """The run cannot go on; the message says why and what to do. Finished shards stay."""


@contextlib.contextmanager
def ray_connection(config: ConstructConfig) -> Iterator[None]:
    """A connection to the cluster, or Ray on this machine for as long as the run lasts."""
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what fails is said once, in `plain_errors`
    warnings.filterwarnings("ignore", message=".*ray_remote_args", module="training.construct")  # see `preferring`
    if ray.is_initialized():
        yield
        return
    if config.ray_address:
        try:
            _check_listening(config.ray_address)
        except OSError as error:
            raise ConfigError(
                f"ray_address: no Ray cluster answers at {config.ray_address} ({error}); start one with "
                "`ray start --head`, or leave --ray-address out to use this machine alone."
            ) from error
        try:
            ray.init(address=config.ray_address, **quiet)
        except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
            # What Ray raises does not say that a token was wrong: only its log does.
            raise ConfigError(
                f"ray_address: {config.ray_address} answers, but Ray does not connect "
                f"({' '.join(f'{error}'.split())[:300]}); a cluster that asks for a token wants RAY_AUTH_MODE=token "
                "and its RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) with this command, too, one without any wants "
                "RAY_AUTH_MODE=disabled, and all machines need the same versions of Ray and Python."
            ) from error
    else:
        for_models = sum(max(pool.most_workers, pool.workers) * pool.cpus for pool in _pools(config).values())
        store = {"object_store_memory": int(config.object_store_gb * 1e9)} if config.object_store_gb else {}
        cores = config.cpus or os.cpu_count() or 1
        try:
            with _loopback():
                ray.init(num_cpus=math.ceil(for_models) + cores + 1, include_dashboard=False, **store, **quiet)
        except Exception as error:  # Ray raises a bare one when its processes need more than its half a minute
            raise ConstructionStopped(
                f"{NO_START} ({error}); the machine may be too busy or short of memory. Start the same command again."
            ) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _loopback() -> Iterator[None]:
    """Ray's services that are started inside listen on 127.0.0.1 alone, as Ray has it by default on Windows and macOS.

    On Linux they would listen on every interface, whatever address `ray.init` is given: it replaces the loopback's.
    """
    name, before = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, ray_constants.ENABLE_RAY_CLUSTER
    given = os.environ.get(name)
    os.environ[name], ray_constants.ENABLE_RAY_CLUSTER = "0", False  # for Ray's processes, and for this one
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        if given is None:
            del os.environ[name]
        else:
            os.environ[name] = given


def _check_listening(address: str) -> None:
    """OSError unless something listens at host:port: Ray itself would go on trying for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


def _pools(config: ConstructConfig) -> dict[str, WorkerPool]:
    return {name: getattr(config, name) for name in MODEL_STAGES}


def placed_pools(config: ConstructConfig) -> dict[str, WorkerPool]:
    """The pools with their GPUs settled.

    Raises:
        ConfigError: the cluster has fewer GPUs or cores than the smallest pools need.
    """
    has = ray.cluster_resources()
    gpus = has.get("GPU", 0.0)
    pools = _pools(config)
    undecided = [name for name, pool in pools.items() if pool.gpus is None and pool.kind not in KINDS_WITHOUT_GPU]
    asked = sum((pool.gpus or 0) * pool.workers for pool in pools.values())
    sharers = sum(pools[name].workers for name in undecided)
    # A whole GPU for each process; where there are fewer, all get the same part of one.
    share = min(1.0, int(100 * (gpus - asked) / sharers) / 100) if sharers and gpus > asked else 0.0
    placed = {
        name: replace(pool, gpus=share if name in undecided else pool.gpus or 0.0) for name, pool in pools.items()
    }
    for resource, available in (("gpus", gpus), ("cpus", has.get("CPU", 0.0) - 1)):
        needed = sum(getattr(pool, resource) * pool.workers for pool in placed.values())
        if needed > available:
            kinds = " + ".join(f"{name} {p.workers} x {getattr(p, resource):g}" for name, p in placed.items())
            raise ConfigError(
                f"caption.workers, entities.workers, segment.workers: they need {needed:g} {resource} ({kinds}), the "
                f"cluster has {available:g}; lower workers or {resource}, or add nodes."
            )
    return placed


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """What a stage raised, without Ray's wrapping: our own errors as they are, others as one sentence and the cause."""
    try:
        yield
    except (ConfigError, ConstructionStopped, OSError, KeyboardInterrupt):
        raise
    except Exception as error:
        cause: BaseException | None = error
        seen: list[BaseException] = []
        while cause is not None and cause not in seen:
            if isinstance(cause, ConfigError):
                raise ConfigError(str(cause)) from None
            seen.append(cause)
            cause = getattr(cause, "cause", None) or cause.__cause__
        message = str(error)
        if "ConfigError:" in message:  # an error in a constructor arrives as text alone
            raise ConfigError(message.rpartition("ConfigError:")[2].strip().splitlines()[0]) from None
        last = [line for line in message.strip().splitlines() if line.strip()][-1:]
        raise ConstructionStopped(
            f"A stage failed: {last[0].strip() if last else type(error).__name__}. Finished shards are kept; start the "
            "same command again to go on."
        ) from error
