"""Tars are read as the folders they were packed from; whatever is in them, memory is bounded and all is counted."""

import gzip
import io
import json
import struct
import tarfile
import tracemalloc

import pytest
from PIL import Image

from kosmos_core.images import ImageError, open_image
from training.construct.chunks import UnusableImage
from training.construct.construct_config import FilterConfig
from training.construct.input_shards import clean_key, find_shards, read_shard
from training.construct.square_images import decode_square
from training.construct.tar_members import DamagedShard, in_tar

from .conftest import settings
from .scenes import encoded, scene
from .test_changed_input import sample, tar_of

JPEG = encoded(scene(0).pixels)


def read(tmp_path, content: bytes, *more: str) -> dict[str, tuple[str, str]]:
    """Source -> (problem, given caption) of everything that the reader hands on."""
    (tmp_path / "x.tar").write_bytes(content)
    config = settings(tmp_path / "x.tar", tmp_path / "out", *more)
    (shard,) = find_shards(config)
    return {image.source: (image.problem, image.given_caption) for image in read_shard(shard, config)}


def test_names_with_dots_are_read_as_in_a_folder(tmp_path):
    members = [
        *sample("holiday.1", 0, "first"),
        *sample("holiday.2", 1, "second"),
        ("holiday.jpg", JPEG),
        ("holiday.txt", b"plain"),
        ("a/holiday.1.JPG", JPEG),
        ("a/holiday.1.Txt", b"capital"),
        ("tagger.jpg", JPEG),
        ("tagger.caption", b"of another tool"),
        ("tagger.json", b'{"caption": "less than a text"}'),
    ]
    in_tar = read(tmp_path, tar_of(members))
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "x.tar") as tar:
        tar.extractall(tmp_path / "in", filter="data")
    config = settings(tmp_path / "in", tmp_path / "out")
    (shard,) = find_shards(config)
    in_folder = {image.source: (image.problem, image.given_caption) for image in read_shard(shard, config)}
    assert in_tar == in_folder
    captions = sorted(caption for _, caption in in_tar.values())
    assert captions == ["capital", "first", "of another tool", "plain", "second"]


def test_what_is_not_read_is_handed_on_with_its_reason(tmp_path):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in (("a.jpg", JPEG), ("b.heic", b"x"), ("c", b"x"), ("._a.jpg", b"x"), ("lonely.txt", b"x")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for name, kind in (("d.jpg", tarfile.SYMTYPE), ("e.jpg", tarfile.LNKTYPE), ("f.jpg", tarfile.FIFOTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "a.jpg"
            tar.addfile(member)
    found = {name: problem for name, (problem, _) in read(tmp_path, buffer.getvalue()).items()}
    assert found == {
        "a.jpg": "",
        "b.heic": "file: .heic is not read",
        "c": "file: no ending",
        "._a.jpg": "file: hidden",
        "lonely.txt": "file: text without a picture",
        "d.jpg": "picture: a link, not a file",
        "e.jpg": "picture: a link, not a file",
        "f.jpg": "picture: a link, not a file",
    }


@pytest.mark.parametrize("order", [("a.jpg", "b.jpg", "a.txt"), ("a.txt", "b.jpg", "a.jpg")])
def test_captions_apart_from_their_pictures_are_no_silent_loss(order, tmp_path):
    content = tar_of([(name, JPEG if name.endswith("jpg") else b"words") for name in order])
    with pytest.raises(DamagedShard, match=r"members of a are not next to each other; pack it again with `tar --sort"):
        read(tmp_path, content)


def sparse(size: int) -> bytes:
    """A tar of a file with holes that claims `size` bytes, in the format of GNU tar."""
    member = tarfile.TarInfo("x.jpg")
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[156:157] = b"S"
    header[386:398] = b"00000000000\0"
    header[398:410] = b"00000000000\0"
    header[483:495] = b"\x80\0\0\0" + struct.pack(">Q", size)
    return summed(header) + bytes(1024)


def summed(header: bytearray) -> bytes:
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def pax(records: dict[str, str]) -> bytes:
    member = tarfile.TarInfo("x.jpg")
    member.pax_headers = records
    return member.tobuf(tarfile.PAX_FORMAT) + bytes(1024)


def long_name(size: int) -> bytes:
    """A header that announces a name of `size` bytes, which are there."""
    member = tarfile.TarInfo("././@LongLink")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, size
    return gzip.compress(member.tobuf(tarfile.GNU_FORMAT) + bytes(size) + bytes(1024), 1)


def large_gz() -> bytes:
    member = tarfile.TarInfo("x.jpg")
    member.size = 60_000_000
    return gzip.compress(member.tobuf() + bytes(60_000_000) + bytes(1024), 1)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda: sparse(8 << 30), "picture: a file with holes"),
        (lambda: pax({"size": "100000000000000000000"}), None),
        (lambda: long_name(60_000_000), None),
        (large_gz, "picture: file too large"),
    ],
    ids=["sparse", "size of 10^20", "name of 60 MB", "compressed picture of 60 MB"],
)
def test_sizes_that_a_tar_claims_take_no_memory(content, said, tmp_path):
    written = content()
    tracemalloc.start()
    try:
        if said:
            assert read(tmp_path, written, "--filters.max_megabytes=1")["x.jpg"][0] == said
        else:
            with pytest.raises(DamagedShard):
                read(tmp_path, written, "--filters.max_megabytes=1")
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "described",
    [
        b"[" * 200_000,
        json.dumps({"caption": "half \ud800 a letter", "url": "\ud800"}).encode(),
        b'{"caption": ["a"], "url": 3, "license": {}}',
        b"[]",
        b'{"caption": ' + b"9" * 5000 + b"}",
    ],
)
def test_odd_json_beside_a_picture_breaks_nothing(described, tmp_path):
    found = read(tmp_path, tar_of([("a.jpg", JPEG), ("a.json", described)]))
    assert len(found) == 1
    json.dumps(list(found.items()), ensure_ascii=False).encode()


@pytest.mark.parametrize(
    "name", ["__key__", "..", "../../etc/passwd", "_", "-", "", "\udcff", "²", "x[/red]y", "\x1b[31m"]
)
def test_no_key_is_one_that_readers_take_for_their_own_or_that_leads_anywhere(name):
    key = clean_key(name)
    assert key[0].isalnum()
    assert all(letter.isascii() and (letter.isalnum() or letter in "_-") for letter in key)


@pytest.mark.parametrize(("more", "problem"), [(0, ""), (-1, "picture: file too large")])
def test_a_picture_of_just_the_largest_size_is_read(tmp_path, more, problem):
    (tmp_path / "x.tar").write_bytes(tar_of([("a.jpg", JPEG)]))
    [(name, content, _, said)] = in_tar(str(tmp_path / "x.tar"), len(JPEG) + more)
    assert (name, content, said) == ("a.jpg", b"" if problem else JPEG, problem)


def test_captions_in_the_encodings_of_other_systems_are_read_or_counted(tmp_path):
    words = "一只狗 on a beach"
    ways = {"a": "utf-8", "b": "utf-8-sig", "c": "utf-16", "d": "utf-32"}
    members = [pair for name in ways for pair in ((f"{name}.jpg", JPEG), (f"{name}.txt", words.encode(ways[name])))]
    members += [("e.jpg", JPEG), ("e.txt", "ein Bär".encode("latin-1"))]
    members += [("f.jpg", JPEG), ("f.json", b"\xef\xbb\xbf" + json.dumps({"caption": words}).encode())]
    found = read(tmp_path, tar_of(members))
    assert found.pop("e.jpg") == ("caption: not UTF-8", "")
    assert list(found.values()) == [("", words)] * 5
    assert read(tmp_path, tar_of(members), "--caption.kind=blip2")["e.jpg"] == ("", "")


def test_a_caption_is_one_line(tmp_path):
    found = read(tmp_path, tar_of([("a.jpg", JPEG), ("a.txt", b" a dog\r\nand  a\tcat \n")]))
    assert found == {"a.jpg": ("", "a dog and a cat")}


@pytest.mark.parametrize(("more", "problem"), [(0, ""), (-1, "picture: file too large")])
def test_a_picture_of_just_the_largest_size_is_read_from_a_folder_too(tmp_path, more, problem):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(JPEG)
    config = settings(tmp_path / "in", tmp_path / "out", f"--filters.max_megabytes={(len(JPEG) + more + 0.5) / 1e6}")
    (shard,) = find_shards(config)
    assert [image.problem for image in read_shard(shard, config)] == [problem]


def test_formats_whose_readers_start_programs_are_not_opened(monkeypatch):
    from PIL import EpsImagePlugin

    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *words, **more: started.append(words))
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", "gs")
    eps = io.BytesIO()
    Image.open(io.BytesIO(JPEG)).save(eps, "EPS")
    for at_least in (None, 64):
        with pytest.raises(UnusableImage, match="picture: corrupt"):
            decode_square(eps.getvalue(), FilterConfig(min_side=8), at_least=at_least)
    with pytest.raises(ImageError, match="no picture file of a known kind"):
        open_image(eps.getvalue())
    assert started == []
