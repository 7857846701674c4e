"""The mean of weight files: exact, of one layout only, and nothing half-written."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from kosmos_core import load_model
from kosmos_core.safetensors_file import read_header
from kosmos_core.weights import read_config
from training.average import average, main


def weights(**changes):
    made = {"a.weight": torch.tensor([[1.0, 2.0]]), "b": torch.tensor([4.0]), "bytes": torch.tensor([7, 8])}
    return {name: tensor for name, tensor in {**made, **changes}.items() if tensor is not None}


@pytest.fixture
def files(tmp_path):
    """Writes each set of tensors into a file of its own; gives their paths."""

    def write(*sets, metadata=None):
        paths = [str(tmp_path / f"{number}.safetensors") for number in range(len(sets))]
        for tensors, path in zip(sets, paths, strict=True):
            save_file(tensors, path, metadata=metadata)
        return paths

    return write


def test_the_mean_is_that_of_each_tensor_in_the_first_file_s_formats(files, tmp_path, capsys):
    paths = files(
        weights(b=torch.tensor([4.0]).half()), weights(**{"a.weight": torch.tensor([[5.0, -2.0]])}), weights()
    )
    output = str(tmp_path / "mean.safetensors")
    assert main([*paths, "--weights", "0.5", "0.25", "0.25", "--output", output]) == 0
    found = load_file(output)
    assert found["a.weight"].tolist() == [[2.0, 1.0]]
    assert (found["b"].dtype, found["b"].item()) == (torch.float16, 4.0)
    assert found["bytes"].tolist() == [7, 8]
    assert "mean of 3 files" in capsys.readouterr().out
    assert main([*paths[:2], "--output", output, "--dtype", "bfloat16"]) == 0
    assert load_file(output)["a.weight"].tolist() == [[3.0, 0.0]]
    assert load_file(output)["b"].dtype == torch.bfloat16


def test_a_mean_far_beyond_its_files_is_exact_to_the_last_bit(files, tmp_path):
    step = torch.finfo(torch.float32).eps
    paths = files(weights(b=torch.tensor([1 + step])), weights(b=torch.tensor([1.0])))
    average(paths, tmp_path / "mean.safetensors", [1001, -1000])
    assert load_file(tmp_path / "mean.safetensors")["b"].item() == 1 + 1001 * step


@pytest.mark.parametrize(("asked", "told"), [(None, "float32"), ("bfloat16", "bfloat16")])
def test_the_metadata_tells_the_number_format_of_the_mean(files, tmp_path, asked, told):
    average(files(weights(), weights(), metadata={"dtype": "float32"}), tmp_path / "mean.safetensors", dtype=asked)
    assert read_header(tmp_path / "mean.safetensors").metadata["dtype"] == told


def test_a_file_of_the_encoder_stays_one_and_tells_what_it_is_the_mean_of(smoke_stages, tmp_path):
    start = smoke_stages.folder / "align.safetensors"
    changed = {name: t + 1 if t.is_floating_point() else t for name, t in load_file(start).items()}
    with start.open("rb") as file:
        metadata = json.loads(file.read(int.from_bytes(file.read(8), "little")))["__metadata__"]
    save_file(changed, tmp_path / "after.safetensors", metadata=metadata)
    output = tmp_path / "mean.safetensors"
    named = "--weights", "0.75", "0.25"
    assert main([str(start), str(tmp_path / "after.safetensors"), *named, "--output", str(output)]) == 0
    before, mean = load_model(start), load_model(output)
    assert mean.tokenizer.to_bytes() == before.tokenizer.to_bytes()
    for name, tensor in mean.state_dict().items():
        torch.testing.assert_close(tensor, before.state_dict()[name] + 0.25, rtol=1e-6, atol=1e-6)
    assert read_config(output)[1]["provenance"]["average"] == [
        {"file": "align.safetensors", "weight": 0.75},
        {"file": "after.safetensors", "weight": 0.25},
    ]
    assert main([str(start), str(smoke_stages.folder / "lm.safetensors"), "--output", str(output)]) == 2


REFUSED = [  # second file's changes, further words, what is said
    ({"b": None}, [], "only "),
    ({"c": torch.ones(1)}, [], "1.safetensors has c, one of 1 tensors"),
    ({"b": torch.ones(2)}, [], "b is (2,) and not (1,)"),
    ({"b": torch.ones(1).long()}, [], "b is I64 and not F32"),
    ({"bytes": torch.tensor([7, 9])}, [], "bytes, which holds no weights, differs"),
    ({}, ["--weights", "1"], "--weights: 1 for 2 files; give one for each."),
    ({}, ["--weights", "0.5", "0.4"], "--weights: 0.5 0.4 are 0.9 together; they must be 1."),
    ({}, ["--weights", "0.75", "0.251"], "--weights: 0.75 0.251 are 1.001 together; they must be 1."),
    ({}, ["--weights", "nan", "1"], "--weights: nan 1 are nan together"),
]


@pytest.mark.parametrize(("changes", "words", "said"), REFUSED)
def test_what_has_no_mean_is_a_sentence_and_leaves_nothing(files, tmp_path, capsys, changes, words, said):
    paths = files(weights(), weights(**changes))
    output = tmp_path / "mean.safetensors"
    assert main([*paths, *words, "--output", str(output)]) == 2
    assert said in capsys.readouterr().err
    assert not output.exists()


def test_other_sizes_behind_the_same_shapes_are_refused_and_other_dropout_is_not(files, tmp_path, capsys):
    def of(heads, dropout):
        return {"format": "kosmos-g", "config": json.dumps({"decoder": {"heads": heads, "dropout": dropout}})}

    (first,) = files(weights(), metadata=of(4, 0.1))
    for heads, dropout, code in ((8, 0.1, 2), (4, 0.0, 0)):
        save_file(weights(), tmp_path / "other.safetensors", metadata=of(heads, dropout))
        words = [first, str(tmp_path / "other.safetensors"), "--output", str(tmp_path / "mean.safetensors")]
        assert main(words) == code
    assert "its decoder.heads is 8 and not 4" in capsys.readouterr().err


def test_one_file_a_missing_one_and_an_output_that_is_an_input_are_sentences(files, tmp_path, capsys):
    paths = files(weights(), weights(b=torch.tensor([8.0])))
    (tmp_path / "link").symlink_to(paths[1])
    for words, code, said in (
        ([*paths, "--output", str(tmp_path / "link")], 2, "link is one of the files to average; give another name."),
        ([*paths, "--output", f"{tmp_path}/../{tmp_path.name}/1.safetensors"], 2, "is one of the files to average"),
        ([paths[0], "--output", str(tmp_path / "m")], 2, "FILE: 1 given; name at least two"),
        ([paths[0], str(tmp_path / "none"), "--output", str(tmp_path / "m")], 1, "none is missing"),
        ([*paths, "--output", paths[1]], 2, "is one of the files to average; give another name."),
        ([*paths, "--output", str(tmp_path / "no" / "m")], 1, "there is no folder"),
    ):
        assert main(words) == code
        assert said in capsys.readouterr().err
    assert load_file(paths[1])["b"].item() == 8
    assert not (tmp_path / "m").exists()
