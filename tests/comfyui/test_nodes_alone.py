"""Nodes called with values as ComfyUI calls them, where the values tell more than a graph would."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kosmos_core import Reference, load_model, save_model
from kosmos_core.reference import Mean
from kosmos_core.safetensors_file import write
from tests.comfyui.conftest import COMFYUI
from tests.comfyui.in_process import Pack
from tests.tiny.kosmos_file import save_tiny_kosmos
from training.engine import trainable

CUT = ("entity square", 0.0)
RED, GREEN = torch.tensor([0.8, 0.0, 0.0]), torch.tensor([0.0, 0.6, 0.0])


def filled(colour: torch.Tensor, side: int = 40) -> torch.Tensor:
    """An image (side, side, 3) of one colour."""
    return colour.expand(side, side, 3).clone()


def boxed(left: int, top: int, right: int, bottom: int, side: int = 40) -> torch.Tensor:
    """A mask (side, side) with one white box."""
    mask = torch.zeros(side, side)
    mask[top:bottom, left:right] = 1
    return mask


def entities(pack: Pack, images: torch.Tensor, masks: torch.Tensor, nouns: str = "", only: int = 0) -> Any:
    node = pack("nodes.prepare_reference").KosmosGEntities
    return node.execute(images, masks, *CUT, "white", 1.0, nouns, only).args


MASKS = torch.stack([boxed(5, 5, 15, 15), boxed(0, 0, 0, 0), boxed(20, 20, 30, 30)])


def test_each_mask_is_cut_from_its_own_image_and_has_the_noun_of_its_line(pack):
    images = torch.stack([filled(RED), filled(RED), filled(GREEN)])
    references, views = entities(pack, images, MASKS, "apple\nnothing\nleaf")
    assert [reference.noun for reference in references] == ["apple", "leaf"]
    for view, colour in zip(views, (RED, GREEN), strict=True):
        torch.testing.assert_close(view.mean((0, 1)), colour, rtol=0, atol=0.002)
    (only,), _ = entities(pack, images, MASKS, "apple\nnothing\nleaf", only=3)
    assert only.noun == "leaf"


def test_one_image_serves_all_masks_and_missing_lines_are_no_noun(pack):
    references, views = entities(pack, filled(GREEN)[None], MASKS, "apple")
    assert [reference.noun for reference in references] == ["apple", ""]
    torch.testing.assert_close(views.mean((1, 2)), GREEN.expand(2, 3), rtol=0, atol=0.002)


def cut(pack: Pack, image: torch.Tensor, mask: torch.Tensor | None, background: str = "white") -> Any:
    return pack("nodes.prepare_reference").cut_out(image, mask, *CUT, background, 1.0, "")


def test_a_background_that_is_kept_is_the_images_own_where_it_is_transparent_too(pack):
    alpha = boxed(10, 10, 30, 20)
    image = torch.cat([filled(RED), alpha[..., None]], dim=-1)
    _, kept, _, _ = cut(pack, image, None, "keep")
    torch.testing.assert_close(kept.mean((0, 1)), RED, rtol=0, atol=0.002)
    _, white, _, _ = cut(pack, image, None, "white")
    assert white.mean() == pytest.approx(float((1 + RED.mean()) / 2), abs=0.01)


def test_a_mask_that_is_given_counts_and_not_the_images_alpha(pack):
    image = torch.cat([filled(RED), boxed(10, 10, 30, 20)[..., None]], dim=-1)
    reference, *_ = cut(pack, image, boxed(5, 5, 13, 13))
    assert reference.views[0].pixels.shape[:2] == (8, 8)


@pytest.mark.parametrize(("grey", "inside"), [(0.49, False), (0.51, True)])
def test_a_mask_marks_what_is_more_than_half_white(pack, grey, inside):
    mask = grey * boxed(10, 10, 30, 30)
    if inside:
        assert cut(pack, filled(RED), mask)[0].views[0].pixels.shape == (20, 20, 3)
    else:
        with pytest.raises(pack("kosmos_core.crops").EmptyMaskError):
            cut(pack, filled(RED), mask)


def test_the_view_mask_covers_as_much_of_the_view_as_the_mask_of_the_square(pack):
    _, _, shown, _ = cut(pack, filled(RED), boxed(10, 10, 20, 15))
    assert float(shown.mean()) == pytest.approx(0.5, abs=0.005)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_image_that_is_not_finite_is_refused(pack, value):
    image = filled(RED)
    image[3, 4, 1] = value
    with pytest.raises(ValueError, match="NaN or infinite"):
        cut(pack, image, None)


@pytest.mark.parametrize(("mode", "kept"), [("mean", False), ("norm-preserving mean", True)])
def test_the_mean_that_keeps_the_norm_is_the_one_that_says_so(pack, mode, kept):
    nodes = pack("nodes.prepare_reference")
    one, other = (nodes.cut_out(filled(colour), None, *CUT, "keep", 1.0, "")[0] for colour in (RED, GREEN))
    (made,) = nodes.KosmosGAverage.execute(mode, reference_1=one, reference_8=other).args
    assert type(made.source).__name__ == Mean.__name__
    assert (made.source.keep_norm, len(made.source.sources)) == (kept, 2)


def test_of_batches_each_conditioning_gets_its_own_image_and_single_ones_go_with_all(pack):
    inputs = pack("nodes.image_inputs")
    batch = torch.stack([filled(RED), filled(GREEN)])
    gathered = inputs.PromptImages.gather({"image_2": batch, "image_5": filled(RED)[None]}, inputs.ONE_EACH)
    assert gathered.slots == (2, 5)
    seen = [[bool(one.source.pixels[0, 0, 0]) for one in references] for references in gathered.batches]
    assert seen == [[True, True], [False, True]]


def test_batches_of_two_sizes_are_refused_by_the_names_of_their_inputs(pack):
    inputs = pack("nodes.image_inputs")
    batches = {f"image_{count}": torch.zeros(count, 8, 8, 3) for count in (1, 2, 3)}
    with pytest.raises(ValueError, match="image_1 has 1, image_2 has 2, image_3 has 3"):
        inputs.PromptImages.gather(batches, inputs.ONE_EACH)


@pytest.mark.parametrize(
    ("entry", "weight", "said"),
    [
        (9, 1.0, None),
        (9, 0.0, None),
        (10, 1.0, "number 10, but Kosmos-G's end at 9"),
        (-1, 1.0, "number -1"),
        (5, -0.1, "weight -0.1"),
        (5, float("nan"), "weight nan"),
    ],
)
def test_tokens_from_another_pack_are_checked_to_the_last_id_and_weight(pack, entry, weight, said):
    tokens = pack("nodes.tokens")
    section = [(0, 1.0), (entry, weight)]
    if said is None:
        assert tokens.check_tokens({tokens.KEY: [section]}, 10) == [section]
    else:
        with pytest.raises(ValueError, match=said):
            tokens.check_tokens({tokens.KEY: [section]}, 10)


def entry(seed: int, **options: Any) -> list[Any]:
    return [torch.randn(1, 77, 768, generator=torch.Generator().manual_seed(seed)), options]


def test_a_blend_keeps_the_options_of_kosmos_and_a_hand_off_never_widens_a_range(pack):
    blend = pack("nodes.conditioning").KosmosGBlend
    kosmos, clip = entry(1, strength=0.5), entry(2, strength=2.0)
    ((mixed, options),) = blend.execute([kosmos], [clip], 0.25, "lerp").args[0]
    assert options == {"strength": 0.5}
    torch.testing.assert_close(mixed, 0.75 * kosmos[0] + 0.25 * clip[0])
    ranged = entry(1, start_percent=0.2, end_percent=0.5), entry(2, start_percent=0.1, end_percent=0.9)
    first, second = blend.execute([ranged[0]], [ranged[1]], 0.25, "hand-off at percent").args[0]
    assert (first[1]["start_percent"], first[1]["end_percent"]) == (0.2, 0.5)
    assert (second[1]["start_percent"], second[1]["end_percent"]) == (0.75, 0.9)


def test_a_hand_off_leaves_out_an_entry_whose_range_has_no_length_there(pack):
    limited = pack("nodes.conditioning").limited
    assert limited(entry(1, start_percent=0.5), 0.0, 0.5) is None
    _, options = limited(entry(1, start_percent=0.5), 0.0, 0.51)
    assert options == {"start_percent": 0.5, "end_percent": 0.51}


def test_the_lowest_cosine_is_the_lowest_and_its_slot_is_named(pack):
    first = entry(1)[0][0]
    second = first.clone()
    second[30] *= -1
    second[40, :400] *= -1
    assert "lowest -1.0000 in slot 30" in pack("nodes.analysis").compare(first, second)[0]


def test_a_taken_name_gets_a_number_and_its_file_stays(pack):
    files = pack("nodes.reference_files")
    made = [files.save_new("pets/dog", lambda path: path.write_text(path.name)) for _ in range(3)]
    assert [path.name for path in made] == ["dog.safetensors", "dog_2.safetensors", "dog_3.safetensors"]
    assert [path.read_text() for path in made] == [path.name for path in made]


def test_a_saved_reference_is_loaded_again_when_its_content_changes(pack):
    node = pack("nodes.reference_files").KosmosGLoadReference
    path = pack("nodes.reference_files").path_of("changing").with_suffix(".safetensors")
    told = []
    for content in ("one", "two", "one"):
        path.write_text(content)
        os.utime(path, (1, 1))
        told.append(node.fingerprint_inputs(path.name))
    assert told[0] == told[2] != told[1]


def test_a_tuned_reference_goes_from_its_file_into_a_prompt_and_stays_with_its_model(pack, clip, tmp_path):
    reference, files = pack("kosmos_core.reference"), pack("nodes.reference_files")
    encoder = pack("nodes.adapter").encoder_of(clip)
    numbers = torch.randn(4, encoder.model.config.decoder.width, generator=torch.Generator().manual_seed(1))
    whole = reference.model_fingerprint(encoder.path, whole=True)
    tuned = reference.Reference(reference.Encoded(numbers, whole, "rex.safetensors", True), 1.25, "dog")
    reference.save_reference(files.path_of("rex").with_suffix(".safetensors"), numbers, tuned, whole)
    (loaded,) = files.KosmosGLoadReference.execute("rex.safetensors").args
    assert (loaded.noun, loaded.weight, loaded.tuned) == ("dog", 1.25, True)

    picture = filled(RED)
    own = Reference.load(files.path_of("rex").with_suffix(".safetensors"))
    expected = load_model(encoder.path).encode("a <i> and a hat <i>", [own, picture])
    seen = encoded(pack, clip, "a <i> and a hat <i>", image_1=loaded, image_2=picture[None])
    assert torch.allclose(seen, expected, atol=0.01)  # ComfyUI keeps the weights in float16
    plain = reference.Reference(loaded.source)
    spelled = encoded(pack, clip, "a dog (<i>:1.25) and a hat <i>", image_1=plain, image_2=picture[None])
    assert torch.equal(seen, spelled)

    # Beside it in a mean, and saved again, it still belongs to the whole model that it was tuned through.
    mean = reference.average([loaded, reference.Reference(reference.View(picture))])
    (again,) = files.KosmosGSaveReference.execute(clip, mean, "again").args
    assert again.source.model == whole != encoder.fingerprint()
    other = load_model(encoder.path)
    other.decoder.norm.weight.data += 0.5
    save_model(other, tmp_path / "other.safetensors")
    stranger = pack("nodes.adapter").load_clip(tmp_path / "other.safetensors")
    for held in (loaded, again):
        with pytest.raises(ValueError, match="was encoded by another Kosmos-G file"):
            encoded(pack, stranger, "a <i>", image_1=held)


def additions(path: Path, seed: int) -> tuple[list[str], dict[str, torch.Tensor]]:
    """Low-rank additions to the linear layers of a file's language model and AlignerNet, as in a checkpoint."""
    generator, found, model = torch.Generator().manual_seed(seed), {}, load_model(path)
    within = ("decoder", "aligner.source_encoder", "aligner.query_decoder")
    layers = [
        name for name, module in model.named_modules() if type(module) is torch.nn.Linear and name.startswith(within)
    ]
    for name in layers:
        out, into = model.get_submodule(name).weight.shape
        found[f"{name}.{trainable.DOWN}"] = torch.randn(2, into, generator=generator) / 4
        found[f"{name}.{trainable.UP}"] = torch.randn(out, 2, generator=generator) / 4
    return layers, found


def test_low_rank_additions_of_a_training_are_applied_by_comfyuis_own_loader_by_strength_and_kept_apart(
    pack, tmp_path, caplog
):
    load_clip = pack("nodes.adapter").load_clip
    path = save_tiny_kosmos(tmp_path / "base.safetensors")
    clip = load_clip(path, torch.float32)
    picture = filled(RED)[None]

    def seen(clip: Any) -> torch.Tensor:
        return torch.cat([encoded(pack, clip, "a kettle"), encoded(pack, clip, "a dog <i>", image_1=picture)])

    base, (layers, first), (_, second) = seen(clip), additions(path, 1), additions(path, 2)
    loras = []
    for number, own in enumerate((first, second)):
        entries = [(name, tensor, torch.float32) for name, tensor in trainable.comfyui_lora(layers, own).items()]
        write(tmp_path / f"{number}.safetensors", entries, {})
        loras.append(importlib.import_module("comfy.utils").load_torch_file(str(tmp_path / f"{number}.safetensors")))
    apply = importlib.import_module("comfy.sd").load_lora_for_models
    assert torch.equal(seen(apply(None, clip, loras[0], 0.0, 0.0)[1]), base)
    one, other = (apply(None, clip, lora, 0.0, 1.0)[1] for lora in loras)
    both = apply(None, apply(None, clip, loras[0], 0.0, 0.5)[1], loras[1], 0.0, 1.0)[1]
    found = {name: seen(own) for name, own in {"one": one, "other": other, "both": both}.items()}
    # What each makes and remembers is its own, in whatever order they take turns.
    for name, own in (("other", other), ("both", both), ("one", one)):
        assert torch.equal(seen(own), found[name])
    assert torch.equal(seen(clip), base)
    # What was saved or tuned without a LoRA is read under it: the image is encoded by what no addition changes.
    files, reference = pack("nodes.reference_files"), pack("kosmos_core.reference")
    shown = reference.Reference(reference.View(picture[0]))
    files.KosmosGSaveReference.execute(clip, shown, "under_a_lora")
    (saved,) = files.KosmosGLoadReference.execute("under_a_lora.safetensors").args
    with_saved = encoded(pack, both, "a dog <i>", image_1=saved)
    assert torch.allclose(with_saved, encoded(pack, both, "a dog <i>", image_1=picture), atol=1e-5)
    whole = reference.model_fingerprint(path, whole=True)
    tuned = reference.Reference(reference.Encoded(saved.source.image_embeddings, whole, "rex.safetensors", tuned=True))
    assert torch.equal(with_saved, encoded(pack, both, "a dog <i>", image_1=tuned))
    for name, shares in {"one": (1.0, 0.0), "other": (0.0, 1.0), "both": (0.5, 1.0)}.items():
        merged = load_model(path)
        weights = merged.state_dict()
        for share, own in zip(shares, (first, second), strict=True):
            trainable.merge(weights, layers, {key: tensor * share**0.5 for key, tensor in own.items()})
        save_model(merged, tmp_path / f"{name}.safetensors")
        expected = seen(load_clip(tmp_path / f"{name}.safetensors", torch.float32))
        assert torch.allclose(found[name], expected, atol=1e-4)
        assert not torch.allclose(found[name], base, atol=1e-2)
    assert "not loaded" not in caplog.text


@pytest.fixture
def steps(pack: Pack) -> Any:
    """(value, total) of every step that ComfyUI's progress bar is told."""
    utilities, seen = importlib.import_module("comfy.utils"), []
    utilities.set_progress_bar_global_hook(lambda value, total, *_, **__: seen.append((value, total)))
    yield seen
    utilities.set_progress_bar_global_hook(None)


def encoded(pack: Pack, clip: Any, text: str, negative: str = "", **images: torch.Tensor) -> torch.Tensor:
    return pack("nodes.text_encode").KosmosGTextEncode.execute(clip, text, negative, **images).args[0][0][0]


def test_what_is_encoded_for_the_first_time_fills_the_progress_bar_by_its_blocks_alone(pack, clip, steps):
    # Images and texts that no other test has had encoded.
    images = {"image_1": filled(RED + 0.1)[None], "image_2": filled(GREEN + 0.1)[None]}
    encoded(pack, clip, "a dog <i> and <i2>", "a hat", **images)
    *counted, last = steps
    model = pack("nodes.adapter").encoder_of(clip).model
    text = model.decoder, model.aligner.source_encoder, model.aligner.query_decoder
    # The prompt, the negative and the text alone, which nobody says is not read; and two images.
    total = 3 * sum(len(stack.blocks) for stack in text) + 2 * len(model.vision.blocks)
    told, every = [value for value, _ in counted], list(range(1, total + 1))
    if COMFYUI < (0, 12):
        assert told == every
    else:  # later ones send a few of them only
        assert told == sorted(set(told))
        assert set(told) <= set(every)
    assert last == (total, total)


def test_likeness_goes_from_the_text_alone_to_the_full_encoding(pack, clip):
    node, image = pack("nodes.text_encode").KosmosGTextEncode, filled(RED)[None]
    full, _, text, *_ = node.execute(clip, "a dog <i>", image_1=image).args
    for likeness in (0.0, 0.25, 1.0):
        mixed = node.execute(clip, "a dog <i>", "", likeness, image_1=image).args[0][0][0]
        torch.testing.assert_close(mixed, torch.lerp(text[0][0], full[0][0], likeness))


def test_remembered_texts_are_told_apart_by_their_weights_and_the_longest_unused_is_forgotten(pack, clip, monkeypatch):
    adapter = pack("nodes.adapter")
    encoder = adapter.encoder_of(clip)
    plain, weighted = (encoded(pack, clip, text) for text in ("a dog on a hill", "a (dog:1.5) on a hill"))
    assert not torch.equal(plain, weighted)
    runs = counted(encoder, monkeypatch)
    assert torch.equal(encoded(pack, clip, "a dog on a hill"), plain)
    assert torch.equal(encoded(pack, clip, "a (dog:1.5) on a hill"), weighted)
    assert not runs
    monkeypatch.setattr(adapter, "CACHED_TEXTS", 2)
    encoder._cached_texts.clear()
    for text in ("one", "two", "one", "three", "one"):
        encoder.encode_token_weights(clip.tokenize(text))
    assert len(runs) == 3
    encoder.encode_token_weights(clip.tokenize("two"))
    assert len(runs) == 4


def counted(encoder: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Fills with the prompts that the encoder really computes."""
    runs: list[Any] = []
    compute: Callable[..., torch.Tensor] = encoder.model.encode_tokens

    def counting(token_ids: torch.Tensor, **others: Any) -> torch.Tensor:
        runs.append(token_ids)
        return compute(token_ids, **others)

    monkeypatch.setattr(encoder.model, "encode_tokens", counting)
    return runs


def test_remembered_texts_are_forgotten_with_the_weights(pack, clip, monkeypatch):
    encoder = pack("nodes.adapter").encoder_of(clip)
    tokens = clip.tokenize("a kettle")
    before = encoder.encode_token_weights(tokens)[0]
    weight = encoder.model.aligner.query_decoder.blocks[0].feed_forward.fc1.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(1.5)
        changed = encoder.encode_token_weights(tokens)[0]
        weight.copy_(kept)
    assert not torch.equal(changed, before)
    assert torch.equal(encoder.encode_token_weights(tokens)[0], before)


@pytest.mark.parametrize(
    "rates", [{torch.bfloat16: 4e11, torch.float32: 1e11}, {torch.bfloat16: 1e9, torch.float32: 8e10}]
)
def test_auto_takes_bfloat16_for_a_large_encoder_on_a_cpu_that_multiplies_it_faster(pack, clip, rates, monkeypatch):
    formats, adapter = pack("nodes.number_format"), pack("nodes.adapter")
    comfy_args = sys.modules["comfy.cli_args"].args
    cpu, path = torch.device("cpu"), clip.cond_stage_model.path
    left_to_comfyui = (clip.cond_stage_model.dtypes, torch.float32)
    monkeypatch.setattr(formats.cpu_formats, "cpu_rate", rates.get)
    faster = rates[torch.bfloat16] > rates[torch.float32]

    def loaded(dtype: torch.dtype | None = None) -> tuple[set[torch.dtype], torch.dtype]:
        encoder = adapter.load_clip(path, dtype, cpu).cond_stage_model
        assert {module.compute_dtype for module in encoder.casting} == {encoder.compute_dtype}
        return encoder.dtypes, encoder.compute_dtype

    assert formats.faster_dtype(1_900_000_000, cpu) == (torch.bfloat16 if faster else None)
    assert formats.faster_dtype(formats.SMALL + 1, cpu) == (torch.bfloat16 if faster else None)
    assert formats.faster_dtype(formats.SMALL, cpu) is None
    assert formats.faster_dtype(1_900_000_000, torch.device("cuda")) is None
    assert loaded() == left_to_comfyui, "a small encoder gains nothing"
    monkeypatch.setattr(formats, "SMALL", 0)
    assert loaded() == (({torch.bfloat16}, torch.bfloat16) if faster else left_to_comfyui)
    assert loaded(torch.float32) == ({torch.float32}, torch.float32)
    monkeypatch.setattr(comfy_args, "fp16_text_enc", True)
    assert loaded() == ({torch.float16}, torch.float32), "--fp16-text-enc is the user's choice"


def test_the_packs_import_adds_no_package_to_comfyuis_start_and_next_to_no_time(pack):
    loaded_by_comfyui = {"torch", "numpy", "PIL", "einops", "safetensors", "comfy", "comfy_api", "folder_paths"}
    assert pack.imported - set(sys.stdlib_module_names) <= loaded_by_comfyui
    assert pack.import_seconds < 1.5  # 0.1 on an idle core, 0.5 where three runs of tests shared two
