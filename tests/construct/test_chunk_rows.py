"""What travels between the stages: the same chunk behind each, without copies of what no stage has changed."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from training.construct.chunks import Chunk, SourceImage
from training.construct.construct_config import FilterConfig
from training.construct.masks import Region
from training.construct.sample_encoding import tar_header
from training.construct.square_images import decode_square, read_header


def jpeg(side: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(side).integers(0, 255, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def chunk_of(count: int) -> Chunk:
    chunk = Chunk(3, 1, [], notes={"entity: mask too small": 2}, last=True)
    for number in range(count):
        image = SourceImage(f"{number}", jpeg(64 + number), f"{number}.jpg", caption="a cat")
        image.view = np.random.default_rng(number).integers(0, 255, (9, 9, 3), dtype=np.uint8)
        logits = np.arange(35, dtype=np.float32).reshape(5, 7) + number
        image.regions = [Region(logits, 0.5), None, Region(logits > 9, 0.4)]
        chunk.images.append(image)
    chunk.skip("left out", "picture: corrupt")
    return chunk


def assert_same(found: Chunk, expected: Chunk) -> None:
    assert (found.shard, found.number, found.skipped, found.notes, found.last, found.problem) == (
        (expected.shard, expected.number, expected.skipped, expected.notes, expected.last, expected.problem)
    )
    assert [image.key for image in found.images] == [image.key for image in expected.images]
    for one, other in zip(found.images, expected.images, strict=True):
        assert bytes(one.content) == bytes(other.content)
        assert (one.caption, one.source) == (other.caption, other.source)
        assert np.array_equal(one.view, other.view)
        for region, known in zip(one.regions, other.regions, strict=True):
            assert region is known is None or (region.score == known.score and np.array_equal(region.map, known.map))


@pytest.mark.parametrize("left_out", [0, 1, 7])
def test_a_chunk_is_the_same_behind_each_stage_whatever_is_left_out_on_the_way(left_out):
    expected, chunk = chunk_of(8), Chunk.from_row(chunk_of(8).to_row())
    for made in (expected, chunk):
        made.images = made.images[left_out:]
    passed_on = Chunk.from_row(chunk.to_row())
    assert_same(passed_on, expected)
    contents = [np.frombuffer(made.images[0].content, dtype=np.uint8) for made in (passed_on, chunk)]
    assert np.shares_memory(*contents) == (left_out < 7)
    assert passed_on.images[0].regions[0].map.flags.aligned


def test_what_a_stage_adds_travels_beside_what_arrived():
    chunk = Chunk.from_row(chunk_of(3).to_row())
    chunk.images[1].view = np.full((20, 20, 3), 7, dtype=np.uint8)
    chunk.images[2].view = None
    found = Chunk.from_row(chunk.to_row())
    assert (found.images[1].view == 7).all()
    assert found.images[2].view is None
    assert bytes(found.images[2].content) == bytes(chunk.images[2].content)


def test_models_get_arrays_of_their_own_to_compute_in():
    row = chunk_of(1).to_row()
    row["content"].flags.writeable = False  # as Ray hands it out
    assert not Chunk.from_row(row).images[0].view.flags.writeable
    Chunk.from_row(row, own=True).images[0].view[:] = 0
    assert Chunk.from_row(row).images[0].view.any()
    assert Chunk.from_row(Chunk(0, 0, []).to_row()).images == []


def test_a_picture_is_decoded_from_a_view_of_its_bytes_and_a_header_read_before():
    content, filters = jpeg(200), FilterConfig(min_side=64)
    expected = decode_square(content, filters)
    header = read_header(memoryview(content), filters)
    assert (header.side, header.plain) == (200, True)
    assert np.array_equal(decode_square(memoryview(content), filters, header=header), expected)


@pytest.mark.parametrize("name", ["1.jpg", "0" * 96 + ".jpg", "0" * 97 + ".jpg", "ü.json"])
@pytest.mark.parametrize("size", [0, 123_456, 8**11 - 1, 8**11])
def test_headers_of_tars_are_those_that_tarfile_writes(name, size):
    member = tarfile.TarInfo(name)
    member.size = size
    assert tar_header(name, size) == member.tobuf(tarfile.GNU_FORMAT)
