"""Optimisers, schedules, the moving average and loss scaling."""

import importlib.util
import math
import sys

import pytest
import torch
import torch.distributed.checkpoint as dcp

from training import run
from training.base.errors import ConfigError
from training.base.precision import LossScale
from training.base.processes import ProcessGroup
from training.engine.adamw_8bit import in_plain_tensors, of_plain_tensors
from training.engine.optim_config import OptimConfig
from training.engine.optimizer import (
    MovingAverage,
    build_optimizer,
    freeze_parts,
    learning_rate,
    parameter_groups,
    set_learning_rate,
)
from training.engine.run_config import parse
from training.engine.sharding.engine import Engine, StepModule, total_norm
from training.plan.memory import plan

CPU = torch.device("cpu")


def test_the_original_s_first_update_has_rate_zero_and_adamw_s_has_not():
    original, adamw = OptimConfig(name="original"), OptimConfig()
    assert learning_rate(original, 0, 1000) == 0
    assert learning_rate(original, 1, 1000) == pytest.approx(1e-3 / 375)
    assert learning_rate(adamw, 0, 1000) == pytest.approx(1e-3 / 375)


def test_the_rate_peaks_after_the_warm_up_and_falls_linearly_to_zero():
    config = OptimConfig(name="original", lr=1e-3, warmup_steps=375)
    assert learning_rate(config, 375, 300_000) == 1e-3
    assert learning_rate(config, 150_187, 300_000) == pytest.approx(1e-3 * (300_000 - 150_187) / (300_000 - 375))
    assert learning_rate(config, 300_000, 300_000) == 0


def test_cosine_and_constant_schedules_end_where_they_should():
    cosine = OptimConfig(schedule="cosine", warmup_steps=0, final_lr=1e-5)
    assert learning_rate(cosine, 50, 100) == pytest.approx((1e-3 + 1e-5) / 2)
    assert learning_rate(cosine, 100, 100) == pytest.approx(1e-5)
    assert learning_rate(OptimConfig(schedule="constant", warmup_steps=0), 99, 100) == 1e-3


def test_original_adam_adds_epsilon_before_the_bias_correction():
    torch.manual_seed(0)
    start, gradients = torch.randn(50, dtype=torch.float64), torch.randn(4, 50, dtype=torch.float64) * 1e-5
    config = OptimConfig(name="original", lr=1e-2)
    p = torch.nn.Parameter(start.clone())
    optimizer = build_optimizer(config, [p])
    expected, m, v = start.clone(), torch.zeros_like(start), torch.zeros_like(start)
    for t, g in enumerate(gradients, 1):
        p.grad = g.clone()
        optimizer.step()
        m, v = 0.9 * m + 0.1 * g, 0.98 * v + 0.02 * g * g
        expected = expected * (1 - 1e-2 * 0.01)
        expected -= 1e-2 * math.sqrt(1 - 0.98**t) / (1 - 0.9**t) * m / (v.sqrt() + 1e-6)
    torch.testing.assert_close(p.data, expected, rtol=1e-12, atol=0)
    other = torch.nn.Parameter(start.clone())
    adamw = build_optimizer(OptimConfig(lr=1e-2), [other], fused=False)
    for g in gradients:
        other.grad = g.clone()
        adamw.step()
    assert (other.data - expected).abs().max() > 1e-4


def test_the_moving_average_keeps_float32_and_follows_the_weights():
    p = torch.nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    average = MovingAverage({"p": p}, decay=0.75)
    with torch.no_grad():
        p.fill_(1)
    average.update()
    average.update()
    assert average.average["p"].dtype == torch.float32
    assert average.average["p"].tolist() == pytest.approx([1 - 0.75**2] * 3)


def test_the_loss_scale_halves_on_overflow_and_grows_again():
    scale = LossScale.of("fp16")
    assert scale.update(finite=False)
    assert scale.value == 2.0**15
    for _ in range(scale.interval):
        assert not scale.update(finite=True)
    assert scale.value == 2.0**16


def test_an_overflow_at_the_smallest_scale_is_a_bad_step():
    scale = LossScale(value=1.0, dynamic=True)
    assert not scale.update(finite=False)


def test_bf16_has_no_loss_scale():
    scale = LossScale.of("bf16")
    assert not scale.update(finite=False)
    assert scale.value == 1.0


@pytest.mark.parametrize(("key", "value"), [("lr", 0.0), ("betas", (0.9, 1.0)), ("clip_norm", -1.0), ("ema", 1.0)])
def test_impossible_settings_name_their_key(key, value):
    with pytest.raises(ValueError, match=f"optim.{key}"):
        OptimConfig(**{key: value})


class Parts(torch.nn.Module):
    """Three trained parts and one that the stage leaves as it is."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("decoder", "decoder_more", "vision", "fixed"):
            setattr(self, name, torch.nn.Linear(2, 2))
        self.fixed.requires_grad_(False)


def test_each_part_s_rate_is_that_of_the_longest_name_that_it_belongs_to():
    rates = {"decoder": 0.1, "decoder.bias": 0.5, "vision": 0.0}
    model = Parts()
    freeze_parts(model, rates)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert list(trained) == ["decoder.weight", "decoder.bias", "decoder_more.weight", "decoder_more.bias"]
    groups = parameter_groups(trained, rates)
    assert [(group["rate_factor"], len(group["params"])) for group in groups] == [(0.1, 1), (0.5, 1), (1.0, 2)]
    assert [group["rate_factor"] for group in parameter_groups(trained, {})] == [1.0]


@pytest.mark.parametrize(
    ("rates", "said"),
    [
        (
            {"decodr": 0.1},
            "optim.rates: 'decodr' is no part of what this stage trains; expected decoder, decoder_more, ",
        ),
        ({"fixed": 0.5}, "optim.rates: 'fixed' is no part of what this stage trains"),
        ({"decoder": 0.0, "decoder_more": 0.0, "vision": 0.0}, "nothing would learn"),
    ],
)
def test_rates_of_what_does_not_train_are_a_sentence(rates, said):
    with pytest.raises(ConfigError, match=said):
        freeze_parts(Parts(), rates)


@pytest.mark.parametrize("factor", [-0.1, math.inf, math.nan])
def test_a_rate_that_is_no_factor_names_its_part(factor):
    with pytest.raises(ValueError, match=f"optim.rates.decoder: {factor} must be a factor"):
        OptimConfig(rates={"decoder": factor})


def test_the_gradient_norm_of_large_tensors_is_exact_to_float32():
    torch.manual_seed(0)
    gradients = [torch.randn(4000, 1000), torch.randn(64, 3, 14, 14), torch.randn(500), torch.randn(())]
    exact = torch.cat([g.double().flatten() for g in gradients]).norm()
    torch.testing.assert_close(total_norm(gradients).double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["adamw", "original"])
def test_the_rate_is_at_its_height_as_soon_as_the_warm_up_is_over(name):
    config = OptimConfig(name=name, lr=1.0, warmup_steps=10)
    rates = [learning_rate(config, step, 110) for step in range(13)]
    assert rates[10] == max(rates) == 1.0
    assert rates[9] == (1.0 if name == "adamw" else 0.9)
    assert rates[11] == pytest.approx(0.99)


def test_moments_of_8_bits_take_a_quarter_of_the_plan_and_are_refused_where_they_cannot_be(
    smoke_stages, tmp_path, capsys, monkeypatch
):
    own = smoke_stages.arguments("align", tmp_path / "run", "--steps", "1")
    small = [*own, "--optim.name", "adamw8bit"]
    found = [plan(parse(arguments), 1).optimizer for arguments in (own, small)]
    assert found[1] == pytest.approx(found[0] / 4, rel=0.05)
    with pytest.raises(ConfigError, match="adamw8bit works with"):
        plan(parse(small), 2)
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None if name == "torchao" else object())
    assert run.main(small) == 2
    assert "adamw8bit needs the package torchao; pip install torchao, or use adamw." in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_codes_and_scales_are_plain_tensors_in_a_checkpoint():
    class Moments:  # what torchao's tensors have
        def __init__(self):
            self.codes, self.scale = torch.zeros(256, dtype=torch.uint8), torch.zeros(1)

    own = {"weight": {"step": torch.zeros(()), "exp_avg": Moments()}}
    plain = in_plain_tensors(own)
    assert {key: value.dtype for key, value in plain["weight"].items()} == {
        "step": torch.float32,
        "exp_avg.codes": torch.uint8,
        "exp_avg.scale": torch.float32,
    }
    stored = {"weight": {key: value + 3 for key, value in plain["weight"].items()}}
    filled = of_plain_tensors(own, stored)
    assert filled["weight"]["exp_avg"] is own["weight"]["exp_avg"]
    assert torch.equal(own["weight"]["exp_avg"].codes, stored["weight"]["exp_avg.codes"])
    assert torch.equal(filled["weight"]["step"], stored["weight"]["step"])


def test_moments_of_8_bits_go_through_a_checkpoint_bit_equal(tmp_path):
    pytest.importorskip("torchao")
    config = OptimConfig(name="adamw8bit", lr=1e-2)

    class Layer:  # as much of a stage as an engine asks for
        def __init__(self):
            torch.manual_seed(0)
            self.model = torch.nn.Linear(64, 64)

    def trained(engine, steps):
        for step in steps:
            torch.manual_seed(step)
            inputs = torch.randn(8, 64)
            engine.stage.model(inputs).square().mean().backward()
            set_learning_rate(engine.optimizer, 1e-2 / (step + 1))
            engine.optimizer.step()
            engine.zero_grad()
        return engine

    whole, first, second = (Engine(StepModule(Layer()), config, ProcessGroup(0, 1, CPU)) for _ in range(3))
    trained(whole, range(4))
    trained(first, range(2))
    dcp.save({"optimizer": first.optimizer_state()}, checkpoint_id=tmp_path, no_dist=True)
    state = {"optimizer": second.optimizer_state()}
    dcp.load(state, checkpoint_id=tmp_path, no_dist=True)
    second.load_optimizer_state(state["optimizer"])
    second.stage.model.load_state_dict(first.stage.model.state_dict())
    trained(second, range(2, 4))
    assert torch.equal(second.stage.model.weight, whole.stage.model.weight)
    assert state["optimizer"]["weight"]["exp_avg.codes"].dtype == torch.uint8
    found, expected = second.optimizer_state()["weight"], whole.optimizer_state()["weight"]
    assert [key for key in expected if not torch.equal(found[key], expected[key])] == []
