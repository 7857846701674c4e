"""The converter reads what the original wrote, refuses what could do harm, and never spoils its source."""

import argparse
import csv
import hashlib
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kosmos_core import WeightsError, load_model
from kosmos_core.original.converter import convert, main, read_original
from kosmos_core.original.pickle_reader import read_checkpoint
from kosmos_core.original.tensor_names import ignored_reason, new_name
from kosmos_core.safetensors_file import read_header
from kosmos_core.weights import read_config
from tests.core.golden_roles import COPIED, SHARED

ROLE = COPIED / "seed_004_b_one_image"
FINAL, STAGE2 = ROLE / "checkpoint_final.pt", ROLE / "checkpoint_stage2.pt"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_source_is_not_changed_and_the_report_accounts_for_every_tensor(tmp_path, capsys):
    before = digest(FINAL)
    assert main([str(FINAL), str(tmp_path / "k.safetensors")]) == 0
    assert digest(FINAL) == before
    report = capsys.readouterr().out
    counts = [int(line.split()[1]) for line in report.splitlines() if line.startswith(("read", "ignored"))]
    assert sum(counts) == len(torch.load(FINAL, weights_only=True)["model"])
    assert "autoencoder" in report
    assert "U-Net" in report


def test_dry_run_writes_nothing(tmp_path, capsys):
    assert main([str(FINAL), str(tmp_path / "k.safetensors"), "--dry-run"]) == 0
    assert list(tmp_path.iterdir()) == []
    assert "nothing written" in capsys.readouterr().out


def test_half_chooses_whether_the_training_half_is_kept(tmp_path):
    for half, kept in (("M", False), ("MN", True), (None, True)):
        convert(STAGE2, tmp_path / "k.safetensors", half=half)
        config, description = read_config(tmp_path / "k.safetensors")
        assert config.aligner.reconstruction is kept
        assert description["stage"] == "align"
    with pytest.raises(WeightsError, match="no training half"):
        convert(FINAL, tmp_path / "k.safetensors", half="MN")


def test_a_stage_1_checkpoint_becomes_a_model_without_aligner(tmp_path):
    content = torch.load(FINAL, weights_only=True)
    content["model"] = {k: v for k, v in content["model"].items() if k.startswith(("gpt_model", "img_"))}
    torch.save(content, tmp_path / "checkpoint_stage1.pt")
    convert(tmp_path / "checkpoint_stage1.pt", tmp_path / "k.safetensors")
    model = load_model(tmp_path / "k.safetensors")
    assert read_config(tmp_path / "k.safetensors")[1]["stage"] == "lm"
    assert model.hidden_states(torch.tensor([[0, 4, 5]])).shape[:2] == (1, 3)
    with pytest.raises(ValueError, match="first training stage only"):
        model.encode_tokens(torch.tensor([[0, 4, 5]]))


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)]
)
def test_dtype_sets_the_type_on_disk(name, dtype, tmp_path):
    assert main([str(FINAL), str(tmp_path / "k.safetensors"), "--dtype", name]) == 0
    model = load_model(tmp_path / "k.safetensors", dtype=None)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {dtype}


def test_every_name_of_the_official_checkpoints_is_read_or_ignored_with_a_reason():
    table = SHARED / "state_dict_keys_full.tsv"
    if not table.is_file():
        pytest.skip("the list of official names is not beside this checkout")
    with table.open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert len(rows) > 4000
    for checkpoint in ("stage2", "final", "demo_build"):
        names = [row["name"] for row in rows if row["checkpoint"] == checkpoint]
        targets = [new_name(name) for name in names if ignored_reason(name, training_half=True) is None]
        assert None not in targets
        assert len(set(targets)) == len(targets)


@pytest.mark.parametrize("zipped", [True, False])
def test_namespace_and_omegaconf_like_objects_become_inert_values(tmp_path, zipped):
    content = torch.load(FINAL, weights_only=True)
    content["args"] = argparse.Namespace(decoder_attention_heads=4, path=Path("x"), layers=[argparse.Namespace(a=1)])
    content["cfg"] = None
    torch.save(content, tmp_path / "c.pt", _use_new_zipfile_serialization=zipped)
    state, heads = read_checkpoint(tmp_path / "c.pt")
    assert state.keys() == content["model"].keys()
    assert all(torch.equal(tensor, content["model"][name]) for name, tensor in state.items())
    assert heads == 4


class Malicious:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_is_refused_and_never_executed(tmp_path, zipped):
    witness = tmp_path / "executed"
    content = {"model": {"x": torch.zeros(1)}, "args": Malicious(f"touch {witness}")}
    torch.save(content, tmp_path / "bad.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=r"asks for (posix|nt|os)\.system"):
        convert(tmp_path / "bad.pt", tmp_path / "k.safetensors")
    assert not witness.exists()
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Malicious(f"touch {witness}")))
    with pytest.raises(WeightsError):
        convert(tmp_path / "plain.pt", tmp_path / "k.safetensors")
    assert not witness.exists()
    assert not (tmp_path / "k.safetensors").exists()


def test_a_class_of_an_allowed_package_runs_nothing(tmp_path):
    """Even names that exist and act, such as pathlib.Path.unlink, are replaced by stubs."""
    victim = tmp_path / "victim"
    victim.write_text("here")

    class Trick:
        def __reduce__(self):
            return getattr, (Path(victim), "unlink")

    torch.save({"model": {"x": torch.zeros(1)}, "args": Trick()}, tmp_path / "c.pt")
    with pytest.raises(WeightsError, match="getattr"):
        read_checkpoint(tmp_path / "c.pt")
    assert victim.exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["missing.pt"], "missing"),
        ([str(ROLE / "inputs.safetensors")], "no PyTorch checkpoint"),
        ([str(ROLE / "dict.txt")], "damaged or no PyTorch checkpoint"),
        ([str(FINAL), "--override", "vision.heads=5"], "multiple"),
        ([str(FINAL), "--override", "vision.head=2"], "there is no size 'vision.head'"),
        ([str(FINAL), "--override", "vision.heads"], "expected PART.SIZE=NUMBER"),
        ([str(FINAL), "--spm", "x.model"], "both --spm and --dict"),
    ],
)
def test_bad_input_gets_one_sentence_and_writes_nothing(arguments, sentence, tmp_path, capsys):
    source, *options = arguments
    assert main([source, str(tmp_path / "k.safetensors"), *options]) == 1
    message = capsys.readouterr().err
    assert sentence in message
    assert "Traceback" not in message
    assert list(tmp_path.iterdir()) == []


def test_a_truncated_checkpoint_is_named_as_damaged(tmp_path):
    (tmp_path / "c.pt").write_bytes(FINAL.read_bytes()[:-5000])
    with pytest.raises(WeightsError, match=r"c\.pt cannot be read"):
        convert(tmp_path / "c.pt", tmp_path / "k.safetensors")


@pytest.mark.parametrize("content", [b"hello", b"", b"\x80\x02K", b"(lp0\n."])
def test_a_file_of_something_else_is_a_sentence(tmp_path, capsys, content):
    (tmp_path / "c.pt").write_bytes(content)
    assert main([str(tmp_path / "c.pt"), str(tmp_path / "out.safetensors")]) == 1
    assert f"not converted: {tmp_path / 'c.pt'} " in capsys.readouterr().err


def test_the_source_is_never_its_own_target(tmp_path):
    copy = tmp_path / "c.pt"
    copy.write_bytes(FINAL.read_bytes())
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.pt").symlink_to(copy)
    for spelled in (copy, tmp_path / "folder/../c.pt", tmp_path / "link.pt"):
        with pytest.raises(WeightsError, match="source itself"):
            convert(copy, spelled)
    assert digest(copy) == digest(FINAL)


def test_missing_tensors_are_listed(tmp_path):
    content = torch.load(FINAL, weights_only=True)
    del content["model"]["img_model.visual.ln_post.weight"]
    torch.save(content, tmp_path / "c.pt")
    with pytest.raises(WeightsError, match=r"lacks 1 tensors.*vision\.norm_post\.weight"):
        read_original(tmp_path / "c.pt")


def test_tensors_that_the_original_does_not_have_are_reported_by_name(tmp_path):
    content = torch.load(FINAL, weights_only=True)
    content["model"]["my_adapter.weight"] = torch.zeros(2)
    torch.save(content, tmp_path / "c.pt")
    report = read_original(tmp_path / "c.pt").report()
    assert "1 tensors: not part of the original: my_adapter.weight" in report


def test_conversion_streams_instead_of_holding_the_checkpoint(tmp_path):
    """Peak memory stays within 1.3 times the source above what the process needs before it begins."""
    content = torch.load(FINAL, weights_only=True)
    names = [name for name in content["model"] if name.startswith("gpt_model.decoder.layers.0.")]
    for index in range(1, 400):
        for name in names:
            content["model"][name.replace("layers.0", f"layers.{index}")] = content["model"][name].clone()
    width = content["model"]["gpt_model.decoder.embed_tokens.weight"].shape[1]
    big = torch.randn(300_000_000 // (4 * width), width)
    content["model"]["gpt_model.decoder.embed_tokens.weight"] = big
    content["model"]["gpt_model.decoder.output_projection.weight"] = big
    source, target = tmp_path / "c.pt", tmp_path / "k.safetensors"
    torch.save(content, source)
    script = (
        "import resource, sys, kosmos_core.convert as c\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "before = peak()\n"
        "c.convert(sys.argv[1], sys.argv[2])\n"
        "print(peak() - before)\n"
    )
    result = subprocess.run([sys.executable, "-c", script, source, target], capture_output=True, text=True, check=True)
    assert int(result.stdout) <= 1.3 * source.stat().st_size
    assert read_header(target).shapes["decoder.embedding.weight"] == tuple(big.shape)


def test_dry_run_checks_the_tokenizer_and_the_target_too(tmp_path, capsys):
    dictionary = ["--dict", str(ROLE / "dict.txt")]
    assert main([str(FINAL), str(tmp_path / "k.safetensors"), "--dry-run", "--spm", "no.model", *dictionary]) == 1
    assert "--spm no.model: there is no such file" in capsys.readouterr().err
    assert main([str(FINAL), str(FINAL), "--dry-run"]) == 1


def test_head_counts_that_nothing_tells_are_reported(tmp_path, capsys):
    target = str(tmp_path / "k.safetensors")
    assert main([str(FINAL), target, "--dry-run"]) == 0
    assert "assumed   vision.heads 1, aligner.heads 1; if built" in capsys.readouterr().out  # its run tells the others
    assert main([str(FINAL), target, "--dry-run", "--override", "vision.heads=2", "--override", "aligner.heads=4"]) == 0
    assert "vision.heads" not in capsys.readouterr().out


@pytest.mark.parametrize(("own", "expected"), [({}, 2), ({"resampler.heads": 4}, 4)])
def test_the_resampler_has_the_language_models_heads_unless_it_is_given_its_own(own, expected):
    config = read_original(FINAL, overrides={"decoder.heads": 2, **own}).config
    assert (config.decoder.heads, config.resampler.heads) == (2, expected)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"cfg": "text", "model": {"x": torch.ones(3)}}, "so it is no Kosmos-G checkpoint"),
        ({"model": {"x": torch.ones(3), "y": 3}}, "its 'y' is a int, expected a tensor"),
        ({"gpt_model.decoder.embed_tokens.weight": torch.ones(3)}, "expected 2 axes"),
    ],
)
def test_checkpoints_of_another_make_are_refused(content, sentence, tmp_path):
    torch.save(content, tmp_path / "c.pt")
    with pytest.raises(WeightsError, match=sentence):
        convert(tmp_path / "c.pt", tmp_path / "k.safetensors")
