"""One small Ray instance for all tests of data construction, and the settings that they share."""

import os
from pathlib import Path

import pytest
from rich.console import Console

from training.construct.construct_config import ConstructConfig, parse

# Ray's workers step back behind every other process (nice 15): on a busy machine tests would wait for minutes.
os.environ.setdefault("RAY_worker_niceness", "0")
ROOT = Path(__file__).resolve().parents[2]
SCENES = "tests.construct.scenes"
SMALL = [
    "--caption.kind=given",
    f"--entities.kind={SCENES}:Scripted",
    f"--segment.kind={SCENES}:Oracle",
    "--filters.min_side=64",
    "--model_side=64",
    "--chunk=8",
    "--shard_size=20",
    "--caption.cpus=0.1",
    "--entities.cpus=0.1",
    "--segment.cpus=0.1",
    "--cpus=2",
    "--object_store_gb=0.2",
]


def settings(source: Path, target: Path, *more: str) -> ConstructConfig:
    return parse([f"--input={source}", f"--output={target}", *SMALL, *more])


@pytest.fixture(scope="session")
def ray_instance():
    """Two cores' worth of Ray; runs find it and leave it as it is."""
    import ray

    import training.construct.driver  # noqa: F401  sets the variables that keep Ray quiet

    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(ROOT)  # for the worker processes: the oracle lives in this folder
    ray.init(num_cpus=2, object_store_memory=200 << 20, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


@pytest.fixture
def run(ray_instance):
    """Run a construction in this process and return its statistics."""
    from training.construct.driver import construct

    return lambda config: construct(config, Console(quiet=True))
