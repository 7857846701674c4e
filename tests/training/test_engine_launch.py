"""The launchers that people use, with real processes: python -m, torchrun with restarts, accelerate launch."""

import json
import os
import subprocess
import sys
import time

import psutil
import pytest

from tests.training.launch import differences, train

# A busy machine may take minutes for what a quiet one does in seconds.
pytestmark = pytest.mark.timeout(1800)

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch"]
LAUNCHERS = {
    "python": [sys.executable, "-m", "training.run"],
    "torchrun": [*TORCHRUN, "-m", "training.run"],
    "accelerate": [*ACCELERATE, "--multi_gpu", "--num_processes", "2", "--module", "training.run"],
}


def environment():
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE", "TORCHELASTIC", "MASTER", "RANK"))}
    return {**clean, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def root(request):
    return request.config.rootpath


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_every_launcher_trains_with_the_processes_that_it_promised(smoke_stages, tmp_path, root, launcher):
    arguments = smoke_stages.arguments("lm", tmp_path / "run", "--steps", "3")
    done = subprocess.run(
        [*LAUNCHERS[launcher], *arguments], cwd=root, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    start = json.loads((tmp_path / "run" / "starts.jsonl").read_text())
    assert start["processes"] == (1 if launcher == "python" else 2)
    assert (tmp_path / "run/checkpoints/latest").read_text() == "step-00000003\n"


def test_accelerate_that_starts_fewer_processes_than_asked_is_refused(smoke_stages, tmp_path, root):
    arguments = smoke_stages.arguments("lm", tmp_path / "run", "--steps", "3")
    command = [*ACCELERATE, "--cpu", "--num_processes", "2", "--module", "training.run", *arguments]
    done = subprocess.run(command, cwd=root, env=environment(), capture_output=True, text=True)
    assert done.returncode != 0
    assert "accelerate launch was asked for several processes but started one" in done.stderr
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_another_number_of_processes_than_configured_is_refused(smoke_stages, tmp_path):
    arguments = smoke_stages.arguments("lm", tmp_path / "run", "--steps", "3", "--parallel.processes", "8")
    result = train(arguments, tmp_path / "log", 2)
    assert result.codes == [2, 2]
    assert (
        "parallel.processes: 8, but the launcher started 2; launch with `torchrun --nproc-per-node 8" in result.output
    )


def runs(process):
    """Whether a process computes: one that is dead but not yet fetched by its parent does not."""
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def workers_of(agent):
    """Process ids of torchrun's training processes, by rank."""
    return {int(child.environ()["RANK"]): child.pid for child in psutil.Process(agent).children()}


def test_torchrun_restarts_killed_processes_and_the_run_ends_bit_equal(smoke_stages, tmp_path, root):
    options = "--steps", "10", "--checkpoint.every", "2", "--parallel.sharding", "fsdp2"
    assert train(smoke_stages.arguments("lm", tmp_path / "whole", *options), tmp_path / "log", 2).ok
    arguments = smoke_stages.arguments("lm", tmp_path / "run", *options, "--resume", "auto")
    command = [*TORCHRUN, "--max-restarts", "1", "-m", "tests.training.killed_run", *arguments]
    variables = {**environment(), "KILLS": "0:7"}
    done = subprocess.run(command, cwd=root, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    starts = [json.loads(line) for line in (tmp_path / "run" / "starts.jsonl").read_text().splitlines()]
    assert len(starts) == 2
    assert starts[1]["resumed"] in ("step-00000004", "step-00000006")  # the save of step 6 may have been under way
    last = "checkpoints/step-00000010"
    assert not differences(tmp_path / "run" / last, tmp_path / "whole" / last)


@pytest.mark.skipif(sys.platform != "linux", reason="the parent's death is noticed through Linux's prctl")
def test_processes_end_with_their_torchrun(smoke_stages, tmp_path, root):
    arguments = smoke_stages.arguments("lm", tmp_path / "run", "--steps", "100000")
    command = [*TORCHRUN, "-m", "training.run", *arguments]
    with (tmp_path / "torchrun.log").open("w") as log:
        agent = subprocess.Popen(command, cwd=root, env=environment(), stdout=log, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + 900
        while "step 2/" not in (tmp_path / "torchrun.log").read_text():
            assert time.monotonic() < end
            assert agent.poll() is None, (tmp_path / "torchrun.log").read_text()
            time.sleep(0.1)
        workers = workers_of(agent.pid)
        assert sorted(workers) == [0, 1]
    finally:
        agent.kill()
        agent.wait()
    end = time.monotonic() + 300
    while any(runs(worker) for worker in workers.values()):
        assert time.monotonic() < end
        time.sleep(0.1)
