"""The launchers that people use, with real processes: python -m, torchrun with restarts, accelerate launch."""

import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from torch.distributed.run import get_args_parser

from tests.training.launch import differences, train
from training.engine.run_config import RunConfig

# A busy machine may take minutes for what a quiet one does in seconds.
pytestmark = pytest.mark.timeout(1800)

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch"]
LAUNCHERS = {
    "python": [sys.executable, "-m", "training.run"],
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


SCRIPTS = Path(__file__).parents[2] / "training" / "launch"


def test_two_launchers_meet_on_the_loopback_as_two_machines_do(smoke_stages, tmp_path, root):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    arguments = smoke_stages.arguments("lm", tmp_path / "run", "--steps", "3")
    variables = {**environment(), "GPUS": "1", "PORT": port, "PYTHON": sys.executable}
    command = ["bash", str(SCRIPTS / "two-machines.sh"), "127.0.0.1"]
    options = {"cwd": root, "env": variables, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    machines = [subprocess.Popen([*command, str(rank), *arguments], **options) for rank in range(2)]
    said = [machine.communicate(timeout=900)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    start = json.loads((tmp_path / "run" / "starts.jsonl").read_text())
    assert start["processes"] == 2
    assert (tmp_path / "run/checkpoints/latest").read_text() == "step-00000003\n"


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("*.sh")), ids=lambda path: path.name)
def test_the_launch_scripts_parse_and_pass_options_that_exist(script):
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True).stderr == ""
    launcher, ours = script.read_text().split("torch.distributed.run")[1].split("-m training.run")
    known = {option for action in get_args_parser()._actions for option in action.option_strings}
    passed = set(re.findall(r"(?<=\s)--[a-z-]+", launcher))
    assert len(passed) > 3
    assert passed <= known
    assert set(re.findall(r"--[a-z_.]+", ours.splitlines()[0])) == {"--resume"}
    assert "resume" in {field.name for field in dataclasses.fields(RunConfig)}


@pytest.mark.parametrize(
    ("script", "words", "expected"),
    [
        ("two-machines.sh", ["127.0.0.1"], "usage: "),
        ("two-machines.sh", ["127.0.0.1", "first", "--config", "x"], "usage: "),
        (
            "two-machines.sh",
            ["127.0.0.1", "2", "--config", "x"],
            "error: RANK 2 is none of 0 to 1 for NODES=2 machines",
        ),
        ("slurm.sh", [], "usage: "),
        ("slurm.sh", ["--config", "x"], "runs inside a Slurm job; submit it with sbatch"),
    ],
)
def test_a_launch_script_says_what_it_lacks(script, words, expected):
    clean = {name: value for name, value in environment().items() if not name.startswith("SLURM")}
    done = subprocess.run(["bash", str(SCRIPTS / script), *words], env=clean, capture_output=True, text=True)
    assert done.returncode == 2
    assert expected in done.stderr


def slurm_job(folder, seconds, stopped=False, code=0):
    """Run slurm.sh with stand-ins for Slurm's two commands, which write down how they were called.

    stopped: whether the job gets SIGTERM while `srun` works. code: what `srun` ends with.
    """
    tools = folder / "bin"
    tools.mkdir()
    (tools / "srun").write_text(
        f'#!/bin/bash\ntrap "exit 7" TERM\necho "$@" >> {folder}/calls\nsleep {seconds} & wait\nexit {code}\n'
    )
    (tools / "scontrol").write_text(f'#!/bin/bash\necho "$@" >> {folder}/calls\necho node-a\necho node-b\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    variables = {**environment(), "PATH": f"{tools}:{os.environ['PATH']}", "SLURM_JOB_ID": "71", "PYTHON": "python3"}
    variables |= {"SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_JOB_NUM_NODES": "2", "SLURM_SUBMIT_DIR": str(folder)}
    job = subprocess.Popen(["bash", str(SCRIPTS / "slurm.sh"), "--config", "my file.yaml"], env=variables)
    if stopped:
        while not (folder / "calls").exists() or len((folder / "calls").read_text().splitlines()) < 2:
            assert job.poll() is None
            time.sleep(0.01)
        job.send_signal(signal.SIGTERM)
    return job.wait(timeout=600), (folder / "calls").read_text().splitlines()


def test_a_slurm_job_queues_again_when_it_was_stopped_and_only_then(tmp_path):
    (tmp_path / "done").mkdir()
    code, calls = slurm_job(tmp_path / "done", 0)
    assert (code, len(calls)) == (0, 2)
    assert calls[0] == "show hostnames node-[a-b]"
    assert "--nnodes 2 " in calls[1]
    assert "--rdzv-endpoint node-a:20071 -m training.run --config my file.yaml --resume auto" in calls[1]
    (tmp_path / "stopped").mkdir()
    code, calls = slurm_job(tmp_path / "stopped", 600, stopped=True)
    assert (code, calls[-1]) == (0, "requeue 71")
    (tmp_path / "failed").mkdir()
    code, calls = slurm_job(tmp_path / "failed", 0, code=3)  # a training that fails would fail again for ever
    assert (code, len(calls)) == (3, 2)


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
