"""Files that ComfyUI's CLIPSave writes of a Kosmos-G encoder: tensors alone, the description among them."""

import json

import pytest
import torch
from safetensors.torch import save_file

from kosmos_core import KosmosG, KosmosGConfig, load_model
from kosmos_core.reference import model_fingerprint
from kosmos_core.saved_clip import DESCRIPTION, PREFIX, description_tensor
from kosmos_core.weights import WeightsError, file_metadata, identify, save_model, tokenizer_tensors
from training.weights.warm_start import _kosmos_g


@pytest.fixture(scope="module")
def model(tiny_tokenizer):
    config = KosmosGConfig.tiny(vocabulary=tiny_tokenizer.vocabulary)
    return KosmosG(config, tokenizer=tiny_tokenizer).eval()


def tensors_of(model):
    metadata = file_metadata(model.config, "instruct", {torch.float32}, {"origin": "a test"})
    weights = {PREFIX + name: tensor.clone() for name, tensor in model.state_dict().items()}
    return {**weights, **tokenizer_tensors(model.tokenizer), DESCRIPTION: description_tensor(metadata)}


def test_it_is_a_kosmos_file_like_any_other(model, tmp_path):
    saved, own = tmp_path / "clip.safetensors", tmp_path / "own.safetensors"
    save_file(tensors_of(model), saved, metadata={"format": "pt", "prompt": "{}"})
    save_model(model, own)
    assert identify(saved) is None
    assert torch.equal(load_model(saved).encode("a dog"), load_model(own).encode("a dog"))
    assert model_fingerprint(saved) == model_fingerprint(own)
    mapped = _kosmos_g(saved, model)
    assert set(mapped.weights) == set(model.state_dict())


@pytest.mark.parametrize(
    ("tensor", "sentence"),
    [
        (torch.frombuffer(bytearray(b"{"), dtype=torch.uint8), "unreadable"),
        (torch.frombuffer(bytearray(json.dumps([1]).encode()), dtype=torch.uint8), "unreadable"),
        (torch.frombuffer(bytearray(b"\xff\xfe\xfd"), dtype=torch.uint8), "unreadable"),
        (torch.zeros(3), r"F32 \(3,\), expected at most 1,000,000 bytes"),
        (torch.zeros(1_000_001, dtype=torch.uint8), "expected at most 1,000,000 bytes"),
        (description_tensor({"format": "kosmos-g", "format_version": "1"}), "unreadable metadata"),
    ],
)
def test_a_description_that_cannot_be_read_is_named(model, tmp_path, tensor, sentence):
    path = tmp_path / "clip.safetensors"
    save_file({**tensors_of(model), DESCRIPTION: tensor}, path)
    with pytest.raises(WeightsError, match=sentence):
        load_model(path)


def test_one_of_an_earlier_release_is_called_what_it_is(model, tmp_path):
    path = tmp_path / "clip.safetensors"
    save_file({name: tensor for name, tensor in tensors_of(model).items() if name.startswith(PREFIX)}, path)
    assert "without its tokenizer; save it again" in identify(path)
