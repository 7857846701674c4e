"""A training in pieces gives the numbers of one that was never stopped, and leaves no file too large to carry."""

import itertools

import pytest
import torch
from torch import nn

from emoji_world.pieces import PieceTraining, Schedule

SCHEDULE = Schedule(samples=20, batch=4, rate=1e-2, warmup=2)


def started(folder) -> PieceTraining:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 2))
    module[1].bias.requires_grad_(False)
    return PieceTraining(module, folder, SCHEDULE, precision="fp32", mean=True)


def steps(training: PieceTraining, count: int) -> list[float]:
    def loss() -> torch.Tensor:
        return training.module(torch.randn(4, 6, generator=training.generator())).square().mean()

    return [training.train_step(loss).item() for _ in range(count)]


@pytest.mark.parametrize("renamed", [False, True])
def test_a_stopped_training_goes_on_with_the_same_numbers(tmp_path, renamed):
    straight = started(tmp_path / "straight")
    whole = steps(straight, 5)
    stopped = started(tmp_path / "run")
    steps(stopped, 2)
    stopped.save()
    if renamed:  # a kill between the last two lines of saving
        (tmp_path / "run" / "state").rename(tmp_path / "run" / "state.new")
    going_on = started(tmp_path / "run")
    assert going_on.samples == 8
    assert steps(going_on, 3) == whole[2:]
    assert going_on.done
    for own, other in ((straight.module, going_on.module), (straight.mean, going_on.mean)):
        assert all(torch.equal(*pair) for pair in zip(own.parameters(), other.parameters(), strict=True))


def test_each_step_has_draws_of_its_own(tmp_path):
    training, drawn = started(tmp_path), []
    for _ in range(3):
        drawn += torch.randint(2**31, (1,), generator=training.generator()).tolist()
        steps(training, 1)
    assert len({*drawn}) == 3


def test_a_piece_ends_by_its_minutes_and_the_last_one_by_its_schedule(tmp_path, monkeypatch):
    training = started(tmp_path)
    clock = itertools.count(step=40)
    monkeypatch.setattr("emoji_world.pieces.time.monotonic", lambda: float(next(clock)))
    loss = lambda: training.module(torch.ones(4, 6)).square().mean()  # noqa: E731
    assert not training.run(loss, minutes=4)
    assert 0 < training.step < SCHEDULE.steps
    there = started(tmp_path)
    assert there.step == training.step
    assert training.run(loss)
    assert training.samples == SCHEDULE.samples


def test_the_rate_rises_stays_and_falls():
    schedule = Schedule(samples=400, batch=4, rate=1.0, warmup=10, fall=0.5)
    rates = [schedule.at(step) for step in range(schedule.steps)]
    assert rates[0] == 0.1
    assert rates[9:51] == [1.0] * 42
    assert rates[75] == pytest.approx(0.5)
    assert rates[-1] == 0.03


@pytest.mark.parametrize(("samples", "steps"), [(20, 5), (21, 6), (23, 6), (24, 6)])
def test_a_last_step_of_fewer_samples_is_one(samples, steps):
    assert Schedule(samples=samples, batch=4, rate=1.0).steps == steps


def test_no_file_of_a_state_is_larger_than_it_may_be(tmp_path):
    torch.manual_seed(0)
    training = PieceTraining(nn.Sequential(*(nn.Linear(1000, 1000) for _ in range(6))), tmp_path, SCHEDULE)
    training.save()
    files = list((tmp_path / "state").glob("*.safetensors"))
    assert sum(path.stat().st_size for path in files) > 24e6
    assert max(path.stat().st_size for path in files) < 16e6
