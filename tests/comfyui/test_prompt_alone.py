"""The loader, sample files, Kosmos-G Prompt and its encoder called with values: what they say at their limits."""

from __future__ import annotations

import contextlib
import importlib
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.comfyui.in_process import Pack


def test_conditionings_of_a_batch_have_a_pooled_output_each(pack: Pack, clip: Any):
    images = {"image_1": torch.stack([torch.full((40, 40, 3), level) for level in (0.2, 0.6, 0.9)])}
    each = pack("nodes.image_inputs").ONE_EACH
    positive = pack("nodes.text_encode").KosmosGTextEncode.execute(clip, "a dog <i>", batch=each, **images).args[0]
    [(condition, options)] = positive
    assert [len(condition), len(options["pooled_output"])] == [3, 3]


@pytest.mark.parametrize(("most", "warned"), [(0, False), (-1, True)])
def test_a_prompt_is_called_too_long_from_one_token_more_than_a_training_sequence(
    pack: Pack, clip: Any, monkeypatch: pytest.MonkeyPatch, most: int, warned: bool
):
    node, length = pack("nodes.text_encode"), len(clip.tokenize("a dog on the beach")["kosmos_g"][0])
    monkeypatch.setattr(node, "CONTEXT", length + most)
    report = node.KosmosGTextEncode.execute(clip, "a dog on the beach").args[3]
    assert f"- {length} of {length + most} tokens" in report
    assert ("longer than any sequence" in report) == warned


def test_a_prompt_has_as_many_tokens_as_the_aligner_has_positions(pack: Pack, clip: Any, monkeypatch):
    length = len(clip.tokenize("a dog on the beach")["kosmos_g"][0])
    positions = type(clip.cond_stage_model.model.aligner.source_encoder)
    monkeypatch.setattr(positions, "longest", property(lambda _: length))
    assert len(clip.tokenize("a dog on the beach")["kosmos_g"][0]) == length
    with pytest.raises(ValueError, match=rf"The prompt has {length + 1} tokens .* at most {length}: shorten"):
        clip.tokenize("a dog on the beach a")


def test_the_progress_of_a_node_ends_with_it(pack: Pack, clip: Any):
    adapter, encoder = pack("nodes.adapter"), clip.cond_stage_model
    with contextlib.suppress(RuntimeError), adapter.progress(encoder, 1, 0):
        assert encoder.on_block is not None
        raise RuntimeError
    assert encoder.on_block is None


def test_memory_is_asked_for_once_for_each_different_weight_of_a_prompt(clip: Any):
    def estimate(weights: int) -> int:
        section = [(20, 1 + number % weights / 10) for number in range(40)]
        return clip.cond_stage_model.memory_estimation_function({"kosmos_g": [section]})

    assert estimate(40) == 2 * estimate(20) > 10 * estimate(1)


@pytest.mark.parametrize(
    ("chosen", "computed"),
    [(torch.float16, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.float32, torch.float32)],
)
def test_a_chosen_type_is_also_computed_in_but_float16_on_a_cpu(pack: Pack, clip: Any, chosen: Any, computed: Any):
    encoder = pack("nodes.adapter").load_clip(clip.cond_stage_model.path, chosen, torch.device("cpu")).cond_stage_model
    assert (encoder.dtypes, encoder.compute_dtype) == ({chosen}, computed)
    assert {module.compute_dtype for module in encoder.casting} == {computed}


@pytest.mark.parametrize("state", [{"applied": frozenset(["model.{}"])}, {"hooked": {"model.{}": None}}])
@pytest.mark.parametrize(("name", "known"), [("vision.norm_pre.weight", False), ("decoder.norm.weight", True)])
def test_other_weights_of_the_image_part_have_no_fingerprint_wherever_they_come_from(
    clip: Any, monkeypatch: pytest.MonkeyPatch, state: dict[str, Any], name: str, known: bool
):
    encoder = clip.cond_stage_model
    before = encoder.fingerprint()
    for attribute, names in state.items():
        monkeypatch.setattr(encoder, attribute, type(names)({each.format(name): None for each in names}))
    if known:
        assert encoder.fingerprint() == before
    else:
        with pytest.raises(ValueError, match="a merge or a hook changed it"):
            encoder.fingerprint()


@pytest.mark.parametrize("kind", ["Linear", "LayerNorm"])
@pytest.mark.parametrize("patched", ["weight_function", "bias_function"])
def test_a_patch_of_the_weight_or_the_bias_alone_is_applied(pack: Pack, kind: str, patched: str):
    layer = getattr(pack("nodes.operations").Operations, kind)(*(4, 4)[: 1 + (kind == "Linear")])
    for parameter in (layer.weight, layer.bias):
        torch.nn.init.uniform_(parameter)
    x = torch.randn(3, 4)
    with torch.no_grad():
        plain = layer(x)
        setattr(layer, patched, [lambda tensor: tensor + 1])
        found = layer(x)
        read = torch.nn.functional.layer_norm(x, (4,)) if kind == "LayerNorm" else x.sum(1, keepdim=True).expand(3, 4)
    torch.testing.assert_close(found - plain, read if patched == "weight_function" else torch.ones(3, 4))


def test_of_two_files_of_one_name_that_of_the_packs_own_folder_is_taken(pack: Pack, tmp_path: Path, monkeypatch):
    folder_paths = importlib.import_module("folder_paths")
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    for kind in ("text_encoders", "kosmos_g"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "same.safetensors").touch()
        monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, ([str(tmp_path / kind)], {".safetensors"}))
    found = pack("nodes.loader").candidates()
    assert found == {"same.safetensors": str(tmp_path / "kosmos_g/same.safetensors")}


def test_another_file_of_a_samples_name_size_and_date_is_taken_for_no_sample(pack: Pack, tmp_path: Path):
    paths = [tmp_path / name for name in ("sample.png", "own.png")]
    for path, content in zip(paths, (b"one", b"two"), strict=True):
        path.write_bytes(content)
        os.utime(path, ns=(10**18, 10**18))
    sample = pack("nodes.sample_files").Sample
    assert [sample(paths[0], path).state() for path in (*paths, tmp_path / "none.png")] == ["there", "taken", "missing"]
