"""Near-duplicates: against comparing everything with everything, and on real changes of a picture."""

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from training.construct.construct_config import FilterConfig
from training.construct.duplicates import near_duplicates, perceptual_hash
from training.construct.square_images import decode_square

EVERYTHING = FilterConfig(min_side=1)


def naive(hashes: list[int], distance: int) -> list[bool]:
    kept: list[int] = []
    repeated = []
    for one in hashes:
        repeated.append(any((one ^ other).bit_count() <= distance for other in kept))
        if not repeated[-1]:
            kept.append(one)
    return repeated


@pytest.mark.parametrize("distance", [0, 1, 3, 6])
def test_search_equals_comparing_every_picture_with_every_kept_one(distance):
    rng = np.random.default_rng(distance)
    hashes = [int(one) for one in rng.integers(0, 2**64, 150, dtype=np.uint64)]
    for _ in range(250):  # chains of neighbours, exact repetitions among them
        one = hashes[rng.integers(len(hashes))]
        for bit in rng.integers(0, 64, rng.integers(0, distance + 3)):
            one ^= 1 << int(bit)
        hashes.insert(int(rng.integers(len(hashes))), one)
    expected = naive(hashes, distance)
    assert near_duplicates(np.array(hashes, dtype=np.uint64), distance).tolist() == expected
    assert 20 < sum(expected) < 380


def encoded(image: Image.Image, form: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def hash_of(content: bytes) -> int:
    return perceptual_hash(decode_square(content, EVERYTHING, at_least=64))


def test_scaled_recompressed_and_brightened_copies_are_near_and_other_pictures_are_far():
    rng = np.random.default_rng(5)
    images = [
        Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((400, 400), Image.Resampling.BICUBIC)
        for _ in range(12)
    ]
    originals = [hash_of(encoded(image, quality=95)) for image in images]
    for image, original in zip(images, originals, strict=True):
        for copy in (
            encoded(image, quality=50),
            encoded(image.resize((230, 230), Image.Resampling.LANCZOS), quality=90),
            encoded(image, "PNG"),
            encoded(ImageEnhance.Brightness(image).enhance(0.9), quality=90),
        ):
            assert (hash_of(copy) ^ original).bit_count() <= FilterConfig().duplicate_distance
    distances = [(a ^ b).bit_count() for i, a in enumerate(originals) for b in originals[:i]]
    assert min(distances) > 10


def test_brightness_alone_is_no_content():
    assert len({perceptual_hash(np.full((64, 64, 3), level, np.uint8)) for level in (0, 90, 255)}) == 1
