"""The crops of a prompt's pictures are those of the training data, without OpenCV."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kosmos_core.crops import CROP_RULES, EmptyMaskError, crop_subject
from kosmos_core.mask_boxes import square_around
from training.construct import masks as training_crops


@pytest.mark.parametrize("size", [(431, 431), (640, 640), (300, 517), (517, 300)])
def test_box_square_and_dilated_mask_of_a_picture_are_the_training_datas(size):
    for seed in range(4):
        coarse = torch.randn(1, 1, 9, 9, generator=torch.Generator().manual_seed(seed))
        mask = (torch.nn.functional.interpolate(coarse, size=size, mode="bicubic")[0, 0] > 0.8).numpy()
        expected = training_crops.find_crop(training_crops.Region(mask, 1.0), size)
        crop = crop_subject(np.zeros((*size, 3), np.uint8), mask)
        assert crop.box == expected.box
        assert square_around(crop.box, size) == expected.square
        assert np.array_equal(crop.mask, expected.mask[training_crops.window_of(expected.square)])


def test_outside_the_mask_is_white_or_kept():
    pixels = np.full((50, 50, 3), 9, np.uint8)
    mask = np.zeros((50, 50), bool)
    mask[10:30, 20:30] = True
    white = crop_subject(pixels, mask)
    assert white.pixels.shape == (20, 20, 3)
    assert (white.pixels[white.mask] == 9).all()
    assert (white.pixels[~white.mask] == 255).all()
    assert (crop_subject(pixels, mask, background="keep").pixels == 9).all()


def test_pad_keeps_what_a_square_would_cut_and_only_the_square_warns():
    pixels = np.zeros((40, 200, 3), np.uint8)
    mask = np.zeros((40, 200), bool)
    mask[10:20] = True
    square = crop_subject(pixels, mask)
    assert square.lost == pytest.approx(0.8)
    assert "cuts away 80% of the subject" in square.warning
    padded = crop_subject(pixels, mask, "pad")
    assert padded.pixels.shape == (200, 200, 3)
    assert padded.warning is None
    inside = np.zeros((200, 200), bool)
    inside[95:105] = True  # in the middle of white
    assert np.array_equal(padded.mask, inside)
    assert np.array_equal(padded.pixels[..., 0], np.where(inside, 0, 255))


@pytest.mark.parametrize(("width", "warned"), [(40, False), (41, True)])
def test_more_than_a_quarter_cut_away_warns(width, warned):
    crop = crop_subject(np.zeros((30, width, 3), np.uint8), np.ones((30, width), bool))
    assert crop.lost == pytest.approx(1 - 30 / width)
    assert (crop.warning is not None) == warned


@pytest.mark.parametrize("margin", [float("nan"), -0.1, 1e6])
def test_a_margin_outside_its_range_is_refused(margin):
    with pytest.raises(ValueError, match=r"margin is .*; expected 0 to 1"):
        crop_subject(np.zeros((4, 4, 3), np.uint8), None, "pad", margin)


def test_margin_widens_the_square_by_its_share_on_each_side():
    mask = np.zeros((100, 100), bool)
    mask[40:60, 45:55] = True
    crop = crop_subject(np.zeros((100, 100, 3), np.uint8), mask, margin=0.25)
    assert crop.pixels.shape == (30, 30, 3)
    assert crop.mask[5:25, 10:20].all()


def test_without_a_mask_the_whole_picture_is_the_subject():
    pixels = np.arange(20 * 30 * 3).reshape(20, 30, 3).astype(np.uint8)
    for rule in ("entity square", "centre", "squash"):
        crop = crop_subject(pixels, None, rule)
        assert np.array_equal(crop.pixels, pixels)  # whose central square the model's own preparation keeps
        assert crop.lost == pytest.approx(0 if rule == "squash" else 1 / 3)


@pytest.mark.parametrize("rule", CROP_RULES)
def test_an_empty_mask_is_refused(rule):
    with pytest.raises(EmptyMaskError, match="invert it"):
        crop_subject(np.zeros((9, 9, 3), np.uint8), np.zeros((3, 3), bool), rule)


def test_a_mask_of_another_size_is_brought_to_the_pictures():
    mask = np.zeros((4, 4), bool)
    mask[1, 2] = True
    assert crop_subject(np.zeros((80, 80, 3), np.uint8), mask).box == (40, 20, 60, 40)


@given(st.integers(1, 30), st.integers(1, 30), st.sampled_from(CROP_RULES), st.floats(0, 1), st.data())
def test_any_crop_is_a_window_of_its_picture(height, width, rule, margin, data):
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = np.indices((height, width))
    mask = np.zeros((height, width), bool)
    mask[data.draw(st.integers(0, height - 1)) :, data.draw(st.integers(0, width - 1)) :] = True
    crop = crop_subject(pixels, mask[:: data.draw(st.sampled_from([1, -1]))], rule, margin, "keep")
    rows, columns = np.nonzero((crop.pixels != 255).all(-1) if rule == "pad" else np.ones(crop.pixels.shape[:2]))
    seen = crop.pixels[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    top, left, _ = map(int, seen[0, 0])
    assert np.array_equal(seen, pixels[top : top + seen.shape[0], left : left + seen.shape[1]])
    assert crop.pixels.shape[:2] == crop.mask.shape
    assert 0 <= crop.lost <= 1
