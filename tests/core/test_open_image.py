"""One way from an encoded picture to its pixels: nodes, data, construction and evaluation see the same."""

import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from kosmos_core.images import ImageError, open_image
from kosmos_core.reference import View
from training.base.errors import ConfigError
from training.construct.chunks import UnusableImage
from training.construct.construct_config import FilterConfig
from training.construct.square_images import decode_square
from training.data.decoding import decode
from training.data.sample_types import BadSample
from training.evaluate.subjects import open_image as open_for_evaluation

SIDE = 96


def drawing(channels=3, dtype=np.uint8):
    """A smooth square picture that no turn or mirror maps onto itself, and that JPEG keeps well."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    planes = np.stack([x, y, x * y, 1 - x][:channels], axis=-1) * np.iinfo(dtype).max
    return np.rint(planes).astype(dtype)


def saved(image, form, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def palette():
    image = Image.fromarray(drawing()).quantize(32)
    return saved(image, "PNG", transparency=image.getpixel((3, 50)))


def on_white(rgba):
    alpha = rgba[..., 3:].astype(float) / 255
    return rgba[..., :3] * alpha + 255 * (1 - alpha)


# name -> (file, the pixels that anybody would expect, how far rounding and JPEG may move them)
FILES = {
    "grey of 16 bits": (saved(Image.fromarray(drawing(1, np.uint16)[..., 0]), "PNG"), drawing(1).repeat(3, -1), 1),
    "cut-out": (saved(Image.fromarray(drawing(4)), "PNG"), on_white(drawing(4)), 1),
    "turned photo": (saved(Image.fromarray(np.rot90(drawing())), "JPEG", quality=95, exif=turned()), drawing(), 12),
    "palette with transparency": (
        palette(),
        on_white(np.asarray(Image.open(io.BytesIO(palette())).convert("RGBA"))),
        1,
    ),
    "CMYK": (saved(Image.fromarray(drawing()).convert("CMYK"), "JPEG", quality=95), drawing(), 12),
    "plain": (saved(Image.fromarray(drawing()), "JPEG", quality=95), drawing(), 12),
}


@pytest.mark.parametrize("name", FILES)
def test_nodes_data_construction_and_evaluation_see_the_same_upright_pixels(name, tmp_path):
    content, expected, tolerance = FILES[name]
    pixels = np.asarray(open_image(content))
    assert pixels.shape == (SIDE, SIDE, 3)
    assert np.abs(pixels.astype(float) - expected).max() <= tolerance
    (tmp_path / "picture").write_bytes(content)
    with (tmp_path / "picture").open("rb") as file:
        assert np.array_equal(np.asarray(open_image(file)), pixels)
    assert np.array_equal(np.asarray(open_image(tmp_path / "picture")), pixels)
    assert np.array_equal(np.asarray(open_image(Image.open(io.BytesIO(content)))), pixels)
    assert np.array_equal(np.asarray(decode(content)), pixels)
    assert np.array_equal(np.asarray(open_for_evaluation(tmp_path / "picture")), pixels)
    view = View(torch.from_numpy(pixels.astype(np.float32) / 255)).seen(SIDE)
    assert np.array_equal(view.numpy(), pixels)
    if name == "CMYK":  # construction leaves pictures that were made for print out, and says so
        with pytest.raises(UnusableImage, match="picture: CMYK"):
            decode_square(content, FilterConfig(min_side=1))
    else:
        assert np.array_equal(decode_square(content, FilterConfig(min_side=1)), pixels)


def test_an_upright_rgb_image_comes_back_without_a_copy():
    image = Image.fromarray(drawing())
    assert open_image(image) is image


@pytest.mark.parametrize("kind", ["JPEG", "MPO", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF"])
def test_every_usual_format_is_read_whatever_the_file_is_called(kind, tmp_path):
    options = {"quality": 100} if kind in ("AVIF", "WEBP") else {}
    (tmp_path / "picture.jpg").write_bytes(saved(Image.fromarray(drawing()), kind, **options))
    assert (
        np.abs(np.asarray(open_image(tmp_path / "picture.jpg")).astype(int) - drawing()).max() < 48
    )  # GIF: 256 colours


@pytest.mark.parametrize("kind", ["EPS", "PPM", "ICO"])
def test_formats_whose_decoders_start_programs_or_are_unusual_are_not_opened(kind, tmp_path):
    (tmp_path / "picture.jpg").write_bytes(saved(Image.fromarray(drawing()), kind))
    for read in (open_image, open_for_evaluation):
        with pytest.raises((ImageError, ConfigError), match="no picture file of a known kind"):
            read(tmp_path / "picture.jpg")
    with pytest.raises(BadSample, match="corrupt picture"):
        decode((tmp_path / "picture.jpg").read_bytes())


def test_a_cut_out_of_several_strips_is_laid_on_white_as_one(monkeypatch):
    image = Image.fromarray(drawing(4))
    whole = np.asarray(open_image(image))
    monkeypatch.setattr("kosmos_core.images._STRIP", SIDE * 7)
    assert np.array_equal(np.asarray(open_image(image)), whole)


def test_only_the_first_frame_and_only_pixels_are_read():
    frames = [Image.fromarray(drawing()[::step]) for step in (1, -1)]
    content = saved(frames[0], "PNG", save_all=True, append_images=frames[1:])
    assert np.array_equal(np.asarray(open_image(content)), drawing())
    assert open_image(saved(frames[0], "JPEG", comment=b"where it was taken")).info == {}


@pytest.mark.parametrize(
    ("content", "reason", "sentence"),
    [
        (FILES["plain"][0][:900], "truncated", "The picture cannot be read: image file is truncated"),
        (b"<html>not found</html>", "corrupt", "The picture cannot be read: it is no picture file of a known kind"),
        (saved(Image.new("RGB", (200, 50)), "PNG"), "too large", "is 200 x 50 pixels: expected at most 9,999 pixels"),
        (saved(Image.new("F", (4, 4)), "TIFF"), "no picture", "has mode F: convert it to RGB"),
    ],
)
def test_what_cannot_be_used_has_a_sentence_and_a_reason(content, reason, sentence):
    with pytest.raises(ImageError, match=sentence) as caught:
        open_image(content, max_pixels=9999)
    assert caught.value.reason == reason
    again = pickle.loads(pickle.dumps(caught.value))  # data is read in other processes
    assert (str(again), again.reason) == (str(caught.value), reason)


def test_callers_name_the_fault_in_their_own_words(tmp_path):
    path = tmp_path / "dog.png"
    with pytest.raises(ImageError, match=r"The picture .*dog\.png cannot be read: No such file or directory\."):
        open_image(path)
    path.write_bytes(FILES["plain"][0][:900])
    with pytest.raises(ConfigError, match=r"the picture .*dog\.png cannot be read: image file is truncated.*; replace"):
        open_for_evaluation(path)
    with pytest.raises(BadSample, match="corrupt picture"):
        decode(path.read_bytes())
    with pytest.raises(BadSample, match="picture too large"):
        decode(saved(Image.new("1", (12_000, 11_000)), "PNG"))


def test_a_picture_of_just_the_most_pixels_is_opened():
    image = Image.new("RGB", (8, 8))
    assert open_image(image, 64).size == (8, 8)
    with pytest.raises(ImageError, match="8 x 8 pixels: expected at most 63"):
        open_image(image, 63)
