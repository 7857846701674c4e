import io
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from kosmos_core import images
from kosmos_core.images import normalise, preprocess_image, resize_and_crop, to_rgb


def noise(height, width, channels=3, dtype=np.uint8):
    limit = np.iinfo(dtype).max + 1
    shape = (height, width, channels)[: 2 + (channels > 0)]
    return np.random.default_rng(height * 7919 + width).integers(0, limit, shape, dtype=dtype)


def pixels(image):
    return torch.from_numpy(np.array(image))


@pytest.fixture(scope="module")
def golden(shared):
    folder = shared / "golden/images"
    cases = json.loads((folder / "info.json").read_text())["cases"]
    expected = load_file(folder / "expected.safetensors")
    return [(name, Image.open(folder / f"{name}.png"), expected) for name in cases]


def test_pictures_equal_the_originals(golden):
    assert len(golden) == 4
    for name, image, expected in golden:
        rgb = image.convert("RGB")  # the original drops alpha; compositing is proven below
        assert torch.equal(pixels(resize_and_crop(rgb)), expected[f"{name}.uint8"]), name
        assert torch.equal(preprocess_image(rgb), expected[f"{name}.gpt"]), name


def test_diffusion_target_equals_the_originals(golden):
    name, image, expected = golden[0]
    assert torch.equal(pixels(resize_and_crop(image, 512, "bilinear")), expected[f"{name}.diff_uint8"])


def test_grey_and_palette_files_equal_the_originals_without_conversion(golden):
    for name, image, expected in golden:
        if image.mode in ("L", "P"):
            assert torch.equal(preprocess_image(image), expected[f"{name}.gpt"]), name


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("shape", [(97, 331), (224, 224), (300, 225), (1, 1), (3, 50), (640, 481)])
def test_arrays_tensors_and_files_of_the_same_pixels_agree(shape):
    array = noise(*shape)
    expected = preprocess_image(Image.fromarray(array))
    assert expected.shape == (3, 224, 224)
    assert expected.dtype == torch.float32
    floats = torch.from_numpy(array.astype(np.float32) / 255)
    read_only = array.copy()
    read_only.setflags(write=False)
    for same in (
        array,
        read_only,
        array[:, ::-1][:, ::-1],
        array.astype(np.int64),
        array.astype(np.float64) / 255,
        (array.astype(np.float16) / 255).astype(">f2"),
        array.astype(np.uint16) * 257,
        torch.from_numpy(array),
        floats,
        floats.half(),
        floats.requires_grad_(),
    ):
        assert torch.equal(preprocess_image(same), expected)
    assert torch.equal(preprocess_image(floats, size=32), preprocess_image(array, size=32))


def test_every_byte_survives_the_way_through_float():
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    for floats in (torch.from_numpy(ramp).float() / 255, torch.from_numpy(ramp).half() / 255):
        assert torch.equal(pixels(to_rgb(floats))[..., 0], torch.from_numpy(ramp))


def test_batches_keep_their_first_axis():
    batch = noise(2 * 40, 60).reshape(2, 40, 60, 3)
    expected = torch.stack([preprocess_image(batch[0]), preprocess_image(batch[1])])
    assert torch.equal(preprocess_image(batch), expected)
    assert torch.equal(preprocess_image(torch.from_numpy(batch).float() / 255), expected)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "RGB", "L", "RGBa"])
def test_transparency_is_laid_on_white(mode):
    alpha = Image.fromarray(np.repeat(np.uint8([[0, 255]]), 8, 0).repeat(4, 1))
    grey = Image.new("L", alpha.size, 51)
    image = Image.merge("RGBA", (grey, grey, grey, alpha))
    if mode in ("LA", "RGBa"):
        image = image.convert(mode)
    elif mode == "PA":  # Pillow's own conversion to PA would lose the alpha
        image = Image.new(mode, alpha.size, 3)
        image.putpalette([51] * 768)
        image.putalpha(alpha)
    elif mode != "RGBA":  # one transparent colour: tRNS of a PNG
        image = Image.composite(grey, Image.new("L", alpha.size, 7), alpha).convert(mode)
        file = io.BytesIO()
        image.save(file, "PNG", transparency=(7, 7, 7) if mode == "RGB" else image.getpixel((0, 0)))
        image = Image.open(file)
    assert image.mode == mode
    values = pixels(to_rgb(image))
    assert values[:, :4].eq(255).all()
    assert values[:, 4:].eq(51).all()


def test_half_transparent_red_becomes_pink_in_arrays_and_files():
    array = np.full((4, 4, 4), (255, 0, 0, 128), np.uint8)
    assert to_rgb(array).getpixel((0, 0)) == to_rgb(Image.fromarray(array)).getpixel((0, 0)) == (255, 127, 127)
    assert to_rgb(torch.from_numpy(array).float() / 255).getpixel((0, 0)) == (255, 127, 127)
    assert to_rgb(np.full((4, 4, 2), (0, 128), np.uint8)).getpixel((0, 0)) == (127, 127, 127)


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1)])
def test_grey_arrays_are_expanded(shape):
    values = pixels(to_rgb(noise(5, 7, 0).reshape(shape)))
    assert torch.equal(values, torch.from_numpy(noise(5, 7, 0))[..., None].expand(5, 7, 3))


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_sixteen_bits_are_scaled_to_eight(mode):
    array = noise(60, 50, 0, np.uint16)
    array[0, :4] = (0, 65535, 128, 129)
    stored = {"I;16": array, "I;16B": array.astype(">u2"), "I": array.astype(np.int32)}[mode]
    image = Image.fromarray(stored)
    assert image.mode == mode
    expected = torch.from_numpy(np.rint(array / 257).astype(np.uint8))
    assert torch.equal(pixels(to_rgb(image))[..., 1], expected)
    assert torch.equal(pixels(to_rgb(array))[..., 1], expected)


@pytest.mark.parametrize("mode", ["1", "CMYK", "YCbCr", "HSV", "RGBX"])
def test_other_modes_are_read_as_pillow_reads_them(mode):
    image = Image.fromarray(noise(40, 50)).convert(mode)
    assert torch.equal(preprocess_image(image), preprocess_image(image.convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    turned_back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transposition that undoes each tag's view
    upright = Image.fromarray(noise(20, 30))
    stored = upright.transpose(turned_back[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    stored.save(file, "PNG", exif=exif)
    assert torch.equal(pixels(to_rgb(Image.open(file))), pixels(upright))


def test_bools_are_black_and_white_and_floats_are_clamped():
    assert to_rgb(np.array([[True, False]])).getpixel((0, 0)) == (255, 255, 255)
    values = pixels(to_rgb(np.float32([[-3, -0.01, 0, 0.5, 1, 1.01, 900]])))[0, :, 0]
    assert values.tolist() == [0, 0, 0, 128, 255, 255, 255]


@pytest.mark.parametrize(
    ("image", "error", "sentence"),
    [
        (np.full((4, 4, 3), np.nan), ValueError, "holds NaN or infinite values: expected numbers in 0..1"),
        (torch.full((4, 4, 3), torch.inf), ValueError, "holds NaN or infinite"),
        (torch.zeros(0, 8, 8, 3), ValueError, r"This batch holds no picture: its shape is \(0, 8, 8, 3\)"),
        (torch.zeros(0, 8, 3), ValueError, "The picture is 8 x 0 pixels: expected at least 1 x 1"),
        (np.zeros((8, 0, 3)), ValueError, "The picture is 0 x 8 pixels"),
        (Image.new("RGB", (0, 5)), ValueError, "The picture is 0 x 5 pixels"),
        (torch.zeros(3, 224, 224), ValueError, r"shape \(3, 224, 224\).*move the channels to the end"),
        (torch.zeros(8, 8, 5), ValueError, r"shape \(8, 8, 5\): expected height, width and 1 to 4 channels\."),
        (torch.zeros(8), ValueError, r"shape \(8,\)"),
        (np.full((4, 4, 3), 256), ValueError, "int64 values from 256 to 256: expected 0 to 255"),
        (np.full((4, 4, 3), -1, np.int16), ValueError, "int16 values from -1 to -1"),
        (np.zeros((4, 4, 3), complex), TypeError, "an array of complex128: expected floats in 0..1 or integers"),
        (Image.new("F", (4, 4)), ValueError, "mode F: convert it to RGB"),
        (np.zeros((4, 4, 3), np.uint32), TypeError, "an array of uint32"),
        (torch.zeros(4, 4, 3, dtype=torch.complex64), TypeError, "a tensor of torch.complex64"),
        (Image.new("La", (4, 4)), ValueError, "mode La: convert it to RGB"),
        ("dog.png", TypeError, "A picture is a PIL image, an array or a tensor, not str"),
        (None, TypeError, "not NoneType"),
    ],
)
def test_what_is_no_picture_is_refused_with_a_sentence(image, error, sentence):
    with pytest.raises(error, match=sentence):
        preprocess_image(image)


def test_truncated_file_is_refused_with_a_sentence():
    file = io.BytesIO()
    Image.fromarray(noise(200, 200)).save(file, "PNG")
    with pytest.raises(ValueError, match="The picture cannot be read"):
        preprocess_image(Image.open(io.BytesIO(file.getvalue()[:-5000])))


@pytest.mark.parametrize("shape", [(1100, 3), (1, 700), (13, 5000), (30, 20000), (5001, 7), (2, 4001)])
def test_strips_take_the_short_way_to_the_same_pixels(shape, monkeypatch):
    strip = Image.fromarray(noise(*shape))
    short_way = pixels(resize_and_crop(strip)).int()
    monkeypatch.setattr(images, "LARGEST_RESIZED", 10**9)
    long_way = pixels(resize_and_crop(strip)).int()
    assert max(shape) / min(shape) * 224**2 > 2**24
    assert (short_way - long_way).abs().max() <= 1
    assert (short_way != long_way).float().mean() < 1e-3


def test_input_is_left_unchanged():
    array, tensor = noise(40, 50, 4), torch.rand(40, 50, 3) * 3 - 1
    image = Image.fromarray(array)
    before = array.copy(), tensor.clone(), image.tobytes()
    for image_of in (array, tensor, image):
        preprocess_image(image_of)
    assert (array == before[0]).all()
    assert torch.equal(tensor, before[1])
    assert image.tobytes() == before[2]


def test_extreme_shapes_fit_into_memory():
    program = """
import resource, numpy, torch
from PIL import Image
from kosmos_core.images import preprocess_image
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
for size in ((1, 1), (1, 4000), (4000, 1), (1, 60000)):
    assert preprocess_image(Image.new("RGB", size, "red")).shape == (3, 224, 224)
print(peak() - before)
floats = torch.zeros(8000, 8000, 3)
floats += 0.5
before = peak()
assert preprocess_image(floats).shape == (3, 224, 224)
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    strips, square = map(float, done.stdout.split())
    assert strips < 60  # MB
    assert square < 600  # the picture in 8 bits, once in the caller's layout and once in Pillow's


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 64))
def test_any_size_gives_a_square(height, width, size):
    image = Image.fromarray(noise(height, width))
    view = resize_and_crop(image, size)
    assert view.size == (size, size)
    values = preprocess_image(image, size)
    assert values.shape == (3, size, size)
    assert torch.equal(values, normalise(view))


@pytest.mark.parametrize("level", [0, 51, 255])
def test_each_channel_has_its_own_mean_and_deviation(level):
    pixels = preprocess_image(np.full((4, 4, 3), level, np.uint8), 4)[:, 0, 0]
    mean, deviation = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's, as published
    expected = [(level / 255 - m) / d for m, d in zip(mean, deviation, strict=True)]
    torch.testing.assert_close(pixels, torch.tensor(expected))
