"""The parts that contact sheets are put together from."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from training.base.contact_sheet import (
    INK,
    MARKS,
    column,
    framed,
    grid,
    marked,
    padded,
    page,
    row,
    rule,
    space,
    text,
    thumbnail,
)
from training.base.curves import _range

RED, BLUE = Image.new("RGB", (60, 30), "red"), Image.new("RGB", (30, 30), "blue")


def pixels(block) -> np.ndarray:
    return np.asarray(page(block, margin=0, paper="white"))


def where(block, colour) -> np.ndarray:
    return (pixels(block) == colour).all(-1)


def test_a_thumbnail_shows_the_whole_image_or_its_centre_square():
    whole, centre = where(thumbnail(RED, 40), (255, 0, 0)), where(thumbnail(RED, 40, cover=True), (255, 0, 0))
    assert whole.sum() == 40 * 20
    assert whole[10:30].all()
    assert centre.all()


def test_small_images_are_enlarged_without_blur():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    shown = pixels(thumbnail(Image.fromarray(image), 32, Image.Resampling.NEAREST))
    assert np.array_equal(shown, image.repeat(4, 0).repeat(4, 1))


def test_rows_columns_and_grids_place_blocks_at_their_gaps():
    red, blue = thumbnail(BLUE, 10), thumbnail(BLUE, 20)
    side_by_side, below = row([red, blue], 5), column([red, blue], 5)
    assert (side_by_side.width, side_by_side.height) == (35, 20)
    assert (below.width, below.height) == (20, 35)
    assert (
        where(row([red, blue], 5, centred=True), (0, 0, 255))[:, :10].any(1).tolist()
        == [False] * 5 + [True] * 10 + [False] * 5
    )
    assert where(column([red, blue], 5, centred=True), (0, 0, 255))[0].nonzero()[0].tolist() == list(range(5, 15))
    five = grid([red] * 5, 2, 1)
    assert (five.width, five.height) == (21, 32)
    assert where(five, (0, 0, 255)).sum() == 500
    assert (row([]).width, column([]).height, padded(space(3, 4), 1, 2).height) == (0, 0, 8)


def test_frames_and_rules_do_not_move_what_they_belong_to():
    block = framed(thumbnail(BLUE, 10), "red", line=2, height=14)
    assert (block.width, block.height) == (10, 14)
    drawn = np.asarray(page(block, margin=3, paper="white"))
    assert (drawn[3:13, 3:13] == (0, 0, 255)).all()
    assert (drawn[1:3, 1:15] == (255, 0, 0)).all()
    assert (drawn[0] == 255).all()
    assert (pixels(rule(20))[0] != 255).any()


def test_words_are_wrapped_to_the_width_and_cut_off_with_an_ellipsis():
    words = "the quick brown fox jumps over the lazy dog again"
    one, all_lines = text(words, 1000, 20), text(words, 150, 20)
    assert one.height == 30
    assert all_lines.height > 90
    assert where(all_lines, INK)[90:].any(), "the last words are drawn"
    cut = text(words, 150, 20, lines=2)
    assert cut.height == 60
    assert not np.array_equal(pixels(cut), pixels(all_lines)[:60]), "an ellipsis says that there was more"
    assert np.array_equal(pixels(text(words, 1000, 20, lines=1)), pixels(one))


@pytest.mark.parametrize("words", ["x" * 3000, "日本語の文章" * 200, "", "\n\n a"])
def test_any_words_stay_inside_their_width(words):
    block = text(words, 120, 18, lines=3)
    assert block.height <= 81
    drawn = np.asarray(page(block, margin=40, paper="white"))
    assert (drawn[:, 160:] == 255).all()


def test_a_curves_field_holds_all_values_but_the_largest_hundredth_of_a_long_run():
    short = {"all": [(step, float(step), 0.0) for step in range(99)]}
    assert _range(short) == pytest.approx((-4.9, 102.9))  # 98 and a twentieth of it at both ends
    long = {"all": [(step, 1000.0 if step < 3 else step / 300, 0.0) for step in range(300)]}
    assert _range(long)[1] < 2
    barred = {"all": [(0, 1.0, 0.5), (1, 2.0, 0.0)]}
    assert _range(barred) == pytest.approx((0.425, 2.075))  # an interval's lower end, too


def test_spans_of_a_caption_are_shown_and_underlined_in_their_colours():
    caption = "a hot dog, and a cat"
    block = text(marked(caption, [(2, 9), (17, 20)]), 400, 20)
    first, second, plain = (where(block, colour).any(0).nonzero()[0] for colour in (*MARKS[:2], INK))
    assert plain.min() < first.min() < first.max() < second.min()
    under = where(block, MARKS[0])[25]
    assert under.nonzero()[0].tolist() == list(range(under.argmax(), under.argmax() + under.sum())), "one line for both"
    unmarked = text(marked(caption, []), 400, 20)
    assert (unmarked.width, unmarked.height) == (block.width, block.height)
