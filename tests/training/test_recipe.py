"""The recipe from Kosmos-2: its files fit the machines that they name, and every figure about it is the plan's."""

import dataclasses
import itertools
import json
import shutil
from pathlib import Path

import pytest

from dev import recipe_page
from training.plan import command
from training.plan.estimate import Rates, estimate
from training.plan.gpus import GPUS
from training.plan.memory import Plan, plan
from training.plan.recipe import read_recipe
from training.plan.recipe_report import checkpoint_bytes
from training.plan.stored import code_digest, question, read_store

RECIPE = Path(__file__).parents[2] / "training" / "configs" / "kosmos2"
ASKED = ["--recipe", str(RECIPE), "--gpu", "h100", "--gpus"]


@pytest.fixture(scope="module")
def recipe():
    return read_recipe(RECIPE)


@pytest.fixture(scope="module")
def fitted(recipe):
    return list(recipe_page.fitted(recipe))


def said(capsys, *words):
    """The exit code, output and errors of a plan."""
    code = command.main(list(words))
    found = capsys.readouterr()
    return code, found.out, found.err


def test_a_step_is_the_same_training_on_every_machine(recipe):
    for name in recipe.steps:
        configs = [recipe.step(name, gpus, memory * 1e9).config for gpus, memory, _ in recipe.machines(name)]
        assert len({(c.batch.size, c.steps, c.optim.lr, c.optim.schedule, c.seed) for c in configs}) == 1, name
        assert all(
            config.batch.size % (config.batch.micro * (config.parallel.processes or 1)) == 0 for config in configs
        )


def test_each_step_begins_with_the_weights_that_the_page_exports_before_it(recipe):
    page = recipe_page.PAGE.read_text()
    configs = [recipe.step(name, 1, 80e9).config for name in recipe.steps]
    for before, after in itertools.pairwise(configs):
        assert f"python -m training.export {before.run_folder} {after.weights}\n" in page
    for config in configs:
        for source in config.data.sources.values():
            assert source.path in recipe.data
            assert source.path.split("/")[1] in page


def test_headers_page_and_stored_plans_belong_together(fitted):
    for path, text in recipe_page.contents(check=True).items():
        assert path.read_text() == text, f"{path} is stale; run python -m dev.recipe_page"
    for path, *_ in fitted:
        assert path.read_text().count("# plan: ") == 1


def test_a_step_fits_into_the_memory_that_its_file_names(fitted):
    _, stored = read_store(RECIPE)
    for path, config, gpus, images, gpu in fitted:
        head = path.read_text().split("# plan:")[0]
        (named,) = {int(word) for word in head.replace("\n", " ").split() if word in ("24", "32", "80")}
        peak = stored[question(config, gpus, images)].peak
        assert peak * 1.05 + 1e9 <= named * 2**30, path
        assert gpu.holds(peak), path


def test_stored_plans_are_what_a_plan_finds_today(fitted):
    """Where code that a plan simulates has changed, one file is planned again; else nothing can differ."""
    code, stored = read_store(RECIPE)
    if code == code_digest():
        return
    name = recipe_page.PROBES[0]
    _, config, gpus, images, _ = next(one for one in fitted if one[0].name == name)
    found, before = plan(config, gpus, images=images), stored[question(config, gpus, images)]
    assert (found.peak, found.operations) == pytest.approx((before.peak, before.operations), rel=0.01), (
        f"{name} is planned otherwise than its header says; run python -m dev.recipe_page"
    )


def test_a_stored_plan_serves_the_questions_alone_whose_answer_it_is(recipe):
    config = recipe.step("align", 1, 80e9).config
    asked = question(config, 1, 0)
    others = [question(config, 2, 0), question(config, 1, 1)]
    for section, changed in (
        ("optim", {"ema": 0.9}),
        ("optim", {"name": "original"}),
        ("batch", {"micro": config.batch.micro * 2}),
        ("parallel", {"activation_checkpointing": not config.parallel.activation_checkpointing}),
        ("data", {"max_tokens": config.data.max_tokens + 1}),
        ("trainable", {"lora": 4}),
    ):
        own = dataclasses.replace(getattr(config, section), **changed)
        others.append(question(dataclasses.replace(config, **{section: own}), 1, 0))
    assert len({asked, *others}) == len(others) + 1
    same = dataclasses.replace(config.optim, lr=config.optim.lr / 2)
    assert question(dataclasses.replace(config, optim=same, steps=config.steps + 1), 1, 0) == asked


def test_a_plan_leaves_room_for_one_checkpoint_more_and_for_what_it_does_not_count(recipe):
    step = recipe.step("align", 1, 80e9)
    made = Plan("fsdp2", 4, 1, 1, 1, 0, weights=100, optimizer=250, frozen=0, peak=0, traffic=0, operations=0)
    kept = step.config.checkpoint.keep + 1  # one more lies there while it is written
    assert checkpoint_bytes(step, made) == kept * 4 * 350 + 4 * 100
    assert checkpoint_bytes(step, dataclasses.replace(made, sharding="ddp")) == kept * 350 + 100
    for gpu in GPUS.values():
        most = (gpu.memory - 1e9) / 1.05  # beside the context, and 5 % of fragmentation
        assert [gpu.holds(share * most) for share in (0.999, 1.001)] == [True, False]


def test_the_whole_road_is_added_up(capsys):
    code, out, _ = said(capsys, *ASKED, "8", "--price", "2", "--json")
    found = json.loads(out)
    assert code == 0
    assert list(found["steps"]) == ["align", "picture-text", "single", "several"]
    hours = sum(step["hours"] for step in found["steps"].values()) + sum(found["construct_hours"].values())
    assert found["hours"] == pytest.approx(hours)
    assert found["dollars"] == pytest.approx(hours * 8 * 2)
    one = found["steps"]["align"]
    assert one["hours"] == pytest.approx(one["arithmetic_seconds"] * 2 * one["steps"] / 3600)
    assert one["files"] == ["align.yaml", "align-8x80gb.yaml"]
    data = sum(one["bytes"] for one in found["data"].values())
    assert found["disk_bytes"] == pytest.approx(data + sum(one["checkpoint_bytes"] for one in found["steps"].values()))
    assert "arithmetic, not measured" in found["rates"]


def test_the_road_stays_within_150_h100_hours(capsys):
    for gpus in ("1", "8"):
        assert json.loads(said(capsys, *ASKED, gpus, "--json")[1])["gpu_hours"] < 150


def test_what_takes_longest_bounds_a_step():
    planned = Plan("single", 1, 2, 10, 85, 0, 0, 0, 0, 0, traffic=100, operations=1000)
    rates = Rates(operations=500, bandwidth=100, cores=2, price=3, margin=2)
    found = estimate(planned, 1800, rates, core_seconds=0.1)
    assert (found.arithmetic, found.network, found.reading) == (2, 1, 1)
    assert (found.bound, found.seconds, found.hours, found.dollars) == ("arithmetic", 4, 2, 6)
    assert estimate(planned, 1, rates, core_seconds=1).bound == "reading"


def gpu_check(**changes):
    content = {"kind": "kosmos-g gpu-check", "device": "NVIDIA H100", "size": "official"}
    return json.dumps(content | {"rates": {"align": 2e14, "instruct": 1e14}} | changes)


def test_measured_rates_take_the_place_of_assumed_ones(tmp_path, capsys):
    (tmp_path / "check.json").write_text(gpu_check())
    words = [*ASKED, "1", "--json"]
    assumed, measured = (
        json.loads(said(capsys, *words, *more)[1]) for more in ([], ["--measured", str(tmp_path / "check.json")])
    )
    for name, rate in (("align", 2e14), ("single", 1e14)):
        operations = assumed["steps"][name]["operations"]
        assert measured["steps"][name]["seconds_per_step"] == pytest.approx(operations / rate)
        assert assumed["steps"][name]["seconds_per_step"] == pytest.approx(2 * operations / (0.4 * 989e12))
    assert "measured on NVIDIA H100: align 200 TFLOP/s, instruct 100 TFLOP/s" in measured["rates"]


def test_a_run_folder_is_measured_by_its_own_log(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("stage: align\n")
    (tmp_path / "starts.jsonl").write_text('{"device": "cuda:0", "processes": 2}\n')
    records = [{"step": n, "flops_per_second": rate} for n, rate in enumerate((1e12, 4e14, 5e14, 6e14))]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    found = json.loads(said(capsys, *ASKED, "1", "--json", "--measured", str(tmp_path))[1])
    assert "align 250 TFLOP/s" in found["rates"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "holds no rates (JSONDecodeError"),
        ("[]", "holds no rates (TypeError"),
        ("{}", "holds no rates (KeyError: 'kind')"),
        (gpu_check(kind="other"), "kind is 'other', not 'kosmos-g gpu-check'"),
        (gpu_check(size="tiny"), "made at size 'tiny'"),
        (gpu_check(rates={}), "its part c, the stages' steps, was skipped"),
        (gpu_check(rates={"align": -1}), "has -1.0 operations a second for align"),
        (gpu_check(rates={"align": "fast"}), "holds no rates (ValueError"),
        (None, "cannot be read (No such file or directory)"),
    ],
)
def test_a_file_without_rates_is_a_sentence(tmp_path, capsys, content, reason):
    path = tmp_path / "check.json"
    if content is not None:
        path.write_text(content)
    code, _, err = said(capsys, *ASKED, "1", "--measured", str(path))
    assert code == 2
    assert err.startswith(f"error: --measured: {path} ")
    assert reason in err
    assert "give the JSON file that `make gpu-check` writes, or the run folder of a training" in err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--gpu", "v100", "--gpus", "1"], "--gpu: 'v100' is none of 4090, a100, h100, h200, b200"),
        (["--gpus", "0"], "--gpus: 0 must be above 0"),
        (["--gpus", "3"], "batch.size: 2048 is no multiple of batch.micro 256 x 3 GPUs"),
        (["--gpus", "1", "--price", "-1"], "--price: -1 must be above 0"),
        (["--gpus", "1", "--cores", "nan"], "--cores: nan must be above 0"),
        (["--gpus", "1", "--margin", "inf"], "--margin: inf must be above 0"),
        (["--gpus", "1", "--efficiency", "40"], "--efficiency: 40 is a share of the peak and must be at most 1"),
        (["--gpus", "1", "--length", "9"], "--length: 9 has no use here: a recipe states it for each step"),
        (["--gpus", "1", "--optim.lr", "1"], "--optim.lr: a recipe's values stand in its files"),
        (["--gpus", "1", "--measured", "x", "--tflops", "9"], "--tflops: 9 and --measured are two rates"),
    ],
)
def test_an_option_that_makes_no_sense_for_a_recipe_is_named(capsys, words, expected):
    code, out, err = said(capsys, "--recipe", str(RECIPE), *words)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {expected}")


def test_an_option_of_recipes_is_refused_without_one(capsys):
    for name, value in (("--price", "2"), ("--cores", "4"), ("--margin", "3"), ("--measured", "x")):
        code, _, err = said(capsys, "--gpus", "1", name, value)
        assert code == 2
        assert err.startswith(f"error: {name}: ")
        assert "it belongs to --recipe" in err


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (None, "holds no recipe.yaml; give a folder such as training/configs/kosmos2"),
        ("steps: {}\n", "is no recipe (KeyError: 'data')"),
        ("steps: {align: {}}\ndata: {}\n", "is no recipe (KeyError: 'images')"),
        ("steps: [align]\ndata: {}\n", "is no recipe (AttributeError"),
        ("steps: {}\ndata: {a: {samples: 0, bytes: 1}}\n", "samples and bytes must be above 0"),
        ("steps: {}\ndata: {a: {samples: 1, bites: 1}}\n", "unexpected keyword argument 'bites'"),
        ("steps: {}\ndata: {}\nprice: 2\n", "has the key 'price', but a recipe has `steps` and `data` alone"),
        ("steps: {end: {images: 0}}\ndata: {}\n", "names the step 'end', but"),
        ("steps: [\n", "is not valid YAML"),
        ("steps: {align: {images: 0}}\ndata: {}\n", "step align of"),
    ],
)
def test_a_folder_that_is_no_recipe_is_a_sentence(tmp_path, capsys, change, expected):
    shutil.copy(RECIPE / "align.yaml", tmp_path)
    if change is not None:
        (tmp_path / "recipe.yaml").write_text(change)
    code, _, err = said(capsys, "--recipe", str(tmp_path), "--gpus", "1")
    assert code in (1, 2)
    assert err.startswith("error: --")
    assert expected in err


def test_a_machine_that_is_too_small_for_a_step_still_gets_the_others(recipe, tmp_path, capsys):
    for path in RECIPE.iterdir():
        if "several-1x" not in path.name:
            shutil.copy(path, tmp_path)
    code, out, err = said(capsys, "--recipe", str(tmp_path), "--gpu", "h100", "--gpus", "1", "--json")
    assert code == 1
    assert list(json.loads(out)["steps"]) == ["align", "picture-text", "single"]
    assert f"error: --recipe: step several of {tmp_path} is fitted to no machine of 1 x 86 GB; the smallest is" in err


def test_memory_comes_before_the_number_of_cards(recipe):
    names = {
        asked: recipe.step("align", gpus, GPUS[gpu].memory).files[1].name
        for asked, gpu, gpus in (("a", "4090", 8), ("b", "h200", 2), ("c", "h100", 16))
    }
    assert names == {"a": "align-1x24gb.yaml", "b": "align-1x80gb.yaml", "c": "align-8x80gb.yaml"}
