"""The configuration: what is wrong is said in one sentence that names the key and the nearest valid one."""

import subprocess
import sys

import pytest
import yaml

from training.base.errors import ConfigError
from training.base.processes import choose_device
from training.engine.run_config import parse

# 300 bytes that stand for a billion values
REPEATING = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10))


@pytest.fixture
def arguments(smoke_stages, tmp_path):
    def make(stage, *more):
        return smoke_stages.arguments(stage, tmp_path / "run", *more)

    return make


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("--optim.lrr", "1", "there is no key 'optim.lrr'; the nearest is 'optim.lr'"),
        ("--optim.learning_rate", "1", "there is no key 'optim.learning_rate'; the nearest is 'optim.lr'"),
        ("--optim.warmup", "1", "there is no key 'optim.warmup'; the nearest is 'optim.warmup_steps'"),
        ("--model.decoder.witdh", "64", "there is no key 'model.decoder.witdh'; the nearest is 'model.decoder.width'"),
        ("--task.recc", "paper", "there is no key 'task.recc'; the nearest is 'task.rec'"),
        ("--stpes", "3", "there is no key 'stpes'; the nearest is 'steps'"),
        ("--optim.lr", "fast", "optim.lr: 'fast' is not valid, expected float"),
        ("--steps", "null", "steps: holds nothing, expected int; leave it out to keep its default"),
        ("--steps", "1.5", "steps: '1.5' is not valid, expected int"),
        ("--precision", "bf17", "precision: 'bf17' is not valid, expected one of auto, bf16, fp16, fp32"),
        ("--optim.name", "sgd", "optim.name: 'sgd' is not valid, expected one of adamw, original"),
        ("--optim.betas", "[0.9]", "optim.betas: '[0.9]' is not valid"),
        ("--optim.lr", "-1", "optim.lr: -1.0 must be above 0"),
        ("--batch.micro", "3", "batch.size: 4 must be a multiple of batch.micro (3)"),
        ("--checkpoint.keep", "0", "checkpoint.keep: 0 must be at least 1"),
        ("--data.workers", "-1", "data.workers: -1 must be at least 0"),
        ("--stage", "pretrain", "stage: 'pretrain' is none of lm, align, instruct"),
        ("--preset", "huge", "preset: 'huge' is none of official, medium, tiny"),
        ("--config", "missing.yaml", "--config missing.yaml: cannot be read (No such file or directory)"),
        ("--seed", "-1", "seed: -1 must be 0 or more"),
        ("--batch.streams", "0", "batch.streams: 0 must be at least 1"),
        ("--parallel.shard_processes", "0", "parallel.shard_processes: 0 must be at least 1"),
        ("--data.sources.captions.pth", "x", "the nearest is 'data.sources.captions.path'"),
        ("--optim", "3", "optim: '3' is not valid, expected a key below it, such as --optim.KEY VALUE"),
        ("--batch.streams", "two", "batch.streams: 'two' is not valid, expected int or null."),
        ("--data.sources.new.weight", "x", "data.sources.new.weight: 'x' is not valid, expected float."),
        ("--log.trackers", "3", "log.trackers: '3' is not valid, expected list[str]."),
        ("--data.max_bad", "200", "data.max_bad: 200.0 must be per cent, from 0 to 100"),
    ],
)
def test_a_wrong_option_is_named_with_its_value_and_the_way_out(arguments, option, value, sentence):
    with pytest.raises(ConfigError) as error:
        parse(arguments("align", option, value))
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("optim: {lrr: 1}", "there is no key 'optim.lrr'; the nearest is 'optim.lr'"),
        (
            "data: {sources: {a: {pth: x}}}",
            "there is no key 'data.sources.a.pth'; the nearest is 'data.sources.a.path'",
        ),
        ("optim: {lr: fast}", "optim.lr: 'fast' is not valid, expected float"),
        ("optim:", "'optim' holds nothing, expected keys below it, such as 'optim.name'; leave it out"),
        ("optim: 3", "'optim' holds 3, expected keys below it, such as 'optim.name'"),
        ("data: {sources: {a: 3}}", "'data.sources.a' holds 3, expected keys below it, such as 'data.sources.a.path'"),
        (
            "data: {sources: 3}",
            "data.sources: 3 is not valid, expected keys below it, such as 'data.sources.NAME.path'",
        ),
        ("batch: {streams: x}", "batch.streams: 'x' is not valid, expected int or null"),
        ("- 1", "expected `key: value` lines, found a list"),
        ("", "expected `key: value` lines, found nothing"),
        ("steps:", "steps: holds nothing, expected int; leave it out to keep its default"),
        ("optim: {betas: }", "optim.betas: holds nothing, expected tuple[float, float]; leave it out"),
        ("steps: 5\nseed: 1\nsteps: 6", "is not valid YAML: 'steps' is given twice, in lines 1 and 3; leave one out"),
        (
            "validate: {expect: {metric: retrieval, by_step: 1}}",
            "is not valid, expected a list, each entry behind a dash: - {metric: VALUE, ...}.",
        ),
        ("a: [", "is not valid YAML"),
        ("!!bool x", "is not valid YAML: one of its values is not what its tag"),
        ('!!int ""', "is not valid YAML: one of its values is not what its tag"),
        ("2001-99-99", "is not valid YAML: one of its values is not what its tag or form says (month must be"),
        ("- " * 1500, "is not valid YAML: it is nested too deep"),
        ("stage: &a [*a]", "is not valid YAML: its aliases repeat more than 1,000,000 values, or themselves"),
        (REPEATING, "is not valid YAML: its aliases repeat more than 1,000,000 values"),
    ],
)
def test_a_wrong_file_is_named_with_its_key(arguments, tmp_path, text, sentence):
    file = tmp_path / "own.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        parse(arguments("align", "--config", str(file)))
    assert sentence in str(error.value)


def test_a_file_that_is_no_text_is_a_sentence(arguments, smoke_stages):
    weights = smoke_stages.folder / "lm.safetensors"
    with pytest.raises(ConfigError, match=r"lm\.safetensors: is no text file; give a YAML file"):
        parse(arguments("align", "--config", str(weights)))


@pytest.mark.parametrize("key", ["--weights", "--optim.lr"])
def test_an_option_without_its_value_is_a_sentence(arguments, key):
    with pytest.raises(ConfigError, match=f"{key}: expected one argument"):
        parse(arguments("align", key))


def test_no_argument_at_all_asks_for_a_configuration():
    with pytest.raises(ConfigError, match="--config: none given; name a file such as"):
        parse([])


@pytest.mark.parametrize("word", ["-h", "--help"])
def test_help_needs_no_configuration(capsys, word):
    with pytest.raises(SystemExit) as ended:
        parse([word])
    assert ended.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "--optim.lr" in shown
    assert "--stage NAME --help, or --config FILE --help, shows them" in shown


def test_the_vocabulary_is_that_of_the_weights(smoke_stages):
    weights = smoke_stages.folder / "lm.safetensors"
    given = ["--stage", "align", "--preset", "tiny", "--run_folder", "run", "--weights", str(weights)]
    assert parse(given).model.decoder.vocabulary == smoke_stages.vocabulary
    assert parse([*given, "--model.decoder.vocabulary", "99"]).model.decoder.vocabulary == 99


def test_a_device_that_torch_does_not_know_is_named():
    with pytest.raises(ConfigError, match="device: torch knows no device 'gpu'"):
        choose_device("gpu")


def test_later_files_and_options_win(arguments, tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("optim: {lr: 1e-4, eps: 1e-7}\nmodel: {decoder: {layers: 3}}")
    config = parse(arguments("align", "--config", str(file), "--optim.eps", "1e-9"))
    assert (config.optim.lr, config.optim.eps, config.optim.warmup_steps) == (1e-4, 1e-9, 5)
    assert (config.model.decoder.layers, config.model.decoder.width) == (3, 32)


def test_an_option_of_one_source_can_be_given_on_the_command_line(arguments):
    config = parse(arguments("align", "--data.sources.captions.path", "elsewhere"))
    assert config.data.sources["captions"].path == "elsewhere"


def test_the_stored_configuration_gives_the_same_run_again(arguments, tmp_path):
    config = parse(arguments("instruct", "--optim.lr", "3e-4"))
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml())
    assert parse(["--config", str(file)]).to_yaml() == config.to_yaml()
    assert yaml.safe_load(config.to_yaml())["optim"]["lr"] == 3e-4


def test_the_model_fits_the_stage(arguments):
    assert parse(arguments("lm")).model.aligner is None
    assert parse(arguments("align")).model.aligner.reconstruction
    assert not parse(arguments("instruct")).model.aligner.reconstruction


def test_a_help_and_a_refused_key_do_without_torch_and_stage_1_without_diffusers(pytestconfig):
    script = """
import sys
from training.run import main
official = ["--config", "training/configs/kosmos2/align.yaml"]
for words in (["--help"], [*official, "--help"], [*official, "--stpes", "3"], [*official, "--optim.lr", "x"]):
    try:
        assert main(words) == 2
    except SystemExit as left:
        assert not left.code
from training import smoke
try:
    smoke.main(["--help"])
except SystemExit as left:
    assert not left.code
assert not {"torch", "numpy", "megatron"} & set(sys.modules)
import training.plan.command
assert "torch" in sys.modules and "torch.distributed.fsdp" not in sys.modules
import training.engine.start, training.stages.lm, training.data.streams
assert not {"diffusers", "transformers", "peft", "scipy.stats", "ray"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=pytestconfig.rootpath, stdout=subprocess.DEVNULL)
