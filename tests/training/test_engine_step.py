"""One step of the loop, on a stage of one layer whose loss and gradient can be worked out by hand."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from training.base.errors import TrainingStopped
from training.base.processes import ProcessGroup
from training.data.data_config import DataConfig
from training.engine.checkpoint import Checkpoints
from training.engine.checkpoint_config import CheckpointConfig
from training.engine.loop import Trainer
from training.engine.optim_config import OptimConfig
from training.engine.run_config import BatchConfig, RunConfig
from training.engine.sharding.config import ParallelConfig
from training.engine.sharding.parallelize import parallelize
from training.stages.losses import Losses

MICRO, MICRO_BATCHES = 2, 4
VALID = (1, 5, 0, 3)  # valid items of each micro-batch of a step
ONE_PROCESS = ProcessGroup(0, 1, torch.device("cpu"))


class UnevenStream:
    """Micro-batches with as many valid items as `VALID` says, over and over."""

    def __init__(self):
        self.number = 0
        self.items = torch.randn(len(VALID), max(VALID), 3, generator=torch.Generator().manual_seed(0))

    def __next__(self):
        number = self.number % len(VALID)
        self.number += 1
        return {
            "items": self.items[number, : VALID[number]],
            "token_ids": torch.zeros(MICRO, 4, dtype=torch.int64),
            "keys": [f"{self.number}-{row}" for row in range(MICRO)],
            "sources": ["one"] * MICRO,
        }

    def state_dict(self):
        return {"number": self.number}

    def load_state_dict(self, state):
        self.number = state["number"]


@dataclass
class OneLayer:
    """The loss of an item is its product with the weights; in the steps named by `spoiled` it is not finite."""

    spoiled: tuple[int, ...] = ()
    model: nn.Module = field(default_factory=lambda: nn.Linear(3, 1, bias=False))
    frozen: dict = field(default_factory=dict)
    drawn: list = field(default_factory=list)

    def set_trainable(self):
        pass

    def stream(self, stream):
        return UnevenStream()

    def training_step(self, model, batch, rng):
        self.drawn.append(torch.rand(4))
        total = model(batch["items"]).sum()
        return Losses(total * (float("nan") if rng.step in self.spoiled else 1), len(batch["items"]))


def trainer(folder, stage=None, **optim):
    optim = OptimConfig(**{"lr": 1e-6, "warmup_steps": 0, "weight_decay": 0.0, "clip_norm": 0.0} | optim)
    batch = BatchConfig(MICRO * MICRO_BATCHES, MICRO)
    config = RunConfig("lm", str(folder), steps=100, precision="fp32", optim=optim, batch=batch, data=DataConfig())
    engine = parallelize(stage or OneLayer(), "single", ParallelConfig(), optim, "fp32", ONE_PROCESS)
    made = Trainer(config, engine, Checkpoints(folder, CheckpointConfig(), ONE_PROCESS))
    made.open_streams()
    made.progress = Silent()
    return made


class Silent:
    """Where a run would tell a person what happens."""

    def say(self, sentence):
        pass


class Unmeasured:
    """Where a step counts for the log."""

    steps = 0

    def add_loss(self, *_):
        pass

    add_batch = add_loss


def gradient_given(made):
    """The gradient that Adam was given in its first step, whose first moment is a tenth of it."""
    (state,) = made.engine.optimizer.state.values()
    return state["exp_avg"] * 10


MEAN = torch.cat([UnevenStream().items[number, :count] for number, count in enumerate(VALID)]).mean(0)


def test_the_gradient_is_that_of_the_mean_over_all_valid_items_however_they_are_spread(tmp_path):
    made = trainer(tmp_path)
    weight = made.engine.stage.model.weight.detach().clone()
    state = made._step(Unmeasured())
    assert state["loss"] == pytest.approx(float(weight @ MEAN), rel=1e-5)
    assert state["gradient_norm"] == pytest.approx(float(MEAN.norm()), rel=1e-5)
    torch.testing.assert_close(gradient_given(made)[0], MEAN, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("share", "cut"), [(0.999, True), (1.001, False)])
def test_a_gradient_just_longer_than_clip_norm_is_cut_and_one_just_shorter_is_not(tmp_path, share, cut):
    limit = share * float(MEAN.norm())
    made = trainer(tmp_path, clip_norm=limit)
    made._step(Unmeasured())
    given = float(gradient_given(made).norm())
    assert given == pytest.approx(limit if cut else float(MEAN.norm()), rel=1e-4)


def test_dropout_differs_between_micro_batches_and_steps_and_comes_again_in_another_run(tmp_path):
    runs = []
    for name in "ab":
        made = trainer(tmp_path / name)
        for _ in range(2):
            made._step(Unmeasured())
        runs.append(torch.stack(made.engine.stage.drawn))
    assert len(runs[0]) == 2 * MICRO_BATCHES
    assert len(runs[0].unique(dim=0)) == len(runs[0])
    assert torch.equal(*runs)


def test_a_good_step_between_bad_ones_starts_their_count_anew(tmp_path):
    made = trainer(tmp_path, OneLayer(spoiled=(0, 1, 3, 4, 6, 7, 8)), nonfinite_limit=3)
    for _ in range(8):
        made._step(Unmeasured())
    assert (made.counters.skipped, made.counters.skipped_in_a_row) == (6, 2)
    with pytest.raises(TrainingStopped, match="3 steps in a row"):
        made._step(Unmeasured())
