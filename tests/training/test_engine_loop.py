"""The training loop: signals, steps that are not finite, exact means over uneven micro-batches, what it reports."""

import json
import re
import signal

import pytest
import torch

from tests.tiny.clip import save_clip, save_dino
from tests.training.launch import SpoilLoss, Training, differences, tensors, train
from training.base.processes import ProcessGroup
from training.engine.metrics import Meter, memory_used

# A busy machine may take minutes for what a quiet one does in seconds.
pytestmark = pytest.mark.timeout(1800)


def records(run_folder):
    return [json.loads(line) for line in (run_folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_finishes_the_step_saves_and_exits_with_0(smoke_stages, tmp_path, number):
    arguments = smoke_stages.arguments("lm", tmp_path / "run", "--steps", "100000")
    training = Training(arguments, tmp_path / "log")
    training.wait_for("step 3/100000")
    training.signal(number)
    result = training.wait()
    assert result.codes == [0], result.output
    assert "Traceback" not in result.output
    step = records(tmp_path / "run")[-1]["step"]
    assert f"after step {step}" in result.output
    assert (tmp_path / "run/checkpoints/latest").read_text() == f"step-{step:08d}\n"


def test_a_signal_to_one_of_two_processes_stops_both_with_0(smoke_stages, tmp_path):
    arguments = smoke_stages.arguments("lm", tmp_path / "run", "--steps", "100000", "--parallel.sharding", "fsdp2")
    training = Training(arguments, tmp_path / "log", 2)
    training.wait_for("step 3/100000")
    training.signal(signal.SIGTERM, rank=1)
    assert training.wait().codes == [0, 0]
    step = records(tmp_path / "run")[-1]["step"]
    assert (tmp_path / "run/checkpoints/latest").read_text() == f"step-{step:08d}\n"


def test_a_run_stopped_by_a_signal_goes_on_bit_equal(smoke_stages, tmp_path):
    options = "--steps", "30", "--checkpoint.every", "30"
    assert train(smoke_stages.arguments("lm", tmp_path / "whole", *options), tmp_path / "log").ok
    arguments = smoke_stages.arguments("lm", tmp_path / "run", *options, "--resume", "auto")
    training = Training(arguments, tmp_path / "log")
    training.wait_for("step 5/30")
    training.signal(signal.SIGUSR1)
    assert training.wait().ok
    assert train(arguments, tmp_path / "log").ok
    last = "checkpoints/step-00000030"
    assert not differences(tmp_path / "run" / last, tmp_path / "whole" / last)
    assert [r["step"] for r in records(tmp_path / "run")] == list(range(1, 31))


@pytest.mark.parametrize("ranks", [1, 2])
def test_steps_that_are_not_finite_are_skipped_and_counted(smoke_stages, tmp_path, ranks):
    """On two processes only the first sees the NaN; both must skip."""
    arguments = smoke_stages.arguments(
        "lm",
        tmp_path / "run",
        "--steps",
        "5",
        "--checkpoint.every",
        "1",
        "--checkpoint.keep",
        "9",
        "--checkpoint.asynchronous",
        "false",
    )
    result = train(arguments, tmp_path / "log", ranks, faults={0: SpoilLoss(2, 4)})
    assert result.ok, result.output
    assert [r["skipped"] for r in records(tmp_path / "run")] == [0, 0, 1, 2, 2]
    states = [tensors(tmp_path / "run/checkpoints" / f"step-{step:08d}") for step in (2, 4, 5)]
    for name, before in states[0].items():
        assert torch.equal(before, states[1][name]), name
        assert before.isfinite().all()
    assert any(not torch.equal(states[1][name], states[2][name]) for name in states[1])


def test_ten_bad_steps_in_a_row_stop_the_run_and_name_their_samples(smoke_stages, tmp_path):
    arguments = smoke_stages.arguments("lm", tmp_path / "run", "--steps", "40")
    result = train(arguments, tmp_path / "log", 2, faults={0: SpoilLoss(3, 40), 1: SpoilLoss(3, 40)})
    assert result.codes == [1, 1], result.output
    path = tmp_path / "run" / "nonfinite-step-00000013.json"
    assert (
        f"10 steps in a row had a loss or gradient that is not finite; their sample keys are in {path}" in result.output
    )
    bad = json.loads(path.read_text())
    assert [entry["step"] for entry in bad] == list(range(4, 14))
    assert all(len(entry["keys"]) == 4 for entry in bad)
    assert len({key for entry in bad for key in entry["keys"]}) > 4


def test_the_keys_of_a_bad_batch_are_those_of_the_data(smoke_stages, tmp_path):
    from training.data.batch_stream import Stream
    from training.engine.run_config import parse
    from training.stages import stage_module

    arguments = smoke_stages.arguments("align", tmp_path / "run", "--optim.nonfinite_limit", "1")
    arguments += ["--optim.lr", "1e30", "--optim.clip_norm", "0", "--optim.warmup_steps", "0"]
    result = train(arguments, tmp_path / "log")
    assert result.codes == [1], result.output
    (path,) = (tmp_path / "run").glob("nonfinite-step-*.json")
    entry = json.loads(path.read_text())[0]
    config = parse(arguments)
    stage = stage_module("align").build(config, torch.device("cpu"), torch.device("cpu"))
    expected = []
    streams = [stage.stream(Stream(config.seed, i, 2, 1, 4)) for i in range(2)]
    for _ in range(entry["step"]):
        batches = [next(streams[micro % 2]) for micro in range(4)]
        expected = [key for batch in batches for key in batch["keys"]]
    assert entry["keys"] == expected


@pytest.mark.parametrize("limit", [0.0, 0.01, 1000.0])
def test_the_gradient_is_cut_to_clip_norm_where_it_is_longer(smoke_stages, tmp_path, limit):
    arguments = smoke_stages.arguments("lm", tmp_path / "run", "--steps", "1", "--optim.clip_norm", str(limit))
    result = train(arguments, tmp_path / "log")
    assert result.ok, result.output
    (record,) = records(tmp_path / "run")
    moments = tensors(tmp_path / "run/checkpoints/step-00000001").items()
    # After one step Adam's first moment is a tenth of the gradient that it was given.
    given = 10 * torch.cat([tensor.flatten() for name, tensor in moments if name.endswith(".exp_avg")]).norm()
    assert float(given) == pytest.approx(limit if limit == 0.01 else record["gradient_norm"], rel=1e-3)


def test_unusable_samples_are_told_at_the_end_of_an_epoch_and_too_many_of_them_end_the_run(smoke_stages, tmp_path):
    lines = [json.dumps({"text": "a red circle on white. " * 2 if number % 10 else " "}) for number in range(100)]
    (tmp_path / "words.jsonl").write_text("\n".join(lines))
    options = "--steps", "30", "--data.sources.text.path", str(tmp_path / "words.jsonl")
    lenient = smoke_stages.arguments("lm", tmp_path / "lenient", *options, "--data.max_bad", "20")
    result = train(lenient, tmp_path / "log")
    assert result.ok, result.output
    assert re.search(
        r"data: end of epoch 2 of text: 2\d\d samples read, \d+ unusable \(empty text \d+\)", result.output
    )
    result = train(smoke_stages.arguments("lm", tmp_path / "run", *options), tmp_path / "log")
    assert result.codes == [1], result.output
    assert "more than max_bad = 5 %" in result.output
    listing = (tmp_path / "run" / "unusable-samples-0.txt").read_text().splitlines()
    assert listing
    assert {line.partition(": ")[0] for line in listing} <= {f"words.jsonl/{number}" for number in range(0, 100, 10)}
    assert all(line.endswith(": empty text") for line in listing)


def test_a_record_holds_what_a_person_wants_to_see(smoke_stages, tmp_path):
    arguments = smoke_stages.arguments("instruct", tmp_path / "run", "--steps", "2", "--log.tensorboard", "true")
    arguments += ["--log.sample_every", "2", "--task.preview.dino", str(save_dino(tmp_path / "dino"))]
    arguments += ["--task.preview.clip", str(save_clip(tmp_path / "clip"))]
    result = train(arguments, tmp_path / "log")
    assert result.ok, result.output
    record = records(tmp_path / "run")[-1]
    wanted = {"step", "loss", "lr", "gradient_norm", "samples_per_second", "tokens_per_second", "data_wait_percent"}
    wanted |= {"mfu_percent", "memory_bytes", "eta_seconds", "skipped"}
    wanted |= {"preview/dino", "preview/clip_i", "preview/clip_t"}
    assert wanted <= record.keys()
    assert {"loss/constructed", "loss/edits", "loss/captions"} & record.keys()
    assert record["mfu_percent"] is None  # on a CPU
    assert 1e8 < record["memory_bytes"] < 4e9
    for word in ("step 2/2", "loss ", "lr ", "norm ", "samples/s", "tokens/s", "wait ", "mem ", "ETA "):
        assert word in result.output
    assert "MFU" not in result.output
    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(tmp_path / "run/tensorboard"))
    shown.Reload()
    assert [image.step for image in shown.Images("samples")] == [2]

    assert Image.open(tmp_path / "run/samples/step-00000002.png").size > (100, 50)
    stored = (tmp_path / "run/config.yaml").read_text()
    assert "sample_every: 2" in stored
    start = json.loads((tmp_path / "run/starts.jsonl").read_text())
    assert set(start["git"]) >= {"commit", "changed"}
    assert start["versions"]["torch"] == torch.__version__


class OfTwo(ProcessGroup):
    """A group whose other process has done three times as much, and waited and held three times as much."""

    def gather(self, value):
        told = ("samples", "tokens", "flops", "waiting", "memory")
        sums = {"": (6.0, 3.0), "there": (5.0, 2.0)}
        return [value, {**{name: 3 * value[name] for name in told}, "sums": sums}]


def test_a_record_joins_the_losses_rates_and_waits_of_all_processes():
    meter = Meter()
    meter.add_loss("", torch.tensor(1.0), 1)
    meter.add_loss("", 1.0, torch.tensor(4))
    meter.add_loss("here", 4.0, 2)
    meter.add_loss("nothing", 0.0, 0)
    for _ in range(2):
        meter.add_batch(samples=4, tokens=40, operations=400.0, waiting=0.5)
    meter.steps, meter.started = 2, meter.started - 10  # ten seconds ago
    found = meter.summary(OfTwo(0, 2, torch.device("cpu")), peak=1000.0)
    assert {name: value for name, value in found.items() if name.startswith("loss")} == {
        "loss": 8 / 8,
        "loss/here": 2,
        "loss/there": 2.5,
    }
    expected = {
        "samples_per_second": 3.2,
        "tokens_per_second": 32,
        "data_wait_percent": 20,  # 1 and 3 of 10 seconds each
        "flops_per_second": 320,
        "mfu_percent": 16,  # of two devices
        "seconds_per_step": 5,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=0.05)
    assert found["memory_bytes"] > 2 * memory_used(torch.device("cpu"))  # of the process that needs most


def test_an_unknown_tracker_is_a_sentence(smoke_stages, tmp_path):
    result = train(smoke_stages.arguments("lm", tmp_path / "run", "--log.trackers", "[wandbb]"), tmp_path / "log")
    assert result.codes == [2], result.output
    assert "log.trackers: 'wandbb' is not available; installed trackers are" in result.output


def test_a_batch_that_does_not_divide_is_a_sentence(smoke_stages, tmp_path):
    result = train(smoke_stages.arguments("lm", tmp_path / "run", "--batch.streams", "3"), tmp_path / "log")
    assert result.codes == [2]
    assert "must be a multiple of the 3 data streams" in result.output


def test_other_trackers_come_through_accelerate(smoke_stages, tmp_path):
    arguments = smoke_stages.arguments("lm", tmp_path / "run", "--steps", "2", "--log.trackers", "[tensorboard]")
    result = train(arguments, tmp_path / "log", 2)
    assert result.ok, result.output
    assert list((tmp_path / "run").rglob("events.out.tfevents*"))
