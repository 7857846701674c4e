"""Checkpoints become the one-file weights that ComfyUI's loader and the Python API read."""

import json
import shutil

import pytest
import torch

from kosmos_core import load_model
from kosmos_core.weights import read_config
from tests.training.launch import tensors, train
from training import export
from training.weights.model_card import last_record


@pytest.fixture(scope="module")
def run_folder(smoke_stages, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    arguments = smoke_stages.arguments("instruct", folder / "run", "--steps", "4", "--checkpoint.every", "2")
    result = train([*arguments, "--optim.ema", "0.5", "--optim.warmup_steps", "0"], folder / "log")
    assert result.ok, result.output
    return folder / "run"


def test_the_file_holds_the_checkpoint_s_weights_and_reads_text(run_folder, tmp_path):
    assert export.main([str(run_folder), str(tmp_path / "out.safetensors")]) == 0
    model = load_model(tmp_path / "out.safetensors")
    state = tensors(run_folder / "checkpoints" / "step-00000004")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[f"model.{name}"]), name
    assert model.encode("a red circle").shape == (1, 77, 768)


def test_the_moving_average_replaces_what_was_trained_only(run_folder, tmp_path):
    assert export.main([str(run_folder), str(tmp_path / "ema.safetensors"), "--ema"]) == 0
    model = load_model(tmp_path / "ema.safetensors").state_dict()
    state = tensors(run_folder / "checkpoints" / "step-00000004")
    averaged = {name.removeprefix("average.") for name in state if name.startswith("average.")}
    assert "decoder.embedding.weight" in averaged
    assert "vision.blocks.0.attention.q_proj.weight" not in averaged
    for name, tensor in model.items():
        assert torch.equal(tensor, state[f"average.{name}" if name in averaged else f"model.{name}"]), name
    changed = [name for name in averaged if not torch.equal(model[name], state[f"model.{name}"])]
    assert len(changed) > len(averaged) / 2


def test_the_file_says_where_it_comes_from(run_folder, tmp_path):
    assert export.main([str(run_folder), str(tmp_path / "half.safetensors"), "--step", "2", "--dtype", "bfloat16"]) == 0
    _, description = read_config(tmp_path / "half.safetensors")
    provenance = description["provenance"]
    assert (description["stage"], description["dtype"]) == ("instruct", "bfloat16")
    assert (provenance["step"], provenance["weights"], provenance["starts"]) == (2, "last", 1)
    assert provenance["data"] == ["captions", "constructed", "edits"]
    assert provenance["versions"]["torch"] == torch.__version__
    assert provenance["config"]["optim"]["ema"] == 0.5
    assert "commit" in provenance["git"]


def test_an_export_names_the_code_of_the_latest_start(run_folder, tmp_path):
    again = tmp_path / "run"
    shutil.copytree(run_folder, again)
    (first,) = (again / "starts.jsonl").read_text().splitlines()
    latest = json.loads(first) | {"git": {"commit": "abc", "changed": True}, "versions": {"torch": "9"}}
    (again / "starts.jsonl").write_text(f"{first}\n{json.dumps(latest)}\n")
    told = export.export(again, tmp_path / "out.safetensors")
    assert (told["git"], told["versions"], told["starts"]) == (latest["git"], latest["versions"], 2)


def test_a_card_has_of_each_metric_the_last_record_up_to_the_exported_step(tmp_path):
    assert last_record(tmp_path, 4) == {}
    records = [{"step": 1, "loss": 3.0, "validate/a": 2.0}, {"step": 4, "loss": 1.5}, {"step": 5, "loss": 0.5}]
    torn = [*map(json.dumps, records), "[1]", '{"loss": 9.0}', '{"step": 4, "lo']
    (tmp_path / "log.jsonl").write_text("\n".join(torn))
    assert last_record(tmp_path, 4) == {"step": 4, "loss": 1.5, "validate/a": 2.0}
    assert last_record(tmp_path, 3) == {"step": 1, "loss": 3.0, "validate/a": 2.0}


@torch.no_grad()
def test_eight_bits_keep_the_conditions(run_folder, tmp_path):
    for dtype in ("float32", "float8_e4m3fn"):
        assert export.main([str(run_folder), str(tmp_path / f"{dtype}.safetensors"), "--dtype", dtype]) == 0
    whole, small = (tmp_path / f"{dtype}.safetensors" for dtype in ("float32", "float8_e4m3fn"))
    assert read_config(small)[1]["dtype"] == "float16, float8_e4m3fn"
    stored = load_model(small, dtype=None).state_dict()
    kinds = {name: tensor.dtype for name, tensor in stored.items()}
    assert kinds["aligner.query_decoder.blocks.0.attention.q_proj.weight"] == torch.float8_e4m3fn
    assert kinds["decoder.blocks.0.attention.q_proj.bias"] == kinds["decoder.embedding.weight"] == torch.float16
    texts = ["a red circle", "a blue square"]
    exact, rounded = (load_model(path).encode(texts) for path in (whole, small))
    assert 0 < (exact - rounded).square().mean() < 1e-3 * exact.var()


@pytest.mark.parametrize(
    ("card", "more", "expected"),
    [
        ("mine.md", (), "is a file that is no model card; choose another name, such as mine-card.md"),
        (".", (), "is a folder; choose another name"),
        ("out.safetensors", (), "is the file of weights itself; choose another name"),
        ("missing/card.md", (), "there is no folder"),
        ("card.md", ("--lora",), "would describe whole weights, not --lora's; leave one out"),
    ],
)
def test_a_card_takes_no_other_file_s_place(run_folder, tmp_path, capsys, card, more, expected):
    (tmp_path / "mine.md").write_text("# My own\n")
    words = [str(run_folder), str(tmp_path / "out.safetensors"), "--model-card", str(tmp_path / card), *more]
    assert export.main(words) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: --model-card: ")
    assert expected in said
    assert [path.name for path in tmp_path.iterdir()] == ["mine.md"]
    assert (tmp_path / "mine.md").read_text() == "# My own\n"


def test_what_cannot_be_exported_is_a_sentence(run_folder, tmp_path, capsys, smoke_stages):
    output = tmp_path / "out.safetensors"
    assert export.main([str(tmp_path), str(output)]) == 1
    assert f"{tmp_path} is no run folder" in capsys.readouterr().err
    assert export.main([str(run_folder), str(output), "--step", "3"]) == 1
    assert "has no checkpoint of step 3; found: step-00000002, step-00000004" in capsys.readouterr().err
    assert export.main([str(run_folder), str(tmp_path / "missing" / "out.safetensors")]) == 1
    assert "missing" in capsys.readouterr().err
    plain = tmp_path / "plain"
    assert train(smoke_stages.arguments("lm", plain, "--steps", "1"), tmp_path / "log").ok
    assert export.main([str(plain), str(output), "--ema"]) == 1
    assert "holds no moving average; train with optim.ema above 0" in capsys.readouterr().err
    assert not output.exists()


def test_unbiased_rounding_is_of_fp8_alone_and_an_own_rounding(run_folder, tmp_path, capsys):
    words = [str(run_folder), str(tmp_path / "out.safetensors"), "--unbiased"]
    assert export.main(words) == 1
    assert "--unbiased: rounds to float8_e4m3fn, and --dtype is float32; leave it out." in capsys.readouterr().err
    assert not (tmp_path / "out.safetensors").exists()
    assert export.main([*words, "--dtype", "float8_e4m3fn"]) == 0
    export.export(run_folder, tmp_path / "nearest.safetensors", dtype="float8_e4m3fn")
    export.export(run_folder, tmp_path / "whole.safetensors")
    name = "aligner.query_decoder.blocks.0.attention.q_proj.weight"
    found, nearest, whole = (
        load_model(tmp_path / f"{file}.safetensors", dtype=None).state_dict()[name].float()
        for file in ("out", "nearest", "whole")
    )
    assert not torch.equal(found, nearest)
    assert (found - whole).abs().max() < 2 * (nearest - whole).abs().max() + 1e-6
