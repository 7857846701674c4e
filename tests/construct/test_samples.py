"""What is written: tar headers against Python's own."""

import tarfile

import pytest

from training.construct.samples import tar_header


@pytest.mark.parametrize("name", ["a.jpg", "000000001.0.mask.png", "x" * 100, "x" * 101, "\u00fc.json", ""])
@pytest.mark.parametrize("size", [0, 1, 54_321, 8**11 - 1, 8**11])
def test_tar_headers_are_those_of_tarfile(name, size):
    member = tarfile.TarInfo(name)
    member.size = size
    assert tar_header(name, size) == member.tobuf(tarfile.GNU_FORMAT)
