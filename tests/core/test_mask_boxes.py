"""Boxes, dilation and squares of masks: against masks drawn by hand, SciPy's operators and OpenCV's dilation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from kosmos_core.mask_boxes import _component_boxes, at_size, dilate, largest_box, square_around
from training.construct import masks as training_masks


def drawn(size: tuple[int, int], *boxes: tuple[int, int, int, int]) -> np.ndarray:
    """A mask with these boxes (left, top, right, bottom) filled."""
    mask = np.zeros(size, dtype=bool)
    for left, top, right, bottom in boxes:
        mask[top:bottom, left:right] = True
    return mask


def random_masks():
    for seed in range(60):
        numbers = np.random.default_rng(seed)
        height, width = numbers.integers(1, 140, 2)
        noise = numbers.random((height, width))
        for _ in range(int(numbers.integers(0, 4))):  # from salt and pepper to blobs
            noise = (noise + np.roll(noise, 1, 0) + np.roll(noise, 1, 1)) / 3
        yield noise > np.quantile(noise, numbers.choice([0.3, 0.5, 0.6, 0.9, 0.99]))


def test_the_box_of_random_masks_is_that_of_the_rules_written_out_with_scipy():
    boxes = 0
    for mask in random_masks():
        best, most = None, 0
        for y, x in ndimage.find_objects(ndimage.label(mask)[0]):
            if (held := np.count_nonzero(mask[y, x])) > most:
                best, most = (x.start, y.start, x.stop, y.stop), held
        assert largest_box(mask) == best
        boxes += best is not None
    assert boxes > 50


@pytest.mark.parametrize("window", [1, 2, 3, 5, 6, 7, 10, 13])
def test_dilation_equals_scipys_and_opencvs_for_even_and_odd_windows(window):
    for mask in (np.random.default_rng(window).random((61, 83)) > 0.97, np.ones((3, 4), dtype=bool)):
        found = dilate(mask, window)
        assert found.dtype == bool
        assert np.array_equal(found, ndimage.grey_dilation(mask.astype(np.uint8), size=(window, window)) > 0)
        assert np.array_equal(found, training_masks.dilate(mask, window))


def test_a_mask_of_another_size_takes_each_pixel_from_its_place():
    assert np.array_equal(at_size(drawn((2, 2), (1, 0, 2, 1)), (4, 6)), drawn((4, 6), (3, 0, 6, 2)))


def test_empty_mask_has_no_box():
    assert largest_box(np.zeros((8, 8), dtype=bool)) is None


def test_component_is_chosen_by_what_its_box_holds_not_by_its_own_size():
    # A thin frame (396 pixels) encloses a solid block that does not touch it; a larger solid block (1600) lies outside.
    mask = drawn((200, 200), (10, 10, 110, 110)) & ~drawn((200, 200), (11, 11, 109, 109))
    mask |= drawn((200, 200), (30, 30, 70, 70)) | drawn((200, 200), (130, 130, 170, 170))
    own = ndimage.label(mask)[0]
    assert np.bincount(own.ravel())[1:].tolist() == [396, 1600, 1600]
    assert largest_box(mask) == (10, 10, 110, 110)


def test_diagonal_neighbours_are_two_components():
    mask = drawn((40, 40), (0, 0, 10, 10), (10, 10, 21, 21))
    assert largest_box(mask) == (10, 10, 21, 21)


@pytest.mark.parametrize(
    ("box", "square"),
    [
        ((40, 40, 60, 60), (40, 40, 20)),
        ((40, 45, 60, 55), (40, 40, 20)),  # wide: grows up and down
        ((45, 40, 50, 61), (37, 40, 21)),  # odd remainder: rounded down to the left
        ((0, 30, 4, 70), (0, 30, 40)),  # shifted in from the left
        ((96, 30, 100, 70), (60, 30, 40)),  # from the right
        ((30, 0, 70, 4), (30, 0, 40)),  # from the top
        ((30, 97, 70, 100), (30, 60, 40)),  # from the bottom
        ((0, 0, 100, 10), (0, 0, 100)),  # the whole picture
    ],
)
def test_square_has_the_longer_side_and_is_shifted_inside(box, square):
    assert square_around(box, (100, 100)) == square


@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_any_square_lies_inside_and_holds_what_it_can_of_its_box(height, width, data):
    box = []
    for length in (width, height):
        first = data.draw(st.integers(0, length - 1))
        box.append((first, data.draw(st.integers(first + 1, length))))
    (left, right), (top, bottom) = box
    x, y, side = square_around((left, top, right, bottom), (height, width))
    assert side == min(max(right - left, bottom - top), height, width)
    for start, length, first, last in ((x, width, left, right), (y, height, top, bottom)):
        assert 0 <= start <= length - side
        if last - first <= side:
            assert start <= first < last <= start + side
        else:
            assert first <= start < start + side <= last


def test_components_are_those_of_scipys_labels_in_the_same_order():
    rng = np.random.default_rng(0)
    for density in (0.05, 0.3, 0.5, 0.6, 0.95):
        mask = rng.random((50, 70)) < density
        labels, _ = ndimage.label(mask)
        boxes = [[x.start, y.start, x.stop, y.stop] for y, x in ndimage.find_objects(labels)]
        assert _component_boxes(mask).tolist() == boxes
