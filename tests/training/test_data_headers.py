"""Headers that are read without a library, for speed: they say what tarfile and Pillow say, or leave it to them."""

import io
import random
import tarfile

import pytest
from megatron.energon.flavors.webdataset.itar import ITarFile
from PIL import Image

from training.data.decoding import _stated_pixels, check_size
from training.data.reader import _OpenTar, _plain_member
from training.data.sample_types import BadSample

NAMES = ["a.jpg", "x" * 100, "d/" * 20 + "y" * 70 + ".jpg", "d/" * 60 + "y.txt", "ü.png", "folder/"]


def packed(form: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for name in NAMES:
            for size in (0, 1, 512, 513) if name != "folder/" else (0,):
                member = tarfile.TarInfo(name)
                member.size, member.type = size, tarfile.DIRTYPE if name == "folder/" else tarfile.REGTYPE
                try:
                    tar.addfile(member, io.BytesIO(b"q" * size))
                except ValueError:  # a name that this format cannot hold
                    assert form == tarfile.USTAR_FORMAT
    return buffer.getvalue()


def members(kind: type, content: bytes) -> list:
    tar = kind.open(fileobj=io.BytesIO(content), mode="r:")
    tar.offset, found = 0, []
    try:
        while (member := tar.next()) is not None:
            found.append((member.name, member.size, member.type, member.offset, member.offset_data, tar.offset))
    except tarfile.TarError as error:
        found.append(repr(error))
    return found


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_members_of_a_tar_are_those_that_tarfile_finds_sound_or_damaged(form):
    content, rng = packed(form), random.Random(form)
    assert len(members(ITarFile, content)) > 12
    assert members(_OpenTar, content) == members(ITarFile, content)
    for _ in range(300):
        damaged = bytearray(content[:4096])
        for place in rng.choices((0, 99, 124, 130, 134, 135, 148, 152, 153, 154, 155, 156, 257, 262, 345), k=2):
            damaged[512 * rng.randrange(4) + place] = rng.choice(b"\0 07:8A\xff")
        assert members(_OpenTar, bytes(damaged)) == members(ITarFile, bytes(damaged))


def test_a_plain_member_is_read_without_tarfile():
    member = tarfile.TarInfo("000001.0.mask.png")
    member.size = 4321
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT):
        found = _plain_member(member.tobuf(form))
        assert (found.name, found.size) == (member.name, member.size)


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True, "comment": b"\xff\xc0" * 30}),
        ("JPEG", {"exif": b"Exif\0\0" + b"\xff" * 99}),
        ("PNG", {}),
        ("WEBP", {}),
    ],
)
def test_a_header_states_the_pixels_that_pillow_finds(form, options):
    file = io.BytesIO()
    Image.new("RGB", (70, 31)).save(file, form, **options)
    content = file.getvalue()
    assert _stated_pixels(content) == (None if form == "WEBP" else 70 * 31)  # None: Pillow looks
    check_size(content, 70 * 31)
    with pytest.raises(BadSample, match="picture too large"):
        check_size(content, 70 * 31 - 1)


def test_headers_that_are_not_plain_are_left_to_pillow():
    file = io.BytesIO()
    Image.new("RGB", (70, 31)).save(file, "JPEG")
    content = file.getvalue()
    frame = content.index(b"\xff\xc0")
    twice = content[:frame] + content[frame : frame + 19] + content[frame:]
    for odd in (twice, content[: frame + 4], content[:2] + b"\xff" + content[2:], b"\xff\xd8\xff", b"GIF89a", b""):
        assert _stated_pixels(odd) is None
