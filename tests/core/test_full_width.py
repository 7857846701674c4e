"""At the official widths our numbers equal the original's; weights are rebuilt from the recipe on the fly (4 GB)."""

import importlib.util
import json

import pytest
import torch
from safetensors.torch import load_file

from kosmos_core import KosmosG
from kosmos_core.images import CLIP_MEAN, CLIP_STD
from kosmos_core.original.tensor_names import deduce_config, ignored_reason, new_name
from tests.core.golden_roles import SHARED, assert_close

FOLDER = SHARED / "fullwidth_001"


@pytest.mark.skipif(not FOLDER.is_dir(), reason="the full-width recording is not beside this checkout")
@torch.no_grad()
def test_the_condition_at_official_widths_equals_the_original_and_bfloat16_keeps_it():
    recipe = importlib.util.spec_from_file_location("weight_recipe", SHARED / "weight_recipe.py")
    module = importlib.util.module_from_spec(recipe)
    recipe.loader.exec_module(module)
    recorded = json.loads((FOLDER / "config.json").read_text())
    expected = load_file(FOLDER / "expected.safetensors")
    with torch.device("meta"):
        shapes = {name: torch.empty(shape) for name, shape in recorded["state_dict"].items()}
        model = KosmosG(deduce_config(shapes, {}, training_half=False))
    model.to_empty(device="cpu")
    state = model.state_dict()
    for name, shape in recorded["state_dict"].items():
        if ignored_reason(name, training_half=False) is None:
            values = module.value(name, shape, recorded["weight_seed"])
            state.pop(new_name(name)).copy_(torch.from_numpy(values).reshape(state_shape(model, name)))
    assert not state, "every parameter of the model is filled"
    model.eval()
    pixels = (expected["gpt_img_src_tokens_uint8"].double() / 255 - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
    clip = model.vision(pixels.float().permute(0, 3, 1, 2))
    assert_close(clip[0, ::16], expected["clip_features.first_image_every_16th_token"], "vision features")
    features = model.resampler(clip)
    assert_close(features.flatten(0, 1), expected["connector_out"], "picture tokens")
    mask = expected["img_gpt_input_mask"].bool()
    hidden = model.hidden_states(expected["src_tokens"], mask, features)
    assert_close(hidden[:, ::8], expected["gpt_hidden.every_8th"], "hidden states")
    assert_close(hidden[:, -1], expected["gpt_hidden.last"], "last hidden state")
    conditions = [
        model.encode_tokens(expected["negative_tokens"]),
        model.encode_tokens(expected["src_tokens"], image_mask=mask, image_features=features),
    ]
    assert_close(torch.cat(conditions), expected["encode_condition"], "condition")

    model.to(torch.bfloat16)
    half = model.encode_tokens(expected["src_tokens"], pixels.float().permute(0, 3, 1, 2), mask)
    similarity = torch.nn.functional.cosine_similarity(half[0], expected["encode_condition"][1], dim=-1)
    assert similarity.min() >= 0.999, "bfloat16 keeps every slot"


def state_shape(model: KosmosG, name: str) -> torch.Size:
    return model.get_parameter(new_name(name)).shape
