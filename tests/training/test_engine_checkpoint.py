"""Checkpoints: killed at any moment, moved between numbers of processes, without room, without permission."""

import functools
import itertools
import os
import random
import signal
import subprocess
from types import SimpleNamespace

import numpy
import pytest
import torch

from tests.training.launch import KillAfter, KillAtStep, KillAtSync, Training, differences, tensors, train
from training.base.errors import CheckpointError
from training.base.processes import ProcessGroup
from training.engine.checkpoint import Checkpoints, complete_checkpoints, latest_checkpoint
from training.engine.checkpoint_config import CheckpointConfig
from training.engine.optim_config import OptimConfig
from training.engine.optimizer import MovingAverage
from training.engine.run_state import gather_state, restore_state
from training.engine.sharding.engine import Engine, StepModule

ALONE = ProcessGroup(0, 1, torch.device("cpu"))
SYNCS_PER_SAVE = 7  # data, metadata, settings, step-N.tmp, renamed folder, latest.tmp, renamed latest


@pytest.fixture(scope="module")
def whole(smoke_stages, tmp_path_factory):
    """The checkpoints of a stage trained without a disturbance, for each set of options."""
    folder = tmp_path_factory.mktemp("whole")

    @functools.cache
    def run(stage, steps, every):
        run_folder = folder / f"{stage}-{steps}-{every}"
        options = "--steps", str(steps), "--checkpoint.every", str(every), "--optim.ema", "0.9", "--batch.size", "2"
        arguments = smoke_stages.arguments(stage, run_folder, *options, *smoke_stages.replay(stage))
        result = train(arguments, folder / "log")
        assert result.ok, result.output
        return run_folder / "checkpoints"

    return run


def names(checkpoints):
    return sorted(path.name for path in checkpoints.iterdir())


@pytest.mark.parametrize(("stage", "steps"), [("lm", 24), ("align", 4), ("instruct", 4)])
def test_a_run_killed_half_way_equals_one_in_one_go_bit_for_bit(smoke_stages, whole, tmp_path, stage, steps):
    half = steps // 2
    options = "--steps", str(steps), "--checkpoint.every", str(half), "--optim.ema", "0.9", "--batch.size", "2"
    arguments = smoke_stages.arguments(stage, tmp_path / "run", *options, *smoke_stages.replay(stage))
    # Written at once: in the background, it may be incomplete one step later.
    synchronous = [*arguments, "--checkpoint.asynchronous", "false"]
    result = train(synchronous, tmp_path / "log", faults={0: KillAtStep(half + 1)})
    assert result.codes == [-signal.SIGKILL]
    assert names(tmp_path / "run" / "checkpoints") == ["latest", f"step-{half:08d}"]
    result = train([*arguments, "--resume", "auto"], tmp_path / "log")
    assert "Going on from" in result.output
    last = f"step-{steps:08d}"
    assert not differences(tmp_path / "run" / "checkpoints" / last, whole(stage, steps, half) / last)


@pytest.mark.parametrize("number", [1, 2, 4, 5, 6, SYNCS_PER_SAVE + 2, SYNCS_PER_SAVE + 4])
def test_killed_at_any_moment_of_a_save_the_last_complete_checkpoint_goes_on(smoke_stages, whole, tmp_path, number):
    options = "--steps", "4", "--checkpoint.every", "2", "--optim.ema", "0.9", "--batch.size", "2"
    arguments = smoke_stages.arguments("lm", tmp_path / "run", *options)
    result = train(arguments, tmp_path / "log", faults={0: KillAtSync(number)})
    assert result.codes == [-signal.SIGKILL]
    checkpoints = tmp_path / "run" / "checkpoints"
    left = names(checkpoints)
    if number == 5:  # between rename and latest
        assert "step-00000002" in left
        assert "latest" not in left
    if number < 5:
        assert left == ["step-00000002.tmp"]
    if number > SYNCS_PER_SAVE:
        assert (checkpoints / "latest").read_text() == "step-00000002\n"
    result = train([*arguments, "--resume", "auto"], tmp_path / "log")
    assert result.ok, result.output
    assert names(checkpoints) == ["latest", "step-00000002", "step-00000004"]
    for step in (2, 4):
        assert not differences(checkpoints / f"step-{step:08d}", whole("lm", 4, 2) / f"step-{step:08d}")


def test_killed_at_random_moments_until_it_ends(smoke_stages, whole, tmp_path):
    options = "--steps", "24", "--checkpoint.every", "4", "--optim.ema", "0.9", "--batch.size", "2", "--resume", "auto"
    arguments = smoke_stages.arguments("lm", tmp_path / "run", *options)
    chance = random.Random(4)
    for kills in range(5):
        fault = {0: KillAfter(steps=5, delay=chance.uniform(0, 0.1))} if kills < 4 else None
        result = train(arguments, tmp_path / "log", faults=fault)
        if result.ok:
            break
        assert result.codes == [-signal.SIGKILL], result.output
        assert not list((tmp_path / "run" / "checkpoints").glob("step-*[0-9]/*.tmp"))
    assert kills >= 2
    assert result.ok, result.output
    last = "step-00000024"
    assert not differences(tmp_path / "run" / "checkpoints" / last, whole("lm", 24, 12) / last)


@pytest.mark.parametrize(
    ("stage", "saved_on", "first", "resumed_on", "second"),
    [
        ("lm", 2, "fsdp2", 1, "single"),
        ("lm", 1, "single", 2, "fsdp2"),
        ("align", 2, "fsdp2", 1, "single"),
        ("align", 1, "single", 2, "fsdp2"),
        ("instruct", 2, "fsdp2", 1, "single"),
        ("instruct", 1, "single", 2, "fsdp2"),
        ("lm", 2, "fairscale", 2, "fsdp2"),
        ("lm", 2, "ddp", 2, "fairscale"),
    ],
)
def test_saved_by_one_engine_and_resumed_by_another(
    smoke_stages, whole, tmp_path, stage, saved_on, first, resumed_on, second
):
    options = "--steps", "4", "--checkpoint.every", "2", "--optim.ema", "0.9", "--batch.size", "2", "--resume", "auto"
    arguments = smoke_stages.arguments(stage, tmp_path / "run", *options, *smoke_stages.replay(stage))
    checkpoints = tmp_path / "run" / "checkpoints"
    killed = [*arguments, "--parallel.sharding", first, "--checkpoint.asynchronous", "false"]
    result = train(killed, tmp_path / "log", saved_on, faults={0: KillAtStep(3)})
    assert -signal.SIGKILL in result.codes
    assert names(checkpoints) == ["latest", "step-00000002"]
    result = train([*arguments, "--parallel.sharding", second], tmp_path / "log", resumed_on)
    assert result.ok, result.output
    found, expected = tensors(checkpoints / "step-00000004"), tensors(whole(stage, 4, 2) / "step-00000004")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        # A bias of all keys moves no softmax: its gradient is rounding alone, which Adam enlarges.
        if not name.startswith("optimizer.") and not name.endswith("k_proj.bias"):
            scale = max(1.0, float(tensor.abs().max()))
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-5 * scale, msg=name)


def test_two_ranks_resumed_on_two_are_bit_equal(smoke_stages, tmp_path):
    options = "--steps", "4", "--checkpoint.every", "2", "--parallel.sharding", "fsdp2"
    arguments = smoke_stages.arguments("lm", tmp_path / "whole", *options)
    assert train(arguments, tmp_path / "log", 2).ok
    arguments = smoke_stages.arguments("lm", tmp_path / "run", *options)
    # the other rank dies in the middle of its second save
    result = train(arguments, tmp_path / "log", 2, faults={1: KillAtSync(2)})
    assert -signal.SIGKILL in result.codes
    assert names(tmp_path / "run" / "checkpoints")[:2] == ["latest", "step-00000002"]
    result = train([*arguments, "--resume", "auto"], tmp_path / "log", 2)
    assert result.ok, result.output
    last = "checkpoints/step-00000004"
    assert not differences(tmp_path / "run" / last, tmp_path / "whole" / last)


def test_the_pointer_decides_and_a_folder_without_its_table_of_contents_is_no_checkpoint(tmp_path):
    for step in (9, 10, 100):
        (tmp_path / f"step-{step}").mkdir()
        (tmp_path / f"step-{step}" / ".metadata").touch()
    for name in ("step-200", "step-300.tmp", "step-x"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-300.tmp" / ".metadata").touch()
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["step-9", "step-10", "step-100"]
    assert latest_checkpoint(tmp_path).name == "step-100"
    for pointed, found in (("step-10\n", "step-10"), ("step-200\n", "step-100"), ("", "step-100")):
        (tmp_path / "latest").write_text(pointed)
        assert latest_checkpoint(tmp_path).name == found
    assert latest_checkpoint(tmp_path / "step-9") is None


def test_only_the_last_k_checkpoints_are_kept(smoke_stages, tmp_path):
    options = "--steps", "10", "--checkpoint.every", "2", "--checkpoint.keep", "2"
    assert train(smoke_stages.arguments("lm", tmp_path / "run", *options), tmp_path / "log").ok
    assert names(tmp_path / "run" / "checkpoints") == ["latest", "step-00000008", "step-00000010"]


@pytest.fixture
def kept(tmp_path):
    """Checkpoints of a run of one process, of which two are kept, and the names that lie in their folder."""
    checkpoints = Checkpoints(tmp_path, CheckpointConfig(keep=2, asynchronous=False), ALONE)
    checkpoints.prepare()

    def save(*steps, state=None):
        for step in steps:
            checkpoints.save(step, state or {"model": {"weight": torch.full((2,), float(step))}})
        return sorted(path.name for path in checkpoints.folder.glob("step-*"))

    return checkpoints, save


def test_the_oldest_complete_checkpoints_go_and_what_is_none_stays_and_takes_no_place(kept):
    checkpoints, save = kept
    (checkpoints.folder / "step-00000003").mkdir()
    assert save(9, 10, 100) == ["step-00000003", "step-00000010", "step-00000100"]
    assert latest_checkpoint(checkpoints.folder).name == "step-00000100"


def test_a_run_that_was_set_back_keeps_its_own_checkpoints_and_the_later_ones(kept):
    checkpoints, save = kept
    save(10, 20)
    assert save(5) == ["step-00000005", "step-00000010", "step-00000020"]
    assert latest_checkpoint(checkpoints.folder).name == "step-00000005"
    assert save(6, 7) == ["step-00000006", "step-00000007", "step-00000010", "step-00000020"]
    assert latest_checkpoint(checkpoints.folder).name == "step-00000007"


def engine_of(*widths, seed=0):
    """An engine of linear layers that has done one step."""
    torch.manual_seed(seed)
    model = torch.nn.Sequential(*(torch.nn.Linear(a, b) for a, b in itertools.pairwise(widths)))
    engine = Engine(StepModule(SimpleNamespace(model=model)), OptimConfig(), ALONE)
    model(torch.ones(1, widths[0])).sum().backward()
    engine.optimizer.step()
    return engine


def draws():
    return random.random(), numpy.random.rand(), float(torch.rand(()))


def test_a_restored_run_has_weights_moments_average_and_every_generator_of_the_saved_one(kept):
    checkpoints, save = kept
    engine, other = engine_of(3, 4, 2), engine_of(3, 4, 2, seed=1)
    average = MovingAverage(engine.parameters, 0.5)
    engine.parameters["0.weight"].data.add_(1)
    engine.full_precision = {"1.weight": torch.full((2, 4), 1 / 3)}  # as if it were frozen, in another format
    other.full_precision = {"1.weight": torch.zeros(2, 4)}
    save(1, state=gather_state(engine, average, {"step": 1}, {0: {"number": 5}}))
    expected, restored = draws(), MovingAverage(other.parameters, 0.5)
    assert restore_state(latest_checkpoint(checkpoints.folder), other, restored, [0]) == {0: {"number": 5}}
    assert draws() == expected
    for name, tensor in engine.model_state().items():
        assert torch.equal(other.model_state()[name], tensor), name
    for name, tensor in average.average.items():
        assert torch.equal(restored.average[name], tensor), name
    for name, moments in engine.optimizer_state().items():
        assert all(torch.equal(other.optimizer_state()[name][key], value) for key, value in moments.items()), name


def test_a_moving_average_that_a_run_had_not_before_begins_at_the_restored_weights(kept):
    checkpoints, save = kept
    engine, other = engine_of(3, 2), engine_of(3, 2, seed=1)
    save(1, state=gather_state(engine, None, {"step": 1}, {}))
    average = MovingAverage(other.parameters, 0.5)
    restore_state(latest_checkpoint(checkpoints.folder), other, average, [])
    assert all(torch.equal(average.average[name], p) for name, p in engine.parameters.items())


@pytest.mark.parametrize(("saved", "asked"), [((3, 4, 4), (3, 4)), ((3, 4), (3, 4, 4)), ((3, 4), (4, 4))])
def test_a_larger_or_smaller_model_than_the_saved_one_is_refused_and_stays_as_it_was(kept, saved, asked):
    checkpoints, save = kept
    save(1, state=gather_state(engine_of(*saved), None, {"step": 1}, {}))
    engine = engine_of(*asked, seed=1)
    before = {name: tensor.clone() for name, tensor in engine.model_state().items()}
    with pytest.raises(CheckpointError, match="step-00000001 is of another model or trains other parts"):
        restore_state(latest_checkpoint(checkpoints.folder), engine, None, [])
    assert all(torch.equal(engine.model_state()[name], tensor) for name, tensor in before.items())


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 12 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here (needs root)")
    yield folder
    subprocess.run(["umount", folder], check=True)


def fill(folder, leave):
    """Take room until `leave` bytes are free."""
    free = os.statvfs(folder)
    (folder / "ballast").write_bytes(bytes(free.f_bavail * free.f_frsize - leave))


@pytest.mark.parametrize("asynchronous", ["true", "false"])
def test_a_full_disk_is_a_sentence_and_the_last_good_checkpoint_stays(smoke_stages, small_disk, tmp_path, asynchronous):
    options = "--steps", "6", "--checkpoint.every", "2", "--checkpoint.asynchronous", asynchronous
    arguments = smoke_stages.arguments("lm", small_disk / "run", *options)
    assert train([*arguments[: arguments.index("6")], "2", *arguments[arguments.index("6") + 1 :]], tmp_path / "log").ok
    checkpoints = small_disk / "run" / "checkpoints"
    good = tensors(checkpoints / "step-00000002")
    fill(small_disk, 200_000)
    result = train([*arguments, "--resume", "auto"], tmp_path / "log")
    assert result.codes == [1]
    assert "No space left on device" in result.output
    assert f"the last good checkpoint is {checkpoints / 'step-00000002'}" in result.output
    assert "Traceback" not in result.output
    assert names(checkpoints) == ["latest", "step-00000002"]
    assert all(torch.equal(tensor, good[name]) for name, tensor in tensors(checkpoints / "step-00000002").items())
    (small_disk / "ballast").unlink()
    assert train([*arguments, "--resume", "auto"], tmp_path / "log").ok


def test_a_folder_that_cannot_be_written_is_a_sentence(smoke_stages, tmp_path):
    (tmp_path / "file").touch()
    result = train(smoke_stages.arguments("lm", tmp_path / "file" / "run"), tmp_path / "log")
    assert result.codes == [1]
    assert "cannot be written" in result.output
    assert "choose another --run_folder" in result.output
    assert "Traceback" not in result.output


def test_a_file_of_the_run_folder_that_cannot_be_written_is_a_sentence(smoke_stages, tmp_path):
    (tmp_path / "run" / "config.yaml").mkdir(parents=True)
    result = train(smoke_stages.arguments("lm", tmp_path / "run"), tmp_path / "log")
    assert result.codes == [1]
    assert f"run_folder: {tmp_path / 'run'} cannot be written (Is a directory); make room or choose" in result.output
    assert "Traceback" not in result.output


def test_a_disk_that_turns_read_only_keeps_the_last_good_checkpoint(smoke_stages, small_disk, tmp_path):
    options = "--steps", "100000", "--checkpoint.every", "10"
    training = Training(smoke_stages.arguments("lm", small_disk / "run", *options), tmp_path / "log")
    training.wait_for("step 31/100000")  # the checkpoint of step 20 was complete before that of step 30 began
    # Open files keep a mount from being made read-only: the folder is bound elsewhere first, where nobody writes.
    checkpoints = small_disk / "run" / "checkpoints"
    read_only = tmp_path / "read-only"
    read_only.mkdir()
    subprocess.run(["mount", "--bind", checkpoints, read_only], check=True)
    subprocess.run(["mount", "-o", "remount,ro,bind", read_only], check=True)
    subprocess.run(["mount", "--bind", read_only, checkpoints], check=True)
    try:
        result = training.wait()
        assert result.codes == [1]
        assert "Read-only file system" in result.output
        assert "the last good checkpoint is" in result.output
        assert "latest" in names(checkpoints)
    finally:
        subprocess.run(["umount", checkpoints, read_only], check=True)


def test_an_existing_run_is_not_touched_without_resume(smoke_stages, tmp_path):
    arguments = smoke_stages.arguments("lm", tmp_path / "run", "--steps", "2")
    assert train(arguments, tmp_path / "log").ok
    result = train(arguments, tmp_path / "log")
    assert result.codes == [2]
    assert "already holds a run (at step-00000002); add --resume auto" in result.output
    assert train([*arguments, "--resume", "auto"], tmp_path / "log").ok


def test_a_checkpoint_of_another_model_is_a_sentence(smoke_stages, tmp_path):
    arguments = smoke_stages.arguments("lm", tmp_path / "run", "--steps", "2")
    assert train(arguments, tmp_path / "log").ok
    for key, value in (("layers", "1"), ("layers", "3"), ("ffn_width", "80")):
        result = train(
            [*arguments, "--resume", "auto", "--steps", "4", f"--model.decoder.{key}", value], tmp_path / "log"
        )
        assert result.codes == [1], result.output
        assert "step-00000002 is of another model or trains other parts" in result.output
        assert "Traceback" not in result.output


def test_a_damaged_checkpoint_is_a_sentence_and_an_older_one_can_be_named(smoke_stages, tmp_path):
    options = "--steps", "4", "--checkpoint.every", "2"
    arguments = smoke_stages.arguments("lm", tmp_path / "run", *options)
    assert train(arguments, tmp_path / "log").ok
    checkpoints = tmp_path / "run" / "checkpoints"
    (part,) = (checkpoints / "step-00000004").glob("*.distcp")
    part.write_bytes(part.read_bytes()[:1000])
    result = train([*arguments, "--resume", "auto"], tmp_path / "log")
    assert result.codes == [1], result.output
    assert f"{checkpoints / 'step-00000004'} cannot be read" in result.output
    assert "Traceback" not in result.output
    result = train([*arguments, "--resume", str(checkpoints / "step-00000002")], tmp_path / "log")
    assert result.ok, result.output
    assert "step 4/4" in result.output
    tensors(checkpoints / "step-00000004")
