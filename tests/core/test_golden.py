"""Our numbers equal the original's, through the converter, the loader and the public API."""

import pytest
import torch

from kosmos_core.layers import AttentionPattern
from tests.core.golden_roles import Role, assert_close, roles

ROLES = pytest.mark.parametrize("role", roles(), ids=lambda role: f"{role.folder.parent.name}-{role.folder.name}")


@torch.no_grad()
def _source_encoder(model, hidden, padding_mask):
    bias = torch.zeros(padding_mask.shape).masked_fill(padding_mask, float("-inf"))
    return model.aligner.source_encoder(hidden, AttentionPattern(key_bias=bias), padding_mask)


@ROLES
@torch.no_grad()
def test_every_step_of_encoding_equals_the_original(role: Role, tmp_path):
    model, inputs = role.model("checkpoint_final", tmp_path), role.tensors("inputs")
    expected = role.tensors("expected_infer")
    ids, mask, pixels = inputs["src_tokens"], inputs["img_gpt_input_mask"], inputs.get("gpt_img_src_tokens")
    features = None
    if pixels is not None:
        assert_close(model.vision(pixels), expected["clip_features"], "vision features")
        features = model.embed_images(pixels)
        assert_close(features.flatten(0, 1), expected["connector_out"], "picture tokens")
    else:
        mask = None
    assert_close(model.decoder.embed(ids, mask, features), expected["gpt_input_x"], "decoder input")
    hidden = model.hidden_states(ids, mask, features)
    assert_close(hidden, expected["gpt_hidden"], "hidden states")
    assert_close(model.logits(hidden), expected["logits"], "logits")
    padding = ids == model.config.ids.pad
    assert_close(_source_encoder(model, hidden, padding), expected["aligner_encoder_proj_out"], "source encoder")
    assert_close(model.align(hidden, padding), expected["aligner_encoder_out"], "condition")
    packed = model.encode_tokens(ids, pixels, mask)
    assert_close(packed, expected["aligner_encoder_out"], "condition from packed rows")


@ROLES
@torch.no_grad()
def test_negative_and_null_conditions_equal_the_original(role: Role, tmp_path):
    model, inputs = role.model("checkpoint_final", tmp_path), role.tensors("inputs")
    expected = role.tensors("expected_infer")
    null = torch.zeros(1, 1, dtype=torch.long)
    assert_close(model.hidden_states(null), expected["null.gpt_hidden"], "null hidden states")
    assert_close(model.encode_tokens(null), expected["null.condition"], "null condition")
    negative = inputs["negative_tokens"] if inputs["negative_tokens"].shape[1] > 1 else null
    condition = model.encode_tokens(negative)
    assert_close(condition, expected["negative.aligner_encoder_out"], "negative condition")
    repeat = role.config["num_images_per_prompt"]
    pixels = inputs.get("gpt_img_src_tokens")
    mask = None if pixels is None else inputs["img_gpt_input_mask"]
    conditions = model.encode_tokens(inputs["src_tokens"], pixels, mask)
    whole = torch.cat([condition.repeat(repeat * len(conditions), 1, 1), conditions.repeat(repeat, 1, 1)])
    assert_close(whole, expected["encode_condition"], "null half and prompt half")


@ROLES
@torch.no_grad()
def test_both_halves_of_alignernet_equal_the_original(role: Role, tmp_path):
    model, inputs = role.model("checkpoint_stage2", tmp_path), role.tensors("inputs")
    expected = role.tensors("expected_stage2")
    ids, pixels = inputs["src_tokens"], inputs.get("gpt_img_src_tokens")
    features = None if pixels is None else model.embed_images(pixels)
    hidden = model.hidden_states(ids, None if pixels is None else inputs["img_gpt_input_mask"], features)
    assert_close(hidden, expected["gpt_hidden"], "hidden states")
    condition = model.align(hidden, ids == model.config.ids.pad)
    assert_close(condition, expected["aligner_encoder_out"], "condition")
    restored = model.reconstruct(condition, ids.shape[1])
    assert_close(restored, expected["aligner_reconstruction"], "reconstruction")
