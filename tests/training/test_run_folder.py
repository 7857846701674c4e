"""A run folder is one run's, a run that goes on says what is different, and signals leave nothing undone."""

import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
import pytest
import torch

from tests.training.launch import Impatient, Training, differences, train
from tests.training.test_engine_launch import TORCHRUN, environment
from training.base.errors import CheckpointError, ConfigError
from training.base.processes import ProcessGroup
from training.engine import run_folder, start
from training.engine.log_config import LogConfig
from training.engine.loop import STOPPED_EARLY
from training.engine.progress import Progress
from training.engine.resumed_settings import changes, refuse, sentence, stored_settings
from training.engine.run_config import parse
from training.weights.provenance import record_start

pytestmark = pytest.mark.timeout(1800)
ALONE = ProcessGroup(0, 1, torch.device("cpu"))


def records(run_folder):
    return [json.loads(line)["step"] for line in (run_folder / "log.jsonl").read_text().splitlines()]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name[0] != "."}


@pytest.fixture(scope="module")
def finished(smoke_stages, tmp_path_factory):
    """The arguments of a run of two steps that is done, and its folder."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    arguments = smoke_stages.arguments("lm", folder, "--steps", "2", "--checkpoint.asynchronous", "false")
    result = train(arguments, folder.parent / "log")
    assert result.ok, result.output
    return arguments, folder


def test_of_two_runs_in_one_folder_the_second_gets_a_sentence_and_changes_nothing(smoke_stages, tmp_path):
    options = "--steps", "100000", "--resume", "auto"
    first = Training(smoke_stages.arguments("lm", tmp_path / "run", *options), tmp_path / "log")
    first.wait_for("step 2/")
    leftover = tmp_path / "run/checkpoints/step-00000009.tmp"
    leftover.mkdir()
    impatient = {0: Impatient("training.engine.run_folder")}
    second = train(smoke_stages.arguments("lm", tmp_path / "run", *options), tmp_path / "log2", faults=impatient)
    assert second.codes == [2], second.output
    assert f"{tmp_path / 'run'} is in use by the training of process " in second.output
    assert leftover.exists()
    first.signal(signal.SIGTERM)
    assert first.wait().ok
    assert len((tmp_path / "run/starts.jsonl").read_text().splitlines()) == 1


def test_a_killed_run_leaves_no_lock_behind(smoke_stages, tmp_path):
    arguments = smoke_stages.arguments("lm", tmp_path / "run", "--steps", "4", "--resume", "auto")
    first = Training([*arguments, "--steps", "100000"], tmp_path / "log")
    first.wait_for("step 1/")
    first.signal(signal.SIGKILL)
    first.wait()
    assert train(arguments, tmp_path / "log").ok


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model.decoder.layers", "3"], "is of another model or trains other parts"),
        (["--steps", "1"], "--steps: 1, but "),
    ],
)
def test_a_refused_resume_leaves_every_file_as_it_was(finished, tmp_path, options, said):
    arguments, folder = finished
    before = contents(folder)
    result = train([*arguments, "--resume", "auto", *options], tmp_path / "log")
    assert not result.ok
    assert said in result.output
    assert contents(folder) == before


def test_another_stage_and_another_tokenizer_are_refused_on_resume(smoke_stages, finished, tmp_path):
    _, folder = finished
    before = contents(folder)
    result = train(smoke_stages.arguments("align", folder, "--steps", "9", "--resume", "auto"), tmp_path / "log")
    assert not result.ok
    assert "of stage lm" in result.output or "is of another model" in result.output
    copied = folder / "tokenizer/dict.txt"
    kept = copied.read_bytes()
    try:
        copied.write_bytes(kept[::-1])
        result = train([*finished[0], "--steps", "9", "--resume", "auto"], tmp_path / "log")
    finally:
        copied.write_bytes(kept)
    assert result.codes == [2], result.output
    assert "every token would mean another word" in result.output
    assert contents(folder) == before


def test_what_changed_since_the_checkpoint_is_listed_and_recorded(smoke_stages, tmp_path):
    options = "--steps", "1", "--optim.ema", "0.9"
    arguments = smoke_stages.arguments("lm", tmp_path / "run", *options)
    assert train(arguments, tmp_path / "log").ok
    config = tmp_path / "run/config.yaml"  # a start with another seed came to no checkpoint
    config.write_text(config.read_text().replace("seed: 0", "seed: 3"))
    changed = ["--resume", "auto", "--steps", "2", "--optim.ema", "0", "--seed", "3", "--data.sources.text.weight", "7"]
    given = str(smoke_stages.folder / "lm.safetensors")
    result = train([*arguments, *changed, "--weights", given], tmp_path / "log")
    assert result.ok, result.output
    assert f"weights: {given} is not read, the run goes on with its own." in result.output
    for words in ("steps 1 -> 2", "optim.ema 0.9 -> 0", "seed 0 -> 3", "data.sources.text.weight "):
        assert words in result.output
    start = json.loads((tmp_path / "run/starts.jsonl").read_text().splitlines()[-1])
    assert start["changed"]["seed"] == [0, 3]


def test_each_start_is_recorded_beside_the_ones_before_with_the_configuration_of_the_last(tmp_path):
    group, checkpoint = ProcessGroup(0, 2, torch.device("cpu")), tmp_path / "step-00000004"
    for seed, resumed in ((0, None), (3, checkpoint)):
        record_start(tmp_path, f"seed: {seed}\n", group, resumed, None, {"seed": [0, seed]} if seed else {})
    starts = [json.loads(line) for line in (tmp_path / "starts.jsonl").read_text().splitlines()]
    assert [start["resumed"] for start in starts] == [None, "step-00000004"]
    assert [start["changed"] for start in starts] == [{}, {"seed": [0, 3]}]
    assert starts[1]["processes"] == 2
    assert (tmp_path / "config.yaml").read_text() == "seed: 3\n"


def test_a_start_on_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_folder.json, "dumps", full)
    owned = run_folder.owned(tmp_path / "run", ALONE)
    with pytest.raises(CheckpointError, match=r"No space left on device.; make room or choose another"), owned:
        pass
    assert not (tmp_path / "run").exists()


def test_a_signal_before_the_first_step_leaves_nothing(smoke_stages, tmp_path, capsys):
    config = parse(smoke_stages.arguments("lm", tmp_path / "run", "--steps", "1"))
    start.train(config, ALONE, SimpleNamespace(received="SIGTERM"))
    assert capsys.readouterr().out == f"{STOPPED_EARLY}\n"
    assert not (tmp_path / "run").exists()


def test_a_log_that_a_crash_has_torn_keeps_its_sound_records(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 1}\n\0\0}\n[1]\n{"step": 2}\n{"step": 3}\n{"step": 2')
    Progress(tmp_path, 9, LogConfig(tensorboard=False), "", ALONE, done=2).close()
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'


def test_changes_are_told_by_key():
    before = {"a": {"b": 1, "c": None}, "resume": "never", "gone": [1]}
    found = changes(before, {"a": {"b": 2, "c": None}, "resume": "auto", "new": {}})
    assert found == {"a.b": [1, 2], "gone": [[1], None], "new": [None, {}]}
    assert sentence({"a.b": [1, None]}) == "a.b 1 -> (none)"
    assert changes({}, {}) == {}


def test_settings_before_a_resume_are_the_checkpoints_own_or_else_the_last_starts(tmp_path):
    checkpoint = tmp_path / "checkpoints" / "step-3"
    checkpoint.mkdir(parents=True)
    assert stored_settings(checkpoint) == {}
    (tmp_path / "config.yaml").write_text("stage: lm\nseed: 1\n")
    assert stored_settings(checkpoint) == {"stage": "lm", "seed": 1}
    (checkpoint / "config.yaml").write_text("stage: lm\nseed: 2\n")
    assert stored_settings(checkpoint) == {"stage": "lm", "seed": 2}
    for steps in (3, 4):  # as many as are done is no mistake
        refuse(checkpoint, 3, {"stage": "lm", "steps": steps}, None)
    with pytest.raises(ConfigError, match=r"^steps: 2, but .*step-3 has done 3; give at least that many\.$"):
        refuse(checkpoint, 3, {"stage": "lm", "steps": 2}, None)


def test_a_finished_run_that_is_resumed_says_so_and_does_nothing(finished, tmp_path):
    arguments, folder = finished
    before = contents(folder)
    result = train([*arguments, "--resume", "auto", "--optim.ema", "0.9"], tmp_path / "log")
    assert result.ok
    assert contents(folder) == before  # above all config.yaml, which exported weights are described by
    assert "The run has done its 2 steps already; give --steps above that" in result.output
    assert records(folder) == [1, 2]


def test_a_run_killed_before_its_first_checkpoint_begins_its_log_anew(smoke_stages, tmp_path):
    arguments = smoke_stages.arguments("lm", tmp_path / "run", "--steps", "100000")
    first = Training(arguments, tmp_path / "log")
    first.wait_for("step 3/")
    first.signal(signal.SIGKILL)
    first.wait()
    assert train([*arguments, "--steps", "2"], tmp_path / "log").ok
    assert records(tmp_path / "run") == [1, 2]


@pytest.mark.parametrize("options", [["--weights", "nowhere.safetensors"], ["--data.sources.text.path", "nowhere"]])
def test_a_failed_start_leaves_no_folder(smoke_stages, tmp_path, options):
    result = train(smoke_stages.arguments("lm", tmp_path / "run", *options), tmp_path / "log")
    assert not result.ok
    assert "nowhere" in result.output
    assert not (tmp_path / "run").exists()


def test_a_signal_to_the_whole_group_reaches_no_data_worker_first(smoke_stages, tmp_path, request):
    """The step is finished, the state saved, and no process stays behind; then the run goes on, bit-equal."""
    options = ["--steps", "12", "--checkpoint.every", "12", "--data.workers", "2", "--resume", "auto"]
    arguments = smoke_stages.arguments("lm", tmp_path / "run", *options)
    command = [sys.executable, "-m", "training.run", *arguments, "--steps", "100000"]
    with (tmp_path / "log").open("w") as log:
        run = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment(), cwd=request.config.rootpath, start_new_session=True
        )
    while "step 2/" not in (tmp_path / "log").read_text():
        assert run.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.01)
    helpers = psutil.Process(run.pid).children(recursive=True)
    assert len(helpers) >= 2
    os.killpg(run.pid, signal.SIGTERM)
    assert run.wait(600) == 0, (tmp_path / "log").read_text()
    output = (tmp_path / "log").read_text()
    assert "Stopped by a signal after step " in output
    assert "Traceback" not in output
    assert not psutil.wait_procs(helpers, 300)[1]


def test_a_killed_data_worker_is_a_sentence_and_changes_no_number(smoke_stages, tmp_path):
    options = ["--steps", "12", "--checkpoint.every", "12", "--data.workers", "2"]
    run = Training(smoke_stages.arguments("lm", tmp_path / "run", *options), tmp_path / "log")
    run.wait_for("step 2/")
    (worker, *_) = psutil.Process(run.processes[0].pid).children()
    worker.kill()
    result = run.wait()
    assert result.ok, result.output
    assert "Often memory was short: lower data.workers or data.prefetch. Nothing is lost." in result.output
    whole = smoke_stages.arguments("lm", tmp_path / "whole", *options, "--data.workers", "0")
    assert train(whole, tmp_path / "log").ok
    last = "checkpoints/step-00000012"
    assert not differences(tmp_path / "run" / last, tmp_path / "whole" / last)


def test_a_mistake_is_printed_once_by_all_processes_together(smoke_stages, tmp_path, request):
    arguments = smoke_stages.arguments("lm", tmp_path / "run", "--weights", "nowhere.safetensors")
    done = subprocess.run(
        [*TORCHRUN, "-m", "training.run", *arguments],
        cwd=request.config.rootpath,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode
    assert (done.stdout + done.stderr).count("error: ") == 1
    assert "error: --weights: " in done.stderr or "nowhere.safetensors" in done.stderr


def test_a_lost_process_is_one_sentence_on_the_others(smoke_stages, tmp_path):
    options = "--steps", "100000", "--checkpoint.every", "1"
    run = Training(smoke_stages.arguments("lm", tmp_path / "run", *options), tmp_path / "log", 2)
    run.wait_for("step 2/")
    run.signal(signal.SIGKILL, rank=1)
    run.processes[0].join(600)
    assert run.processes[0].exitcode == 1
    assert run.output().count("error: another process of this run has ended or cannot be reached any more") == 1
    assert "Traceback" not in run.output()
