"""Whatever a picture, a caption, an answer or a shard contains: counted, left out, never fatal."""

import functools
import io
import struct
import tarfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.construct import chunk_stages
from training.construct.caption_spans import CaptionSpan
from training.construct.chunks import Chunk, SourceImage, UnusableImage
from training.construct.construct_config import EntityConfig, FilterConfig, SegmentConfig
from training.construct.masks import Region
from training.construct.square_images import decode_square

from .conftest import settings
from .in_process import construct
from .scenes import encoded, scene
from .shard_reading import described, samples

PIXELS = scene(1).pixels


def saved(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def huge_png() -> bytes:
    """A sound 10,000 x 6,000 picture of one colour in a few kilobytes."""

    def block(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 10_000, 6_000, 1, 0, 0, 0, 0)
    rows = zlib.compress((b"\0" + b"\xaa" * 1250) * 6_000)
    return b"\x89PNG\r\n\x1a\n" + block(b"IHDR", header) + block(b"IDAT", rows) + block(b"IEND", b"")


@functools.cache
def bad_images() -> dict[str, tuple[bytes, str]]:
    """Name -> (content, the reason it is left out for)."""
    sound = encoded(PIXELS)
    frames = [Image.fromarray(PIXELS), Image.fromarray(PIXELS[::-1])]
    broken = bytearray(saved(Image.fromarray(PIXELS), "PNG"))
    broken[len(broken) // 2 : len(broken) // 2 + 40] = b"\xff" * 40
    return {
        "truncated.jpg": (sound[: len(sound) // 2], "picture: truncated"),
        "header.jpg": (sound[:30], "picture: truncated"),
        "text.jpg": (b"<html>404 not found</html>", "picture: corrupt"),
        "empty.jpg": (b"", "picture: unreadable"),
        "broken.png": (bytes(broken), "picture: corrupt"),
        "animated.gif": (saved(frames[0], "GIF", save_all=True, append_images=frames[1:]), "picture: animated"),
        "animated.webp": (saved(frames[0], "WEBP", save_all=True, append_images=frames[1:]), "picture: animated"),
        "animated.png": (saved(frames[0], "PNG", save_all=True, append_images=frames[1:]), "picture: animated"),
        "print.jpg": (saved(Image.fromarray(PIXELS).convert("CMYK"), "JPEG"), "picture: CMYK"),
        "dot.png": (encoded(PIXELS[:1, :1], "PNG"), "picture: too small"),
        "poster.png": (huge_png(), "picture: too many pixels"),
        "strip.jpg": (encoded(np.tile(PIXELS[:80], (1, 3, 1))), "picture: too long and narrow"),
    }


@pytest.mark.parametrize("name", [name for name, (content, _) in bad_images().items() if content])
def test_bad_picture_has_its_own_reason(name):
    """An empty file is told apart where files are read: see `test_bad_pictures_and_captions_are_counted`."""
    content, reason = bad_images()[name]
    with pytest.raises(UnusableImage, match=reason):
        decode_square(content, FilterConfig(min_side=64))
    with pytest.raises(UnusableImage, match=reason):
        decode_square(content, FilterConfig(min_side=64), at_least=64)


@pytest.mark.parametrize(
    ("size", "limits", "reason"),
    [
        ((64, 64), {"min_side": 64}, None),
        ((63, 64), {"min_side": 64}, "picture: too small"),
        ((192, 64), {"max_aspect": 3.0}, None),
        ((64, 193), {"max_aspect": 3.0}, "picture: too long and narrow"),
        ((64, 64), {"max_megapixels": 64 * 64 / 1e6}, None),
        ((64, 65), {"max_megapixels": 64 * 64 / 1e6}, "picture: too many pixels"),
    ],
)
def test_a_picture_just_at_a_limit_is_used_and_the_next_is_not(size, limits, reason):
    content = saved(Image.new("RGB", size), "PNG")
    filters = FilterConfig(**{"min_side": 1} | limits)
    if reason is None:
        assert decode_square(content, filters).shape == (min(size), min(size), 3)
    else:
        with pytest.raises(UnusableImage, match=reason):
            decode_square(content, filters)


def chunk_of(*captions: str) -> Chunk:
    content = saved(Image.new("RGB", (100, 100)), "PNG")
    return Chunk(0, 0, [SourceImage(caption, content, "", caption=caption) for caption in captions])


def test_captions_just_at_a_limit_of_words_are_kept():
    chunk = chunk_of("one two", "one two three", "one two three four", "one two three four five")
    chunk_stages.caption(chunk, lambda images: [image.key for image in images], FilterConfig(min_words=3, max_words=4))
    assert [image.caption for image in chunk.images] == ["one two three", "one two three four"]
    assert [reason for _, reason in chunk.skipped] == ["caption: too short", "caption: too long"]


def test_pictures_just_at_a_limit_of_entities_are_kept():
    chunk = chunk_of("a cat", "a cat, a dog", "a cat, a dog, a cow", "a cat, a dog, a cow, a hen")
    filters = FilterConfig(min_entities=2, max_entities=3)
    chunk_stages.name_entities(chunk, lambda captions: [text.split(", ") for text in captions], filters)
    assert [len(image.spans) for image in chunk.images] == [2, 3]
    assert [reason for _, reason in chunk.skipped] == ["entities: too few in the caption", "entities: too many"]


@pytest.mark.parametrize(
    ("limits", "left_out"),
    [
        ({"min_share": 1.0, "max_share": 1.0}, {}),
        ({"min_share": 1.001}, {"entity: mask too small": 1}),
        ({"min_share": 0.5, "max_share": 0.999}, {"entity: mask too large": 1}),
    ],
)
def test_an_entity_of_just_the_least_or_the_largest_share_is_kept(limits, left_out, tmp_path):
    chunk = chunk_of("a cat")
    mask = np.zeros((100, 100), dtype=bool)
    mask[20:30, 40:50] = True  # one per cent
    (image,) = chunk.images
    image.spans, image.regions = [CaptionSpan(2, 5)], [Region(mask, 1.0)]
    config = settings(tmp_path, tmp_path, "--crops.dilation=0")
    config.filters = FilterConfig(min_side=64, **limits)
    made = chunk_stages.finish(chunk, config)
    assert (len(made), chunk.notes) == (0 if left_out else 1, left_out)


def test_bad_pictures_and_captions_are_counted_and_the_others_written(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    for name, (content, _) in bad_images().items():
        (source / name).write_bytes(content)
    for number in range(6):
        (source / f"{number:06}.jpg").write_bytes(encoded(scene(number).pixels))
    captions = [scene(0).caption, "", "ball", " ".join(["ball"] * 80), "nothing of that kind here", scene(5).caption]
    for number, caption in enumerate(captions):
        (source / f"{number:06}.txt").write_text(caption)
    stats = construct(settings(source, tmp_path / "out"))
    expected = Counter(reason for _, reason in bad_images().values())
    expected.update(["caption: empty", "caption: too short", "caption: too long", "entities: the answer is not a list"])
    assert stats["pictures_left_out"] == dict(expected)
    assert sorted(samples(tmp_path / "out")) == ["000000", "000005"]
    assert stats["pictures"] == len(bad_images()) + 6 == stats["samples"] + sum(expected.values())


@pytest.mark.parametrize("form", ["PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_other_formats_and_modes_are_read(form):
    grey = Image.fromarray(PIXELS).convert("L")
    for image in (Image.fromarray(PIXELS), grey, Image.fromarray(PIXELS).convert("P")):
        if form == "WEBP" and image.mode == "P":
            continue
        assert decode_square(saved(image, form), FilterConfig(min_side=64)).shape == (256, 256, 3)


def test_transparent_pixels_are_white():
    image = Image.fromarray(np.dstack([PIXELS, np.zeros(PIXELS.shape[:2], np.uint8)]))
    assert (decode_square(saved(image, "PNG"), FilterConfig(min_side=64)) == 255).all()


def test_centre_square_is_upright_by_its_exif_tag_or_by_the_given_rotation():
    wide = np.concatenate([PIXELS, PIXELS[:, :100] // 2], axis=1)
    filters = FilterConfig(min_side=64)
    plain = decode_square(saved(Image.fromarray(wide), "PNG"), filters)
    assert np.array_equal(plain, wide[:, 50:306])
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    tagged = saved(Image.fromarray(wide), "PNG", exif=exif)
    assert np.array_equal(decode_square(tagged, filters), np.rot90(plain, -1))
    assert np.array_equal(decode_square(tagged, filters, rotation=90), np.rot90(plain))
    assert np.array_equal(decode_square(tagged, filters, rotation=180), np.rot90(plain, 2))
    assert np.array_equal(decode_square(tagged, filters, rotation=0), plain)


def test_jpegs_give_the_same_pixels_as_pillow_whole_halved_and_turned():
    filters = FilterConfig(min_side=64)
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(PIXELS)
    whole, half = Image.open(io.BytesIO(content)), Image.open(io.BytesIO(content))
    half.draft("RGB", (100, 100))
    assert half.size == (128, 128)
    assert np.array_equal(decode_square(content, filters), np.asarray(whole))
    assert np.array_equal(decode_square(content, filters, at_least=100), np.asarray(half))
    tagged = saved(Image.fromarray(PIXELS), "JPEG", quality=95, exif=exif)
    assert np.array_equal(decode_square(tagged, filters), np.rot90(np.asarray(whole), -1))
    assert np.array_equal(decode_square(tagged, filters, rotation=0), np.asarray(whole))
    assert np.array_equal(decode_square(tagged, filters, rotation=90), np.rot90(np.asarray(whole)))


class Odd:
    """Answers of a segmenter that are of no use: nothing, an empty mask, everything, a speck."""

    def __init__(self, config: SegmentConfig):
        pass

    def __call__(self, pairs: list[tuple[SourceImage, str]]) -> list[Region | None]:
        speck = np.zeros((100, 100), dtype=bool)
        speck[4:9, 4:9] = True
        whole, empty = np.ones((9, 9), dtype=bool), np.full((9, 9), -np.inf, dtype=np.float32)
        odd = [None, Region(empty, 0.0), Region(whole, 1.0), Region(speck, 1.0)]
        return [odd[number % 4] for number in range(len(pairs))]


def test_useless_masks_are_counted_by_entity_and_by_picture(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    for number in range(4):
        (source / f"{number:06}.jpg").write_bytes(encoded(PIXELS))
        (source / f"{number:06}.txt").write_text("a picture of a ball on the ground")
    odd = ("--filters.duplicates=off", f"--segment.kind={__name__}:Odd")
    stats = construct(settings(source, tmp_path / "out", *odd))
    assert stats["pictures_left_out"] == {"entities: too few found in the picture": 4}
    assert stats["entities_left_out"] == {
        "entity: mask too large": 1,
        "entity: mask too small": 1,
        "entity: not found in the picture": 2,
    }


class Chatty:
    """A language model that talks, invents and repeats."""

    def __init__(self, config: EntityConfig):
        pass

    def __call__(self, captions: list[str]) -> list[list[str] | None]:
        answers = [None, ["unicorn"], ["ball", "ball", "unicorn"], [f"word{i}" for i in range(7)]]
        return [answers[number % 4] for number in range(len(captions))]


def test_answers_that_are_prose_or_name_what_is_not_there_are_counted(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    known = next(number for number in range(99) if "ball" in scene(number).masks)
    captions = ["a red ball", "a red ball", "a red ball", " ".join(f"word{i}" for i in range(7))]
    for number, caption in enumerate(captions):
        (source / f"{number}").mkdir()
        (source / f"{number}" / f"{known:06}.jpg").write_bytes(encoded(scene(known).pixels))
        (source / f"{number}" / f"{known:06}.txt").write_text(caption)
    chatty = ("--filters.duplicates=off", f"--entities.kind={__name__}:Chatty")
    stats = construct(settings(source, tmp_path / "out", *chatty))
    assert stats["pictures_left_out"] == {
        "entities: the answer is not a list": 1,
        "entities: too few in the caption": 1,
        "entities: too many": 1,
    }
    assert stats["entities_left_out"] == {"entity: not in the caption": 2}
    (sample,) = samples(tmp_path / "out").values()
    assert [entity["text"] for entity in described(sample)["entities"]] == ["ball"]


def tar_of(numbers: range) -> bytes:
    """An img2dataset shard."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number in numbers:
            one = scene(number)
            for ending, content in (
                ("jpg", encoded(one.pixels)),
                ("txt", one.caption.encode()),
                ("json", b'{"url": "http://x.invalid/%d.jpg", "license": "CC-BY"}' % number),
            ):
                member = tarfile.TarInfo(f"{number:06}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


class FromCaption:
    """Knows a scene by its caption where the file name is gone: any mask will do."""

    def __init__(self, config: SegmentConfig):
        pass

    def __call__(self, pairs: list[tuple[SourceImage, str]]) -> list[Region | None]:
        mask = np.zeros((8, 8), dtype=bool)
        mask[2:6, 2:6] = True
        return [Region(mask, 1.0) for _ in pairs]


def damage(tar: bytes, how: str) -> bytes:
    if how == "in a file":
        return tar[: len(tar) * 2 // 3]
    if how == "between files":
        with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
            return tar[: opened.getmembers()[9].offset]
    if how == "header overwritten":
        with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
            offset = opened.getmembers()[9].offset
        return tar[:offset] + b"\xde\xad\xbe\xef" * 128 + tar[offset + 512 :]
    return b"this is no tar" * 100


@pytest.mark.parametrize("how", ["in a file", "between files", "header overwritten", "no tar at all"])
def test_damaged_shard_is_reported_and_written_whole_once_it_is_repaired(how, tmp_path):
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    sound = tar_of(range(6))
    (source / "00000.tar").write_bytes(tar_of(range(10, 14)))
    (source / "00001.tar").write_bytes(damage(sound, how))
    config = settings(source, target, f"--segment.kind={__name__}:FromCaption")
    stats = construct(config)
    assert list(stats["shards_failed"]) == ["00001"]
    assert sorted(samples(target)) == [f"{number:06}" for number in range(10, 14)]
    assert not list((target / ".work").glob("parts-*"))
    (source / "00001.tar").write_bytes(sound)
    assert construct(config)["shards_failed"] == {}
    assert sorted(samples(target)) == [f"{number:06}" for number in (*range(6), *range(10, 14))]


def test_salvage_uses_what_comes_before_the_damage(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    (source / "00000.tar").write_bytes(damage(tar_of(range(6)), "between files"))
    stats = construct(settings(source, tmp_path / "out", "--salvage=true", f"--segment.kind={__name__}:FromCaption"))
    assert stats["shards_failed"] == {}
    assert sorted(samples(tmp_path / "out")) == ["000000", "000001", "000002"]
    assert stats["entities_left_out"]["shard: read up to its damage"] == 1


def test_origin_and_licence_of_img2dataset_go_along(tmp_path):
    (tmp_path / "in").mkdir()
    Path(tmp_path / "in" / "00000.tar").write_bytes(tar_of(range(2)))
    construct(settings(tmp_path / "in", tmp_path / "out", f"--segment.kind={__name__}:FromCaption"))
    found = described(samples(tmp_path / "out")["000001"])
    assert (found["source"], found["license"]) == ("http://x.invalid/1.jpg", "CC-BY")
