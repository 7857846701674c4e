"""All stages on pictures whose masks are known: boxes to the pixel, spans exactly.

In one process: that the pipeline of many writes the same bytes is a test of its own (test_survival.py).
"""

import numpy as np
import pytest

from kosmos_core.mask_boxes import square_around
from training.construct.masks import dilate

from . import in_process
from .conftest import settings
from .scenes import SIDE, scene, write_folder
from .shard_reading import described, pixels, samples

COUNT = 45
BRIGHTNESS = np.array([0.299, 0.587, 0.114])


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    write_folder(folder, range(COUNT))
    return folder


@pytest.fixture(scope="module")
def exact(images, tmp_path_factory):
    """The output without dilation and without compression that matters."""
    target = tmp_path_factory.mktemp("exact")
    options = ("--crops.dilation=0", "--filters.duplicates=off", "--filters.min_share=0", "--crops.jpeg_quality=98")
    in_process.construct(settings(images, target, *options))
    return samples(target)


def test_every_picture_is_there_once_with_its_caption(exact):
    assert sorted(exact) == [f"{number:06}" for number in range(COUNT)]
    for key, sample in exact.items():
        assert described(sample)["caption"] == scene(int(key)).caption


def test_spans_are_the_entities_words_in_the_captions_order(exact):
    for key, sample in exact.items():
        found = described(sample)
        words = [found["caption"][slice(*entity["span"])] for entity in found["entities"]]
        assert words == [entity["text"] for entity in found["entities"]] == list(scene(int(key)).masks)


def test_boxes_are_the_sprites_to_the_pixel(exact):
    for key, sample in exact.items():
        known = scene(int(key))
        for entity in described(sample)["entities"]:
            assert tuple(entity["box"]) == known.box(entity["text"])
            assert tuple(entity["crop"]) == square_around(known.box(entity["text"]), (SIDE, SIDE))


def test_crops_and_masks_are_the_pictures_and_the_sprites_pixels(exact):
    for key, sample in exact.items():
        known = scene(int(key))
        for number, entity in enumerate(described(sample)["entities"]):
            left, top, side = entity["crop"]
            window = slice(top, top + side), slice(left, left + side)
            crop, mask = pixels(sample[f"{number}.jpg"]), pixels(sample[f"{number}.mask.png"])
            assert crop.shape == (side, side, 3)
            assert mask.dtype == bool
            assert np.array_equal(mask, known.masks[entity["text"]][window])
            # JPEG halves the resolution of colour, not of brightness.
            assert np.abs(crop @ BRIGHTNESS - known.pixels[window] @ BRIGHTNESS).mean() < 1.2


def test_boxes_grow_by_the_dilation_rule_and_by_nothing_else(images, tmp_path):
    options = ("--crops.dilation=50", "--filters.duplicates=off", "--filters.min_share=0")
    in_process.construct(settings(images, tmp_path, *options))
    assert len(samples(tmp_path)) == COUNT
    for key, sample in samples(tmp_path).items():
        known = scene(int(key))
        for entity in described(sample)["entities"]:
            rows, columns = np.nonzero(dilate(known.masks[entity["text"]], SIDE // 50))
            assert entity["box"] == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
