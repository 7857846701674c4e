"""References: what they encode to, their nouns and weights in a prompt, their files."""

import copy
import dataclasses
import os
import re
import struct
from pathlib import Path

import pytest
import torch

from kosmos_core import (
    KosmosG,
    KosmosGConfig,
    Prompt,
    WeightsError,
    load_model,
    preprocess_image,
    safetensors_file,
    save_model,
)
from kosmos_core.prompt import ImageMark, PromptError, Text
from kosmos_core.reference import (
    Encoded,
    Reference,
    View,
    average,
    image_embeddings,
    load_reference,
    model_fingerprint,
    save_reference,
    with_references,
)


def image(seed: int, height: int = 40, width: int = 30) -> torch.Tensor:
    return torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


@pytest.fixture(scope="module")
def model() -> KosmosG:
    return KosmosG(KosmosGConfig.tiny()).initialize(3).eval().requires_grad_(False)


def tokens(model: KosmosG, reference: Reference) -> torch.Tensor:
    return image_embeddings(reference.source, 224, model.image_embeddings, lambda: "model")


def test_a_view_is_prepared_as_every_picture_is(model):
    pixels = image(1)
    assert torch.equal(View(pixels).prepared(), preprocess_image(pixels))
    assert torch.equal(tokens(model, Reference(View(pixels))), model.image_embeddings(preprocess_image(pixels)))


def test_the_mean_of_equal_pictures_is_the_picture_and_shares_follow_the_weights(model):
    one, other = (Reference(View(image(seed))) for seed in (1, 2))
    assert torch.allclose(tokens(model, average([one, one])), tokens(model, one), atol=1e-6)
    heavy = dataclasses.replace(other, weight=1.5)
    expected = 0.4 * tokens(model, one) + 0.6 * tokens(model, heavy)
    assert torch.allclose(tokens(model, average([one, heavy])), expected, atol=1e-6)


def test_a_norm_preserving_mean_has_the_mean_of_the_norms(model):
    parts = [Reference(View(image(seed))) for seed in (1, 2, 3)]
    kept = tokens(model, average(parts, keep_norm=True)).norm(dim=-1)
    norms = torch.stack([tokens(model, part).norm(dim=-1) for part in parts]).mean(0)
    assert torch.allclose(kept, norms, rtol=1e-5)
    assert (tokens(model, average(parts)).norm(dim=-1) < norms).all()


def test_a_norm_preserving_mean_weighs_norms_as_it_weighs_pictures():
    near, far = (Encoded(torch.eye(4, 8) * length, "model", "a file") for length in (1.0, 5.0))
    mean = average([Reference(near, weight=0.5), Reference(far, weight=1.5)], keep_norm=True)
    found = image_embeddings(mean.source, 224, lambda pixels: pixels, lambda: "model")
    torch.testing.assert_close(found, torch.eye(4, 8) * 4.0)


def test_an_average_of_averages_keeps_each_its_share(model):
    one, two, three = (Reference(View(image(seed))) for seed in (1, 2, 3))
    nested = tokens(model, average([average([one, two]), three]))
    expected = (tokens(model, one) + tokens(model, two)) / 4 + tokens(model, three) / 2
    assert torch.allclose(nested, expected, atol=1e-6)


def test_a_picture_of_weight_0_is_not_part_of_a_mean():
    one, hidden = Reference(View(image(1)), noun="dog"), Reference(View(image(2)), weight=0.0, noun="cat")
    assert average([hidden, one]).source is one.source
    assert average([one, hidden, one]).views == (one.source, one.source)


@pytest.mark.parametrize("references", [[], [Reference(View(image(1)), weight=0.0)]])
def test_nothing_to_average_is_refused(references):
    with pytest.raises(ValueError, match="Nothing to average"):
        average(references)


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("a <i> at the beach", "a dog <i1> at the beach"),
        ("a Dog <i> at the beach", "a Dog <i1> at the beach"),
        ("a dog at the beach <i>", "a dog at the beach <i1>"),
        ("a dogfish <i>", "a dogfish dog <i1>"),
        ("<i>", "dog <i1>"),
        ("(a <i>:1.5)", "(a dog <i1>:1.5)"),
    ],
)
def test_the_noun_is_put_before_the_mark_unless_it_is_there(text, spelled):
    assert with_references(Prompt.parse(text), [Reference(View(image(1)), noun="dog")]).normalised() == spelled


def test_the_noun_of_the_second_picture_is_not_looked_for_before_the_first():
    dog = Reference(View(image(1)), noun="dog")
    assert with_references(Prompt.parse("a dog <i> and <i>"), [dog, dog]).normalised() == "a dog <i1> and dog <i2>"
    assert with_references(Prompt.parse("<i><i>"), [dog, dog]).normalised() == "dog <i1> dog <i2>"


def test_weights_of_prompt_and_reference_multiply():
    prompt = with_references(Prompt.parse("a (<i>:1.5) <i>"), [Reference(View(image(1)), weight=0.5), None])
    assert [segment.weight for segment in prompt.segments if isinstance(segment, ImageMark)] == [0.75, 1.0]
    assert [segment.weight for segment in prompt.segments if isinstance(segment, Text)] == [1.0, 1.0]


def test_weights_that_multiply_to_more_than_a_prompt_may_have_are_refused_by_their_mark():
    with pytest.raises(
        ValueError, match="<i1> has the weight 80 in the prompt and 2 in its reference: their product, 160"
    ):
        with_references(Prompt.parse("a (<i>:80)"), [Reference(View(image(1)), weight=2.0)])


@pytest.mark.parametrize("weight", [-0.1, 2.1, float("nan")])
def test_a_weight_outside_0_to_2_is_refused(weight):
    with pytest.raises(ValueError, match="weight of a reference"):
        Reference(View(image(1)), weight=weight)


def test_a_saved_reference_comes_back_equal(model, tmp_path: Path):
    reference = Reference(View(image(1)), 1.25, "dog")
    save_reference(tmp_path / "dog.safetensors", tokens(model, reference), reference, "model")
    loaded = load_reference(tmp_path / "dog.safetensors")
    assert (loaded.weight, loaded.noun) == (1.25, "dog")
    assert torch.equal(tokens(model, loaded), tokens(model, reference))


def test_a_reference_of_another_model_is_refused(model):
    foreign = Reference(Encoded(torch.zeros(4, 32), "other", "dog.safetensors"))
    with pytest.raises(ValueError, match=r"dog\.safetensors was encoded by another Kosmos-G file"):
        tokens(model, foreign)
    with pytest.raises(ValueError, match="another Kosmos-G file"):
        tokens(model, average([foreign, Reference(View(image(1)))]))


def test_a_reference_of_a_release_that_prepared_pictures_differently_is_refused(model, tmp_path: Path, monkeypatch):
    reference = Reference(View(image(1)))
    with monkeypatch.context() as other_release:
        other_release.setattr("kosmos_core.reference.PREPARATION", "another")
        save_reference(tmp_path / "old.safetensors", tokens(model, reference), reference, "model")
    with pytest.raises(WeightsError, match=r"old\.safetensors was saved by a release that prepared pictures"):
        load_reference(tmp_path / "old.safetensors")


def test_a_reference_of_another_format_is_refused_with_its_number(model, tmp_path: Path, monkeypatch):
    reference = Reference(View(image(1)))
    with monkeypatch.context() as other_release:
        other_release.setattr("kosmos_core.reference.FORMAT_VERSION", "2")
        save_reference(tmp_path / "new.safetensors", tokens(model, reference), reference, "model")
    with pytest.raises(WeightsError, match=r"new\.safetensors was saved .*\(format_version '2', expected 1"):
        load_reference(tmp_path / "new.safetensors")


@pytest.mark.parametrize("number", [float("nan"), float("-inf"), 1.001e6])
def test_a_reference_with_one_number_that_no_model_makes_is_refused(tmp_path: Path, number):
    embeddings = torch.zeros(4, 32)
    embeddings[3, 31] = number
    save_reference(tmp_path / "dog.safetensors", embeddings, Reference(View(image(1))), "model")
    with pytest.raises(WeightsError, match=r"dog\.safetensors is damaged: it holds NaN"):
        load_reference(tmp_path / "dog.safetensors")


def test_files_that_are_no_references_are_refused(model, tmp_path: Path):
    save_model(model, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="not a saved Kosmos-G reference"):
        load_reference(tmp_path / "model.safetensors")


def test_the_fingerprint_is_of_what_encodes_pictures_alone(model, tmp_path: Path):
    files = [tmp_path / name for name in ("a.safetensors", "b.safetensors", "c.safetensors")]
    save_model(model, files[0])
    save_model(model, files[1], provenance={"note": "other name, other note"})
    save_model(KosmosG(model.config).initialize(4), files[2])
    first, second, third = map(model_fingerprint, files)
    assert first == second != third


@pytest.mark.parametrize(
    ("part", "counts"),
    [("vision.norm_pre.weight", True), ("resampler.latents.weight", True), ("decoder.norm.weight", False)],
)
def test_the_fingerprint_changes_with_the_vision_tower_or_the_resampler_alone(model, tmp_path: Path, part, counts):
    path = tmp_path / "a.safetensors"
    save_model(model, path)
    before, other = model_fingerprint(path), copy.deepcopy(model)
    other.get_parameter(part)[..., 0] += 1
    save_model(other, path)  # under the same name: a file that has changed is read again
    assert (model_fingerprint(path) != before) == counts


def test_a_model_has_no_fingerprint_once_its_file_is_another_of_the_same_size(model, tmp_path: Path):
    path = tmp_path / "a.safetensors"
    save_model(model, path)
    size, loaded = path.stat().st_size, load_model(path)
    assert loaded.file.fingerprint(loaded) == model_fingerprint(path)
    save_model(KosmosG(model.config).initialize(4), path)
    os.utime(path, ns=(0, 0))
    assert path.stat().st_size == size
    with pytest.raises(ValueError, match=r"a\.safetensors was replaced or removed after it was loaded"):
        loaded.file.fingerprint(loaded)


@pytest.mark.parametrize(
    ("name", "own", "whole"),
    [
        ("vision.norm_pre.weight", False, False),  # may be used neither alone nor with the rest
        ("decoder.norm.weight", True, False),
        ("aligner.query_decoder.norm.weight", True, False),
        ("resampler.latents.weight", False, False),
    ],
)
def test_a_model_whose_last_number_is_another_has_no_fingerprint_of_that_part(model, tmp_path: Path, name, own, whole):
    path = tmp_path / "a.safetensors"
    save_model(model, path)
    loaded = load_model(path)
    loaded.get_parameter(name).view(-1)[-1] += 1
    for asked, known in ((False, own), (True, whole)):
        if known:
            assert loaded.file.fingerprint(loaded, asked) == model_fingerprint(path, asked)
            continue
        with pytest.raises(ValueError, match=rf"by now \({re.escape(name)} differs\)"):
            loaded.file.fingerprint(loaded, asked)


@pytest.mark.parametrize(
    ("embeddings", "kind", "said"),
    [
        (torch.full((2, 8), 1e38), torch.float32, "numbers above 1e"),
        (torch.full((2, 8), float("nan")), torch.float32, "NaN"),
        (torch.ones(2, 8), torch.float8_e4m3fn, "F8_E4M3 numbers"),
        (torch.ones(2, 8, 3), torch.float32, r"shape \(2, 8, 3\)"),
    ],
)
def test_odd_files_are_refused_without_a_path(model, tmp_path: Path, embeddings, kind, said):
    path = tmp_path / "odd.safetensors"
    save_reference(path, torch.ones(2, 8), Reference(View(image(1))), "model")
    metadata = safetensors_file.read_header(path).metadata
    safetensors_file.write(path, [("picture_tokens", embeddings, kind)], metadata)
    with pytest.raises(WeightsError, match=said) as refused:
        load_reference(path)
    assert str(tmp_path) not in str(refused.value)


def test_a_header_of_90_megabytes_and_a_missing_file_are_refused_without_a_path(tmp_path: Path):
    path = tmp_path / "large.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 90 << 20) + b"{")
        file.truncate(100 << 20)
    for name in (path, tmp_path / "none.safetensors"):
        with pytest.raises(WeightsError) as refused:
            load_reference(name)
        assert str(tmp_path) not in str(refused.value)
        assert name.name in str(refused.value)


def test_embeddings_of_another_width_are_refused_where_they_are_used(model):
    reference = Reference(Encoded(torch.ones(2, 8), "model", "narrow.safetensors"))
    with pytest.raises(ValueError, match=r"narrow.safetensors holds 2 x 8 numbers, but this model reads 4 x 32"):
        image_embeddings(reference.source, 224, model.image_embeddings, lambda: "model", (4, 32))


@pytest.mark.parametrize(("noun", "error"), [("a" * 201, ValueError), ("\ud83d", PromptError)])
def test_a_noun_is_a_word_or_two(noun, error):
    with pytest.raises(error):
        Reference(View(image(1)), noun=noun)


def test_a_new_file_never_takes_the_place_of_another(tmp_path: Path):
    path = tmp_path / "subject.safetensors"
    save_reference(path, torch.ones(2, 8), Reference(View(image(1)), noun="dog"), "model", new=True)
    with pytest.raises(FileExistsError):
        save_reference(path, torch.zeros(2, 8), Reference(View(image(1)), noun="cat"), "model", new=True)
    assert load_reference(path).noun == "dog"
    assert [file.name for file in tmp_path.iterdir()] == ["subject.safetensors"]
