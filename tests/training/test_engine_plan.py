"""The plan of memory and traffic, against a measured run and against arithmetic that can be done by hand."""

import functools
import json
import os
import subprocess
import sys
from dataclasses import asdict

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed.fsdp._fully_shard import _fsdp_param
from torch.utils.checkpoint import checkpoint

from kosmos_core import KosmosG
from kosmos_core.decoder import sinusoidal_positions
from training import run
from training.base.processes import ProcessGroup
from training.base.rng import RowRng
from training.engine.adamw_8bit import EightBitMoments
from training.engine.operations import OperationCounter
from training.engine.run_config import parse
from training.engine.sharding.parallelize import parallelize
from training.plan import command
from training.plan.fake_floats import fake_floats
from training.plan.live_memory import LiveMemory
from training.plan.longest_batch import batch_shape, longest_batch
from training.plan.memory import _processes, plan
from training.plan.traffic import traffic
from training.stages import stage_module

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

ADDITIONS = ["--trainable.lora", "16", "--model.aligner.ffn_width", "3072", "--model.decoder.layers", "6"]


def planned(capsys, arguments, *options):
    """The plan as the command prints it."""
    assert command.main([*arguments, "--json", *options]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
@pytest.mark.parametrize(("stage", "partial"), [("lm", []), ("align", []), ("instruct", []), ("instruct", ADDITIONS)])
def test_planned_memory_is_within_10_percent_of_a_measured_cpu_run(
    smoke_stages, tmp_path, request, capsys, stage, partial
):
    arguments = ["--run_folder", str(tmp_path / "run")]
    arguments += smoke_stages.arguments(stage, tmp_path / "run", "--steps", "2", *WIDER[stage], *partial)
    # Additions are for small cards: gradients are accumulated there over micro-batches of one row.
    for key, rows in (("--batch.size", "4" if partial else "16"), ("--batch.micro", "1" if partial else "16")):
        arguments[arguments.index(key) + 1] = rows
    arguments += ["--batch.streams", "1", "--weights", "null", "--tokenizer", str(smoke_stages.folder / "data")]
    # Large tensors come and go with the system's pages, so that the resident set is what is alive.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
    words = [sys.executable, "-m", "tests.training.measure_memory", *arguments]
    done = subprocess.run(words, cwd=request.config.rootpath, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    measured = int(done.stdout.split("PEAK ")[1].split()[0])
    found = planned(capsys, arguments, "--gpus", "1", *([] if stage == "lm" else ["--length", "40"]))
    assert found["peak"] == pytest.approx(measured, rel=0.10)


def test_sharding_divides_what_it_should(smoke_stages, tmp_path):
    arguments = smoke_stages.arguments("lm", tmp_path / "run", "--batch.size", "8")
    alone, sharded = (asdict(plan(parse(arguments), processes)) for processes in (1, 8))
    assert sharded["sharding"] == "fsdp2"
    assert sharded["weights"] == pytest.approx(alone["weights"] / 8, rel=0.02)
    assert sharded["optimizer"] == pytest.approx(alone["optimizer"] / 8, rel=0.02)
    assert sharded["operations"] == alone["operations"] / 8


def test_traffic_is_what_ring_algorithms_send(smoke_stages, tmp_path):
    arguments = smoke_stages.arguments("lm", tmp_path / "run", "--batch.size", "8")
    config = parse(arguments)
    weights = {"parameters": 1500, "trained": 1000}
    assert traffic(config, "ddp", 4, 2, **weights) == 0.75 * 2 * 1000 * 4
    assert traffic(config, "fsdp2", 4, 2, **weights) == 0.75 * 2 * (2 * 1500 * 4 + 1000 * 4)
    assert traffic(config, "single", 1, 2, **weights) == 0
    config.parallel.reshard_after_forward = False
    assert traffic(config, "fsdp2", 4, 2, **weights) == 0.75 * 2 * (1500 * 4 + 1000 * 4)
    config.parallel.sync_every_micro_batch, config.precision = False, "bf16"
    assert traffic(config, "fsdp2", 4, 2, **weights) == 0.75 * (2 * 1500 * 2 + 1000 * 4)


def test_a_row_is_planned_as_long_as_the_data_may_have_it(smoke_stages, tmp_path):
    config = {stage: parse(smoke_stages.arguments(stage, tmp_path / "run")) for stage in ("lm", "align", "instruct")}
    for stage in ("align", "instruct"):
        config[stage].data.pad_to, config[stage].data.max_tokens, config[stage].batch.micro = None, 50, 3
    latents = config["instruct"].model.resampler.latents
    rows = config["lm"].batch.micro
    assert batch_shape(config["lm"], None, None) == (config["lm"].data.sequence_length, rows)
    assert batch_shape(config["align"], None, None) == (50, 0)
    assert batch_shape(config["instruct"], None, None) == (50 + latents + 2, 3)  # an image has a begin and an end
    assert batch_shape(config["instruct"], None, 2) == (50 + 2 * (latents + 2), 6)
    assert batch_shape(config["instruct"], 70, 1.5) == (70, 4)
    config["instruct"].data.pad_to = 90
    assert batch_shape(config["instruct"], None, 1) == (90, 3)


def test_moments_of_8_bits_are_planned_from_4096_values_on_and_where_blocks_divide_them():
    parameters = [torch.nn.Parameter(torch.zeros(size)) for size in (4095, 4096, 4097, 256)]
    optimizer = EightBitMoments(parameters)
    optimizer.step()
    kinds = [sorted(optimizer.state[p]) for p in parameters]
    small, coded = ["exp_avg", "exp_avg_sq"], [f"exp_avg{q}.{part}" for q in ("", "_sq") for part in ("codes", "scale")]
    assert kinds == [small, coded, small, small]


def test_a_batch_that_does_not_divide_is_a_sentence(smoke_stages, tmp_path, capsys):
    arguments = smoke_stages.arguments("lm", tmp_path / "run")
    assert command.main([*arguments, "--gpus", "3"]) == 2
    expected = "batch.size: 4 is no multiple of batch.micro 1 x 3 GPUs; nearest: --batch.size 3."
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("size", "micro", "gpus", "answer"),
    [
        (3584, 56, 256, "--batch.micro 14 makes it fit"),
        (1024, 16, 256, "--batch.micro 4 makes it fit"),
        (576, 3, 256, "nearest: --batch.size 512 --batch.micro 2"),
        (3584, 56, 4096, "nearest: --batch.size 4096 --batch.micro 1"),
    ],
)
def test_the_batch_that_is_named_divides(smoke_stages, tmp_path, capsys, size, micro, gpus, answer):
    arguments = smoke_stages.arguments("lm", tmp_path / "run", "--batch.size", str(size), "--batch.micro", str(micro))
    assert command.main([*arguments, "--gpus", str(gpus)]) == 2
    assert f"x {gpus} GPUs; {answer}." in capsys.readouterr().err


def test_pictures_that_do_not_fit_into_a_row_are_a_sentence(smoke_stages, tmp_path, capsys):
    arguments = smoke_stages.arguments("align", tmp_path / "run")
    assert command.main([*arguments, "--gpus", "1", "--length", "10", "--images", "3"]) == 2
    assert "--images: 3 pictures in a row are 12 tokens, but a row has 10" in capsys.readouterr().err


def test_a_folder_of_another_family_is_a_sentence(smoke_stages, tmp_path, capsys):
    (tmp_path / "unet").mkdir()
    sizes = {"cross_attention_dim": 64, "block_out_channels": [32, 64], "layers_per_block": 1}
    kinds = {
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    }
    (tmp_path / "unet" / "config.json").write_text(json.dumps(sizes | kinds))
    arguments = smoke_stages.arguments("instruct", tmp_path / "run", "--task.stable_diffusion", str(tmp_path))
    assert command.main([*arguments, "--gpus", "1"]) == 2
    assert "error: task.stable_diffusion: the U-Net of" in capsys.readouterr().err


OPTIONS = [  # stage, options of the one and of the other plan, of which the other takes more memory and operations
    ("instruct", ["--data.resolution", "64"], ["--data.resolution", "128"]),
    ("instruct", [], ["--task.alignment", "0.5"]),
    ("instruct", [], ["--task.replay.captions", "any"]),
    ("instruct", ["--optim.rates.decoder", "0"], []),
    ("instruct", ["--task.vision_last_block", "frozen"], []),
    ("lm", ["--task.vision_last_block", "frozen"], []),
    ("align", ["--model.aligner.reconstruction", "false"], ["--model.aligner.reconstruction", "true"]),
]


@pytest.fixture(scope="module")
def plan_of(smoke_stages, tmp_path_factory):
    """The plan of a stage with some options, made once."""
    folder = tmp_path_factory.mktemp("plans")

    @functools.cache
    def made(stage, *options):
        words = "--batch.size", "16", "--batch.micro", "16", *options
        return plan(parse(smoke_stages.arguments(stage, folder / "run", *words)), 1)

    return made


@pytest.mark.parametrize(("stage", "less", "more"), OPTIONS)
def test_options_change_memory_and_operations(plan_of, stage, less, more):
    small, large = (plan_of(stage, *options) for options in (less, more))
    assert small.operations < large.operations
    assert small.peak < large.peak


def test_pictures_of_stage_two_count(smoke_stages, tmp_path):
    config = parse(smoke_stages.arguments("align", tmp_path / "run", "--batch.size", "4", "--batch.micro", "4"))
    plain, pictured = (plan(config, 1, length=40, images=images) for images in (0, 2))
    assert plain.images == 0
    assert pictured.images == 8
    assert pictured.operations > plain.operations
    assert pictured.peak > plain.peak


@pytest.mark.parametrize("stage", ["lm", "align", "instruct"])
def test_planned_operations_are_those_of_the_real_models(smoke_stages, tmp_path, stage):
    config = parse(smoke_stages.arguments(stage, tmp_path / "run", "--batch.size", "4", "--batch.micro", "4"))
    device = torch.device("cpu")
    made = stage_module(stage).build(config, device, device)
    made.set_trainable()
    settings = config.parallel, config.optim, config.precision
    engine = parallelize(made, "single", *settings, ProcessGroup(0, 1, device))
    batch = longest_batch(config, *batch_shape(config, None, None))
    with OperationCounter() as counter:
        engine.step("training_step", batch, RowRng(config.seed, step=0)).total.backward()
    assert plan(config, 1).operations == counter.total > 0


def test_planned_operations_are_those_that_a_run_logs(smoke_stages, tmp_path):
    arguments = smoke_stages.arguments("align", tmp_path / "run", "--steps", "3", "--data.pad_to", "40")
    assert run.main(arguments) == 0
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    expected = plan(parse(arguments), 1, length=40).operations
    for record in records:
        assert record["flops_per_second"] * record["seconds_per_step"] == pytest.approx(expected, rel=1e-9)


def test_the_original_s_optimiser_takes_as_much_as_adamw(smoke_stages, tmp_path):
    arguments = smoke_stages.arguments("align", tmp_path / "run")
    ours, original = (plan(parse([*arguments, "--optim.name", name]), 1) for name in ("adamw", "original"))
    assert original.optimizer == ours.optimizer > 0


def test_a_plan_leaves_nothing_simulated_behind(smoke_stages, tmp_path):
    config = parse(smoke_stages.arguments("lm", tmp_path / "run"))
    model = KosmosG(config.model).initialize(0).eval()
    token_ids = torch.full((1, 100), 4)
    before = model.hidden_states(token_ids)
    sinusoidal_positions.cache_clear()  # so that the plan makes the table of this size
    plan(config, 1)
    plan(config, 4)
    assert torch.equal(model.hidden_states(token_ids), before)
    assert type(torch.zeros(1) + 1) is torch.Tensor


def test_live_memory_is_that_of_torchs_tracker():
    peaks = []
    for tracker in (LiveMemory(), MemTracker()):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.Linear(256, 64))
        x = torch.randn(100, 64)
        (
            tracker.track_external(model, x)
            if isinstance(tracker, MemTracker)
            else tracker.hold([*model.parameters(), x])
        )
        with tracker:
            checkpoint(model, x, use_reentrant=False).square().mean().backward()
        peaks.append(tracker.peak if isinstance(tracker, LiveMemory) else tracker.get_tracker_snapshot("peak"))
    (found,) = peaks[1].values()
    assert peaks[0] == found["Total"]


def test_masks_and_lengths_keep_their_values_among_fake_numbers():
    mask = torch.tensor([[True, False, True], [False, False, True]])
    with fake_floats() as simulated:
        hidden = torch.randn(2, 3, 8, requires_grad=True)
        picked = hidden[mask]
        lengths = mask.sum(1).tolist()
        parts = picked.split(lengths)
        picked.square().sum().backward()
        assert lengths == [2, 1]
        assert [tuple(part.shape) for part in parts] == [(2, 8), (1, 8)]
        assert isinstance(hidden, FakeTensor)
        assert hidden.grad.shape == hidden.shape
        assert simulated(mask) is mask
        assert isinstance(simulated(torch.ones(1)), FakeTensor)


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--gpus", "0", "above 0"),
        ("--length", "-4", "above 0"),
        ("--tflops", "0", "above 0"),
        ("--efficiency", "nan", "above 0"),
        ("--bandwidth", "0", "above 0"),
        ("--images", "-1", "0 or more"),
    ],
)
def test_a_number_that_makes_no_plan_is_named(capsys, option, value, expected):
    assert command.main(["--gpus", "2", option, value]) == 2
    assert capsys.readouterr().err == f"error: {option}: {value} must be {expected}.\n"


def test_only_process_0_of_a_large_cluster_gets_a_part_cut_out():
    cut_by_torch = _fsdp_param._chunk_with_empty
    with _processes(4096):
        for rows, chunks in ((1, 4096), (7, 2), (8, 3), (5000, 4096)):
            tensor = torch.randn(rows, 3)
            (own,) = _fsdp_param._chunk_with_empty(tensor, chunks, 0)
            assert own.data_ptr() == tensor.data_ptr()
            assert torch.equal(own, cut_by_torch(tensor, chunks, 0)[0])
    assert _fsdp_param._chunk_with_empty is cut_by_torch
