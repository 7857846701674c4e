"""The plan of memory and traffic, against a measured run and against arithmetic that can be done by hand."""

import json
import os
import subprocess
import sys

import pytest

from training.engine.run_config import parse
from training.plan import command as plan

WIDER = {
    "lm": [
        "--model.decoder.width",
        "256",
        "--model.decoder.heads",
        "4",
        "--model.decoder.ffn_width",
        "1024",
        "--model.decoder.layers",
        "6",
        "--model.resampler.heads",
        "4",
        "--data.sequence_length",
        "256",
    ],
    "align": ["--model.aligner.ffn_width", "3072", "--data.pad_to", "40"],
    "instruct": ["--data.pad_to", "40"],
}


def planned(arguments, *options):
    """The plan in a process of its own: simulated tensors may stay in caches."""
    command = [sys.executable, "-m", "training.plan", *arguments, "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
@pytest.mark.parametrize("stage", ["lm", "align", "instruct"])
def test_planned_memory_is_within_10_percent_of_a_measured_cpu_run(smoke_stages, tmp_path, request, stage):
    arguments = ["--run_folder", str(tmp_path / "run")]
    arguments += smoke_stages.arguments(stage, tmp_path / "run", "--steps", "2", *WIDER[stage])
    for key in ("--batch.size", "--batch.micro"):
        arguments[arguments.index(key) + 1] = "16"
    arguments += ["--batch.streams", "1", "--weights", "null", "--tokenizer", str(smoke_stages.folder / "data")]
    # Large tensors come and go with the system's pages, so that the resident set is what is alive.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-m", "tests.training.measure_memory", *arguments]
    done = subprocess.run(command, cwd=request.config.rootpath, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    measured = int(done.stdout.split("PEAK ")[1].split()[0])
    found = planned(arguments, "--gpus", "1", *([] if stage == "lm" else ["--length", "40"]))
    assert found["peak"] == pytest.approx(measured, rel=0.10)


def test_sharding_divides_what_it_should(smoke_stages, tmp_path):
    arguments = smoke_stages.arguments("lm", tmp_path / "run", "--batch.size", "8")
    alone, sharded = (planned(arguments, "--gpus", n) for n in ("1", "8"))
    assert sharded["sharding"] == "fsdp2"
    assert sharded["weights"] == pytest.approx(alone["weights"] / 8, rel=0.02)
    assert sharded["optimizer"] == pytest.approx(alone["optimizer"] / 8, rel=0.02)
    assert sharded["operations"] == alone["operations"] / 8


def test_traffic_is_what_ring_algorithms_send(smoke_stages, tmp_path):
    arguments = smoke_stages.arguments("lm", tmp_path / "run", "--batch.size", "8")
    config = parse(arguments)
    weights = [type("W", (), {"numel": n, "trained": t})() for n, t in ((1000, True), (500, False))]
    assert plan._traffic(config, "ddp", 4, 2, weights) == 0.75 * 2 * 1000 * 4
    assert plan._traffic(config, "fsdp2", 4, 2, weights) == 0.75 * 2 * (2 * 1500 * 4 + 1000 * 4)
    assert plan._traffic(config, "single", 1, 2, weights) == 0


def test_a_batch_that_does_not_divide_is_a_sentence(smoke_stages, tmp_path, capsys):
    arguments = smoke_stages.arguments("lm", tmp_path / "run")
    assert plan.main([*arguments, "--gpus", "3"]) == 2
    assert "batch.size: 4 is no multiple of batch.micro 1 x 3 GPUs" in capsys.readouterr().err
