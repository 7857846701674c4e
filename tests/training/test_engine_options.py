"""Options of the engine that change no number: each does what it is there for."""

import gzip
import json

import pytest
import torch

from training import run
from training.base.precision import autocast
from training.base.processes import ProcessGroup
from training.base.rng import RowRng
from training.data.batch_stream import Stream
from training.engine.run_config import parse
from training.engine.sharding.parallelize import parallelize
from training.plan.memory import plan
from training.stages import stage_module

CPU = torch.device("cpu")


@pytest.fixture
def engine_and_batch(smoke_stages, tmp_path):
    """A stage ready to train in this process, and its first micro-batch."""

    def made(stage, *options):
        config = parse(smoke_stages.arguments(stage, tmp_path / "run", *options))
        built = stage_module(stage).build(config, CPU, CPU)
        built.set_trainable()
        settings = config.parallel, config.optim, config.precision
        engine = parallelize(built, "single", *settings, ProcessGroup(0, 1, CPU))
        assert config.precision != "fp32" or not engine.full_precision
        return engine, next(built.stream(Stream(0, 0, 1, 1, 1)))

    return made


def trained_once(engine, batch, precision="fp32"):
    """The loss of a micro-batch after its backward pass."""
    torch.manual_seed(0)  # dropout's
    with autocast(precision, CPU):
        loss = engine.step("training_step", batch, RowRng(0, 0)).total
    loss.backward()
    return loss.detach()


@pytest.mark.parametrize(("option", "passes"), [("false", 1), ("true", 2)])
def test_activation_checkpointing_computes_blocks_and_unet_a_second_time(engine_and_batch, option, passes):
    engine, batch = engine_and_batch("instruct", "--parallel.activation_checkpointing", option)
    model, unet = engine.stage.model, engine.stage.frozen["unet"]
    watched = {
        "decoder": model.decoder.blocks[0].feed_forward,
        "aligner": model.aligner.source_encoder.blocks[0].feed_forward,
        "vision": model.vision.blocks[-1].feed_forward,
        "unet": unet.up_blocks[-1].resnets[-1],  # the first has no gradient to compute: nothing in it trains
        "frozen vision": model.vision.blocks[0].feed_forward,
    }
    counts = dict.fromkeys(watched, 0)
    for name, module in watched.items():
        # Before and not after it: recomputing stops as soon as everything is there that the gradient needs.
        module.register_forward_pre_hook(lambda *_, name=name: counts.update({name: counts[name] + 1}))
    trained_once(engine, batch)
    assert counts == {name: 1 if name == "frozen vision" else passes for name in watched}


def test_compiled_blocks_give_the_same_loss_and_gradient(engine_and_batch, monkeypatch):
    """Captured and differentiated by torch.compile; the C++ that it would write takes a minute for these blocks."""
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compile_module(module, backend="aot_eager"))
    certain = "--model.decoder.dropout", "0", "--model.resampler.attention_dropout", "0"
    expected, batch = engine_and_batch("lm", *certain)
    compiled, _ = engine_and_batch("lm", *certain, "--parallel.compile", "true")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    torch.testing.assert_close(trained_once(compiled, batch), trained_once(expected, batch), rtol=1e-5, atol=0)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2
    for name, parameter in expected.parameters.items():
        found = compiled.parameters[name].grad
        torch.testing.assert_close(found, parameter.grad, rtol=1e-4, atol=1e-6 * float(parameter.grad.abs().max() + 1))


@pytest.mark.parametrize("stage", ["lm", "align", "instruct"])
def test_frozen_layers_in_the_compute_format_give_the_same_numbers_and_lose_none(
    engine_and_batch, smoke_stages, tmp_path, stage
):
    bf16 = "--precision", "bf16"
    lowered, batch = engine_and_batch(stage, *bf16)
    expected, _ = engine_and_batch(stage, *bf16, "--parallel.frozen", "fp32")
    assert torch.equal(trained_once(lowered, batch, "bf16"), trained_once(expected, batch, "bf16"))
    for name, parameter in expected.parameters.items():
        assert torch.equal(lowered.parameters[name].grad, parameter.grad), name

    def weights(engine):
        return {name: p.dtype for name, p in engine.stage.model.named_parameters()}

    assert set(weights(expected).values()) == {torch.float32}
    halved = {name for name, dtype in weights(lowered).items() if dtype == torch.bfloat16}
    assert halved == set(lowered.full_precision)
    assert not halved & set(lowered.parameters)
    # What a checkpoint holds is not rounded, and goes into another engine's model whole.
    state = {name: tensor.clone() for name, tensor in lowered.model_state().items()}
    assert state.keys() == expected.model_state().keys()
    assert all(torch.equal(tensor, expected.model_state()[name]) for name, tensor in state.items())
    first = min(halved)
    state[first] += 1
    lowered.load_model_state(state)
    assert torch.equal(lowered.model_state()[first], state[first])
    assert torch.equal(lowered.stage.model.get_parameter(first), state[first].bfloat16())
    if stage == "align":
        planned = plan(parse(smoke_stages.arguments(stage, tmp_path / "run", *bf16)), 1).weights
        assert planned == sum(p.numel() * p.element_size() for p in lowered.stage.model.parameters())


def test_profiled_steps_give_a_trace_and_the_dearest_operations(smoke_stages, tmp_path, capsys):
    arguments = smoke_stages.arguments("lm", tmp_path / "run", "--steps", "3", "--checkpoint.every", "3")
    assert run.main([*arguments, "--profile", "2:3"]) == 0
    told = capsys.readouterr().out
    assert "profile of steps 2 to 3: trace.json.gz in" in told
    table = (tmp_path / "run/profile/operations.txt").read_text().splitlines()
    assert all(line in told for line in table)
    assert len(table) == 11
    shares = [float(line.split("%")[0].split()[-1]) for line in table[1:]]
    assert shares == sorted(shares, reverse=True)
    assert 0 < shares[0] <= sum(shares) <= 100.1
    trace = json.loads(gzip.decompress((tmp_path / "run/profile/trace.json.gz").read_bytes()))
    steps = [event for event in trace["traceEvents"] if str(event.get("name", "")).startswith("Optimizer.step")]
    assert len(steps) == 2
    assert run.main([*arguments, "--steps", "4", "--resume", "auto", "--profile", "1:2"]) == 0
    assert "profile: step 2 has been done before this start; nothing is profiled." in capsys.readouterr().out


@pytest.mark.parametrize("wanted", ["10", "3:2", "0:1", "a:b", "1:2:3", "2:4"])
def test_steps_that_cannot_be_profiled_are_a_sentence(smoke_stages, tmp_path, capsys, wanted):
    assert run.main(smoke_stages.arguments("lm", tmp_path / "run", "--steps", "3", "--profile", wanted)) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: --profile: ")
    assert ("goes beyond the run's 3 steps" if wanted == "2:4" else "expected FIRST:LAST, such as 10:13") in told
