"""From a segmenter's answer to the crop: against masks drawn by hand, and the rules written out with SciPy."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from kosmos_core.mask_boxes import largest_box
from training.construct.construct_config import CropConfig
from training.construct.masks import EntityCrop, Region, binary_mask, dilate, find_crop
from training.construct.sample_encoding import encode_mask


def drawn(size: tuple[int, int], *boxes: tuple[int, int, int, int]) -> np.ndarray:
    """A mask with these boxes (left, top, right, bottom) filled."""
    mask = np.zeros(size, dtype=bool)
    for left, top, right, bottom in boxes:
        mask[top:bottom, left:right] = True
    return mask


@pytest.mark.parametrize("window", [2, 3, 5, 7, 10, 13])
def test_dilation_equals_scipys_grey_dilation_for_even_and_odd_windows(window):
    mask = np.random.default_rng(window).random((61, 83)) > 0.97
    expected = ndimage.grey_dilation(mask.astype(np.uint8), size=(window, window)) > 0
    assert np.array_equal(dilate(mask, window), expected)


def test_dilation_window_is_a_hundredth_of_the_height():
    mask = drawn((500, 500), (100, 200, 140, 260))
    crop = find_crop(Region(mask, 1.0), (500, 500))
    assert crop.box == (98, 198, 142, 262)  # 500 // 100 = 5: two pixels on every side
    assert find_crop(Region(mask, 1.0), (500, 500), dilation=0).box == (100, 200, 140, 260)


def test_a_mask_is_written_smaller_by_the_pixels_in_the_middle():
    mask = np.zeros((12, 12), dtype=bool)
    mask[1::3, 1::3] = True  # the middle of each third
    crop = EntityCrop(mask=mask, box=(0, 0, 12, 12), square=(0, 0, 12), share=1.0)
    for side, expected in ((4, np.ones((4, 4), dtype=bool)), (16, mask)):
        written = Image.open(io.BytesIO(encode_mask(crop, CropConfig(side=side))))
        assert written.mode == "1"
        assert np.array_equal(np.asarray(written), expected)


def test_dilation_reaches_the_picture_border_and_not_beyond():
    crop = find_crop(Region(drawn((300, 300), (0, 0, 20, 300)), 1.0), (300, 300))
    assert crop.box == (0, 0, 21, 300)


def test_empty_mask_has_no_crop():
    assert find_crop(Region(np.full((4, 4), -9.0, dtype=np.float32), 0.1), (50, 50)) is None


def test_logits_are_resized_first_and_then_cut_at_the_probability():
    logits = torch.randn(1, 1, 22, 22, generator=torch.Generator().manual_seed(0)) - 1
    resized = torch.nn.functional.interpolate(logits, size=(97, 97), mode="bilinear")
    expected = (torch.sigmoid(resized) > 0.3)[0, 0].numpy()
    mask = binary_mask(Region(logits[0, 0].numpy(), 0.5), (97, 97), 0.3)
    assert np.array_equal(mask, expected)
    assert 0.1 < mask.mean() < 0.9


def test_a_pixel_of_just_the_threshold_does_not_belong():
    logits = np.array([[0.0, 1e-6], [-1e-6, 0.0]], dtype=np.float32)
    assert binary_mask(Region(logits, 0.5), (2, 2), 0.5).tolist() == [[False, True], [False, False]]


@pytest.mark.parametrize("size", [(97, 97), (20, 20), (300, 411)])
def test_small_regions_anywhere_are_resized_as_torch_does(size):
    rng = np.random.default_rng(0)
    for top, left in ((0, 0), (9, 30), (33, 3), (36, 36)):
        logits = np.full((40, 40), -4, dtype=np.float32)
        logits[top : top + 4, left : left + 4] = rng.normal(1, 2, (4, 4))
        resized = torch.nn.functional.interpolate(torch.from_numpy(logits)[None, None], size=size, mode="bilinear")
        expected = (torch.sigmoid(resized) > 0.3)[0, 0].numpy()
        assert expected.any()
        assert np.array_equal(binary_mask(Region(logits, 0.5), size, 0.3), expected)


@pytest.mark.parametrize("size", [352, 384, 431, 480, 768])
def test_part_that_is_computed_gives_the_crop_of_the_whole_picture(size):
    """Regions of every place and size, on maps whose grid meets the picture's at 352, 32, 1, 32 and 32 places."""
    rng = np.random.default_rng(size)
    y, x = np.mgrid[0:352, 0:352]
    for number in range(12):
        cx, cy, radius = rng.uniform(0, 352), rng.uniform(0, 352), rng.uniform(2, 200)
        noise = rng.standard_normal((352, 352)) * rng.choice([0, 8])
        logits = ((radius - np.hypot(x - cx, y - cy) + noise) / 4).astype(np.float32)
        region = Region(logits > 0 if number % 3 == 0 else logits, 1.0)
        whole = dilate(binary_mask(region, (size, size), 0.3), size // 100)
        crop = find_crop(region, (size, size))
        assert np.array_equal(crop.mask, whole)
        assert crop.box == largest_box(whole)


def test_mask_of_other_components_stays_inside_the_crop():
    mask = drawn((90, 90), (10, 10, 50, 50), (52, 20, 54, 30))
    crop = find_crop(Region(mask, 1.0), (90, 90))
    assert crop.box == (10, 10, 50, 50)
    whole = find_crop(Region(mask | drawn((90, 90), (10, 60, 12, 62)), 1.0), (90, 90))
    assert whole.square == (10, 10, 40)
    assert whole.mask[61, 11], "the mask is that of the picture, not of one component"


def test_share_counts_the_mask_inside_the_chosen_box_only():
    crop = find_crop(Region(drawn((100, 100), (0, 0, 30, 30), (80, 80, 90, 90)), 1.0), (100, 100), dilation=0)
    assert crop.share == pytest.approx(0.09)


def test_order_of_operations_equals_the_rules_written_out_naively():
    generator = torch.Generator().manual_seed(3)
    for _ in range(5):
        coarse = torch.randn(1, 1, 9, 9, generator=generator)
        logits = torch.nn.functional.interpolate(coarse, size=(352, 352), mode="bicubic")
        mask = (torch.sigmoid(torch.nn.functional.interpolate(logits, size=(431, 431), mode="bilinear")) > 0.3)[0, 0]
        dilated = ndimage.grey_dilation(mask.numpy().astype(np.uint8), size=(4, 4))
        labels, count = ndimage.label(dilated)
        best, most = None, -1
        for label in range(1, count + 1):
            ys, xs = np.nonzero(labels == label)
            held = dilated[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1].sum()
            if held > most:
                best, most = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1), held
        crop = find_crop(Region(logits[0, 0].numpy(), 0.5), (431, 431))
        assert crop.box == best
        # OpenCV and torch round weights differently: one pixel at the very threshold may fall to either side.
        assert np.count_nonzero(crop.mask != (dilated > 0)) <= 4 * 4
