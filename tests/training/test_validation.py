"""Figures of held-out samples: right, the same for any number of processes, without a trace in training, and judged."""

import contextlib
import dataclasses
import json
import random

import numpy
import pytest
import torch
from PIL import Image

from tests.training.launch import KillAtStep, everything, train
from training import run
from training.base.processes import ProcessGroup
from training.base.rng import RowRng
from training.data.batch_stream import to_device
from training.data.synthetic import write_all
from training.engine.figures import Figure, figures
from training.engine.run_config import parse
from training.engine.sharding.parallelize import parallelize
from training.engine.validation import HeldOutRows, Validation, in_evaluation
from training.stages import stage_module
from training.stages.align_validation import caption_values
from training.stages.diffusion_loss import loss as diffusion_loss
from training.stages.held_out_images import gap, without_images

pytestmark = pytest.mark.timeout(1800)
CPU = torch.device("cpu")
SOURCES = {"lm": ["text", "pairs"], "align": ["pairs"], "instruct": ["compositional", "edit", "pairs"]}


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("held-out")
    write_all(folder, samples=9, size=64, seed=7)
    return folder


@pytest.fixture
def validated(smoke_stages, held_out, tmp_path):
    """The words after `training.run` of a run that is validated after every second step."""

    def made(stage, run_folder="run", *more):
        options = ["--validate.every", "2", "--validate.samples", "5", "--validate.batch", "2"]
        for name in SOURCES[stage]:
            options += [f"--validate.sources.{name}.path", str(held_out / name)]
        return smoke_stages.arguments(stage, tmp_path / run_folder, *options, *more)

    return made


def figures_of(run_folder):
    """The validation's entries of each record that has some, by step; no step may come twice."""
    records = [json.loads(line) for line in (run_folder / "log.jsonl").read_text().splitlines()]
    steps = [record["step"] for record in records]
    assert steps == sorted(set(steps))
    found = {
        record["step"]: {
            name: value
            for name, value in record.items()
            if name.startswith("validate/") and name != "validate/time_percent"
        }
        for record in records
    }
    return {step: entries for step, entries in found.items() if entries}


@pytest.mark.parametrize(("stage", "sharding"), [("lm", "ddp"), ("instruct", "fsdp2")])
def test_two_processes_give_the_very_figures_of_one(validated, tmp_path, stage, sharding):
    # Weights that do not move: otherwise training itself would differ in the last digits.
    still = "--steps", "1", "--optim.lr", "1e-30", "--optim.weight_decay", "0"
    assert run.main(validated(stage, "one", *still)) == 0
    result = train(validated(stage, "two", *still, "--parallel.sharding", sharding), tmp_path / "log", 2)
    assert result.ok, result.output
    found = figures_of(tmp_path / "one")
    assert found == figures_of(tmp_path / "two")
    names = {"lm": "nats gap_shuffled gap_no_images", "instruct": "diffusion gap_shuffled gap_text mse_words retrieval"}
    assert {f"validate/{name}" for name in names[stage].split()} <= found[1].keys()
    assert found[1]["validate/gap_shuffled/interval"] > 0


def test_validation_leaves_no_trace_in_training_and_is_repeated_by_a_resumed_run(validated, smoke_stages, tmp_path):
    def trained(arguments):
        random.seed(0)  # what a process has drawn before is in its checkpoints
        numpy.random.seed(0)
        assert run.main(arguments) == 0

    options = "--steps", "6", "--checkpoint.every", "3", "--checkpoint.asynchronous", "false"
    trained(smoke_stages.arguments("align", tmp_path / "plain", *options))
    trained(validated("align", "whole", *options))
    killed = train(validated("align", "run", *options), tmp_path / "log", faults={0: KillAtStep(5)})
    assert not killed.ok
    assert [*figures_of(tmp_path / "run")] == [2, 4]
    trained(validated("align", "run", *options, "--resume", "auto"))
    found = figures_of(tmp_path / "whole")
    assert [*found] == [2, 4, 6]
    assert len({entries["validate/mse_words"] for entries in found.values()}) == 3
    assert figures_of(tmp_path / "run") == found
    last = "checkpoints/step-00000006"
    expected = everything(tmp_path / "plain" / last)  # random states, positions of the data and counters too
    whole, resumed = (everything(tmp_path / folder / last) for folder in ("whole", "run"))
    assert [name for name in expected if not torch.equal(expected[name], whole[name])] == []
    assert Image.open(tmp_path / "whole/curves.png").width > 1200  # three panels side by side
    own = {"random.0.python", "random.0.numpy"}  # which the killed process began with others of
    assert [name for name in expected if not torch.equal(expected[name], resumed[name]) and name not in own] == []
    assert expected.keys() == whole.keys() == resumed.keys()


@pytest.mark.parametrize("stage", ["lm", "align", "instruct"])
def test_the_figures_are_those_of_the_stages_own_losses(validated, stage):
    config = parse(validated(stage))
    built = stage_module(stage).build(config, CPU, CPU)
    built.set_trainable()
    engine = parallelize(built, "single", config.parallel, config.optim, "fp32", ProcessGroup(0, 1, CPU))
    validation = Validation(config, engine)
    validation.open()
    found = validation.run()
    assert set(found) <= set(validation.metrics)
    assert all(module.training for module in (built.model, built.model.decoder))
    built.model.eval()
    source = validation.sources["pairs"]
    assert (source.count, source.rows) == ((1, 2) if stage == "lm" else (3, 5))  # one epoch fills two sequences
    name = {"lm": "nats", "align": "mse_words", "instruct": "diffusion"}[stage]
    total = count = 0.0
    with torch.no_grad():
        for batch in source.batches.values():
            if stage == "instruct":
                never = torch.zeros(len(batch["keys"]), dtype=torch.bool)
                settings = built.frozen["unet"], built.scheduler, batch, batch["noise"], batch["timesteps"], never
                total += float(diffusion_loss(built.model, *settings)["loss"]) * len(batch["keys"])
                count += len(batch["keys"])
            else:
                losses = built.training_step(built.model, to_device(batch, CPU), RowRng(0, 0))
                part, number = (losses.total, losses.count) if stage == "lm" else losses.parts["mse"]
                total, count = total + float(part), count + float(number)
    if stage == "instruct":  # each row has a timestep and noise of its own, whatever micro-batch it is in
        for drawn in ("timesteps", "noise"):
            rows = torch.cat([batch[drawn] for batch in source.batches.values()])
            assert len(rows.unique(dim=0)) == source.rows
    if stage == "align":  # the loss of all 77 is that of words and padding together
        rows = dict.fromkeys(("mse_words", "mse_padding"), 0.0)
        with torch.no_grad():
            for batch in source.batches.values():
                values = built.validation_step(built.model, batch, False)
                for key in rows:
                    rows[key] += float(values[key][0].sum())
        assert sum(rows.values()) / (77 * count) == pytest.approx(total / count, rel=1e-5)
        assert found["mse_words"].value != found["mse_padding"].value
    else:
        label = f"{name}/pairs" if len(SOURCES[stage]) > 1 else name
        assert found[label].value == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("stage", ["align", "instruct"])
def test_held_out_words_are_whole_whatever_training_leaves_out(validated, stage):
    config = parse(validated(stage))
    built = stage_module(stage).build(config, CPU, CPU)
    dropped = {"align": ["empty_captions"], "instruct": ["drop_caption", "drop_entity"]}[stage]
    whole = {"align": "clip_ids", "instruct": "words"}[stage]
    for name, source in config.validate.sources.items():
        found = {}
        for share in (0.0, 1.0):
            built.data = dataclasses.replace(config.data, **dict.fromkeys(dropped, share))
            (found[share],) = built.held_out(name, source, 3, 3)
        assert torch.equal(found[0.0][whole], found[1.0][whole]), name
        shown = torch.equal(found[0.0]["token_ids"], found[1.0]["token_ids"])
        assert shown == (name == "pairs"), name  # what is dropped lacks beside the images alone


def test_rows_that_are_not_marked_have_no_part_in_a_gap():
    values = {"own": (torch.tensor([1.0, 2, 3]), torch.tensor([2.0, 2, 4])), "other": (torch.full((3,), 5.0), None)}
    marked = torch.tensor([True, False, True])
    assert [part.tolist() for part in gap(values, "other", "own", marked)] == [[4, 0, 2], [2, 0, 4]]
    assert [part.tolist() for part in gap(values, "other", "own")] == [[4, 3, 2], [2, 2, 4]]


@pytest.mark.parametrize("stage", ["lm", "instruct"])
def test_a_lone_image_of_a_micro_batch_is_told_from_none_but_not_from_itself(validated, stage):
    config = parse(validated(stage))
    built = stage_module(stage).build(config, CPU, CPU)
    built.model.eval()
    name = {"lm": "pairs", "instruct": "edit"}[stage]
    (batch,) = built.held_out(name, config.validate.sources[name], 1, 1)
    start, end = built.model.config.ids.image_start, built.model.config.ids.image_end
    pixels = batch["pixels"]
    if len(pixels) > 1:  # of a packed row: its first image alone
        places = (batch["token_ids"][0] == end).nonzero()
        batch = {k: v[:, : int(places[0]) + 4] if torch.is_tensor(v) and v.dim() == 2 else v for k, v in batch.items()}
        batch["pixels"] = pixels[:1]
    assert int((batch["token_ids"] == start).any())
    batch = getattr(built, "prepared", lambda batch, _: batch)(batch, 0)
    with torch.no_grad():
        values = built.validation_step(built.model, batch, True)
    counts = {key: float(count.sum()) for key, (_, count) in values.items() if key.startswith("gap_")}
    assert counts.pop("gap_shuffled") == 0
    assert all(count > 0 for count in counts.values())


def test_what_was_at_rest_stays_so_when_a_validation_ends():
    model = torch.nn.Sequential(torch.nn.Sequential(torch.nn.Dropout()), torch.nn.Dropout()).train()
    model[0].training = model[0][0].training = False
    before = [module.training for module in model.modules()]
    with contextlib.suppress(RuntimeError), in_evaluation(model):
        assert not any(module.training for module in model.modules())
        raise RuntimeError
    assert [module.training for module in model.modules()] == before == [True, False, False, True]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_two_processes_take_as_many_turns_each_and_every_micro_batch_counts_once(count):
    turns = []
    for rank in range(2):
        own = {number: {} for number in range(rank, count, 2)} or {0: {}}  # one that has none repeats another's
        turns.append([number for number, _ in HeldOutRows(own, count, count, False).turns(rank, 2)])
    assert len(turns[0]) == len(turns[1])
    assert sorted(number for each in turns for number in each if number is not None) == list(range(count))


def test_a_figure_is_the_ratio_of_sums_with_its_interval():
    rows = [(3.0, 1.0), (5.0, 1.0), (0.0, 0.0), (10.0, 2.0)]
    figure = Figure.of(rows)
    assert figure.value == 18 / 4
    residuals = [3 - 4.5, 5 - 4.5, 10 - 9]
    assert figure.interval == pytest.approx(1.96 * (sum(r * r for r in residuals) * 3 / 2) ** 0.5 / 4)
    assert Figure.of([(0.0, 0.0)]) is None
    assert Figure.of([(2.0, 1.0)]) == Figure(2.0, None)
    several = figures({"a": {"x": [(1.0, 1.0)]}, "b": {"x": [(3.0, 1.0)], "y": [(1.0, 2.0)]}})
    values = {name: figure.value for name, figure in several.items()}
    assert values == {"x": 2, "x/a": 1, "x/b": 3, "y": 0.5, "y/b": 0.5}


def test_retrieval_asks_for_the_nearest_states_and_lets_the_same_words_pass():
    states = torch.randn(3, 77, 8, generator=torch.Generator().manual_seed(0))
    states[2] = states[1]
    captions = torch.tensor([[9, 5, 1] + [1] * 74, [9, 6, 1] + [1] * 74, [9, 6, 1] + [1] * 74])
    found = caption_values(states, captions, captions, states)
    assert found["retrieval"][0].tolist() == [1, 1, 1]
    assert float(found["mse_words"][0].sum() + found["mse_padding"][0].sum()) == 0
    assert found["mse_words"][1].tolist() == [3, 3, 3]
    swapped = caption_values(states[[1, 0, 2]], captions, captions, states)
    assert swapped["retrieval"][0].tolist() == [0, 0, 1]


def test_rows_without_images_keep_their_words_and_targets(smoke_stages):
    from kosmos_core.special_tokens import SpecialTokens

    ids = SpecialTokens.of_vocabulary(smoke_stages.vocabulary)
    image, _ = ids.image(2)
    rows = torch.tensor([[0, *image, 7, 8], [0, 5, 6, 7, ids.pad, ids.pad, ids.pad]])
    targets = rows > 4
    targets &= (rows != ids.image_start) & (rows != ids.image_end)
    shorter, kept = without_images(rows, ids, targets)
    assert shorter.tolist() == [[0, 7, 8, 1, 1, 1, 1], [0, 5, 6, 7, 1, 1, 1]]
    assert kept.sum(1).tolist() == targets.sum(1).tolist()


def expecting(path, **expectation):
    path.write_text(json.dumps({"validate": {"expect": [expectation]}}))  # JSON is YAML
    return "--config", str(path)


def test_a_missed_expectation_warns_or_saves_and_stops_and_says_what_usually_causes_it(validated, tmp_path, capsys):
    file, options = tmp_path / "expect.yaml", ["--steps", "3", "--checkpoint.every", "3"]
    missed = {"metric": "retrieval", "at_least": 1, "by_step": 1}
    assert run.main(validated("align", "run", *options, *expecting(file, **missed, stop=True))) == 1
    told = capsys.readouterr()
    assert "error: validate.expect: retrieval is" in told.err
    assert "after step 1, expected at least 1 by step 1. Usual causes: an AlignerNet that does not tell" in told.err
    assert "Stopped after step 1, saved" in told.err
    assert (tmp_path / "run/checkpoints/latest").read_text() == "step-00000001\n"
    assert [*figures_of(tmp_path / "run")] == [1]
    # Going on with less asked for: the warnings come in the log, at by_step and after it.
    assert run.main(validated("align", "run", *options, "--resume", "auto", *expecting(file, **missed))) == 0
    told = capsys.readouterr().out
    assert told.count("Usual causes:") == 2  # steps 2 and 3
    assert [*figures_of(tmp_path / "run")] == [1, 2, 3]
    assert "% of the time):" in told
    assert told.count("--validate.every") == 1  # a run of seconds spends more than 2 % of them, which is told once


@pytest.mark.parametrize(
    ("expectation", "sentence"),
    [
        (
            {"metric": "retreival", "at_least": 1, "by_step": 1},
            "no metric 'retreival' in this run; there are mse_words, ",
        ),
        ({"metric": "retrieval", "at_least": 1, "by_step": 9}, "expected by step 9, but the run ends at step 3"),
        ({"metric": "retrieval", "by_step": 1}, "retrieval has at_least None and at_most None; give one of the two"),
        ({"metric": "retrieval", "at_least": 1, "at_most": 2, "by_step": 1}, "give one of the two, a number"),
        ({"metric": "retrieval", "at_least": 50, "by_step": 1}, "50 for retrieval must be a share of the captions"),
        ({"metric": "retrieval", "at_least": 1, "by_step": 0}, "by_step 0 of retrieval must be at least 1"),
        (None, "which data.sources.captions trains on; move the held-out shards"),
        ("nothing", "validate.sources.pairs: "),
        ("nothing usable", "validate.sources.pairs: "),
    ],
)
def test_what_cannot_be_validated_is_a_sentence_before_the_first_step(
    validated, smoke_stages, tmp_path, capsys, expectation, sentence
):
    options = ["--steps", "3"]
    if expectation in ("nothing", "nothing usable"):
        (tmp_path / "empty").mkdir()
        if expectation == "nothing usable":
            (tmp_path / "empty" / "a.jsonl").write_text('{"caption": 3}\n')
        options += ["--validate.sources.pairs.path", str(tmp_path / "empty")]
    elif expectation is None:
        options += ["--validate.sources.pairs.path", str(smoke_stages.folder / "data")]
    else:
        options += expecting(tmp_path / "expect.yaml", **expectation)
    assert run.main(validated("align", "run", *options)) in (1, 2)
    told = capsys.readouterr()
    assert sentence in told.err
    assert told.err[told.err.index("error: ") :].count("\n") == 1
    assert not (tmp_path / "run/log.jsonl").exists()
