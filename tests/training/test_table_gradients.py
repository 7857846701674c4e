"""Long tables whose gradients and updates leave out rows that no step has used: the numbers are the whole tables'."""

import copy

import pytest
import torch
from torch import nn

from training.base.processes import ProcessGroup
from training.engine.optim_config import OptimConfig
from training.engine.optimizer import set_learning_rate
from training.engine.sharding.config import ParallelConfig
from training.engine.sharding.engine import Engine, StepModule
from training.engine.sharding.parallelize import parallelize
from training.engine.table_gradients import TableAdamW, keep_table_gradients

ONE_PROCESS = ProcessGroup(0, 1, torch.device("cpu"))
ROWS = 400


class Positioned(nn.Module):
    def __init__(self, width):
        super().__init__()
        torch.manual_seed(0)
        self.positions, self.queries = nn.Embedding(ROWS, width), nn.Embedding(ROWS, width)
        self.last = nn.Linear(width, 5)

    def forward(self, first, count, inputs):
        x = inputs[:count] + self.positions(torch.arange(first, first + count))
        if count > 5:  # queries are not used in every step
            x = x + self.queries(torch.arange(count))
        return self.last(x).square().sum()


class Stage:
    def __init__(self, width):
        self.model = Positioned(width)
        self.frozen = {}


def trained(engine, steps):
    """The norm of each step's gradient, after updates from two micro-batches each of 1 to 80 rows."""
    norms = []
    for step in steps:
        torch.manual_seed(step)
        for _ in range(2):
            count = int(torch.randint(1, 80 if step % 2 else 10, ()))
            engine.stage.model(2, count, torch.randn(80, engine.stage.model.last.in_features)).backward()
        norms.append(engine.gradient_norm())
        torch._foreach_mul_(engine.gradients(), 1 / (1 + float(norms[-1])))
        norms.append(engine.gradient_norm())
        set_learning_rate(engine.optimizer, 1e-2 / (step + 1))
        engine.optimizer.step()
        engine.zero_grad()
    return norms


@pytest.mark.parametrize(("name", "width", "decay"), [("adamw", 37, 0.013), ("adamw", 32, 0.0), ("original", 32, 0.1)])
def test_updates_of_the_rows_in_use_are_those_of_the_whole_table_bit_for_bit_over_a_resume_too(name, width, decay):
    optim = OptimConfig(name=name, weight_decay=decay)
    whole = Engine(StepModule(Stage(width)), optim, ONE_PROCESS)

    def in_parts():
        return parallelize(Stage(width), "single", ParallelConfig(), optim, "fp32", ONE_PROCESS)

    parts = in_parts()
    before = parts.stage.model.positions.weight.detach().clone()
    norms = trained(parts, range(6)), trained(whole, range(6))
    table = parts.tables[parts.stage.model.positions.weight]
    assert 0 < table.used < 100  # and the rest was neither written nor read
    other = copy.deepcopy(parts.stage.model)
    other(2, 3, torch.ones(80, width)).backward()
    assert other.positions.weight.grad[2:5].all()
    assert parts.stage.model.positions.weight.grad is None
    resumed = in_parts()
    trained(resumed, [100])  # of few rows
    state = copy.deepcopy((parts.model_state(), parts.optimizer_state()))
    resumed.load_model_state(state[0])
    resumed.load_optimizer_state(state[1])
    norms[0].extend(trained(resumed, range(6, 12)))
    norms[1].extend(trained(whole, range(6, 12)))
    assert torch.equal(torch.stack(norms[0]), torch.stack(norms[1]))
    for found, expected in zip(resumed.model_state().values(), whole.model_state().values(), strict=True):
        assert torch.equal(found, expected)
    assert decay == 0 or not torch.equal(resumed.stage.model.positions.weight[100:], before[100:])
    found, expected = resumed.optimizer_state(), whole.optimizer_state()
    assert found.keys() == expected.keys()
    for parameter, moments in expected.items():
        assert found[parameter].keys() == moments.keys()
        assert all(torch.equal(found[parameter][key], moment) for key, moment in moments.items()), parameter


def test_after_an_update_of_the_whole_table_all_of_its_rows_move():
    parts, whole = Positioned(8), Positioned(8)
    options = {"lr": 1e-2, "weight_decay": 0.013}
    tables = keep_table_gradients(parts)
    optimizers = TableAdamW(parts.parameters(), tables, **options), torch.optim.AdamW(whole.parameters(), **options)
    for step in range(4):
        for model, optimizer in zip((parts, whole), optimizers, strict=True):
            if step == 1:  # a gradient that somebody else has made
                model.positions.weight.grad = torch.ones(ROWS, 8)
            else:
                model(2, 3, torch.ones(80, 8)).backward()
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(parts.positions.weight, whole.positions.weight)
