"""FID through torch-fidelity: against torch-fidelity called directly, against a closed form, and as a command."""

import json
from pathlib import Path

import numpy
import pytest
import torch
import torch_fidelity
from PIL import Image
from torch.nn import functional
from torch.utils.data import Dataset
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

from tests.tiny import drawings as tiny
from training.base.errors import ConfigError
from training.evaluate.__main__ import main
from training.evaluate.coco import _report as coco_report
from training.evaluate.coco import caption_jobs, sample_captions
from training.evaluate.fid import PROTOCOLS, ImageFiles, frechet_distance, name_of_reals, treatments
from training.evaluate.image_generator import Sampling
from training.evaluate.output_folder import OutputFolder

CPU = torch.device("cpu")


class Pixels(FeatureExtractorBase):
    """A feature extractor of torch-fidelity whose 12 features are means over a 2 x 2 grid of the picture."""

    def __init__(self, name, features_list, **kwargs):
        super().__init__(name, features_list)

    @staticmethod
    def get_provided_features_list():
        return ("grid",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "grid"

    @staticmethod
    def can_be_compiled():
        return False

    @staticmethod
    def get_dummy_input_for_compile():
        return torch.zeros(1, 3, 4, 4, dtype=torch.uint8)

    def forward(self, images):
        assert images.dtype == torch.uint8
        return (functional.adaptive_avg_pool2d(images.float(), 2).flatten(1),)


torch_fidelity.register_feature_extractor("pixels", Pixels)


class Noise(Dataset):
    """1 x 1 pictures whose three channels are independent Gaussians, rounded."""

    def __init__(self, count, means, deviations, seed):
        draws = numpy.random.default_rng(seed).normal(means, deviations, (count, 3))
        self.pixels = torch.from_numpy(draws.round().clip(0, 255).astype(numpy.uint8))[:, :, None, None]

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, index):
        return self.pixels[index]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> tuple[list[Path], list[Path]]:
    folder, sets = tmp_path_factory.mktemp("pictures"), []
    for name, offset, size in (("fakes", 0, 300), ("reals", 50, 320)):
        (folder / name).mkdir()
        for number in range(24):
            tiny.drawing(number + offset, size).save(folder / name / f"{number:02d}.png")
        sets.append(sorted((folder / name).iterdir()))
    return sets[0], sets[1]


def distance(fakes, reals, tmp_path, name="reals"):
    return frechet_distance(
        fakes, reals, inception=None, cache=tmp_path, reals_name=name, device=CPU, extractor="pixels", layer="grid"
    )


@pytest.mark.parametrize("protocol", ["kosmosg", "clean"])
def test_fid_equals_torch_fidelity_called_directly(images, protocol, tmp_path):
    for_fakes, for_reals = treatments(protocol)
    fakes, reals = ImageFiles(images[0], for_fakes), ImageFiles(images[1], for_reals)
    for name, files in (("fakes", fakes), ("reals", reals)):
        (tmp_path / name).mkdir()
        for number in range(len(files)):
            Image.fromarray(files[number].permute(1, 2, 0).numpy()).save(tmp_path / name / f"{number}.png")
    direct = torch_fidelity.calculate_metrics(
        input1=str(tmp_path / "fakes"),
        input2=str(tmp_path / "reals"),
        fid=True,
        cuda=False,
        verbose=False,
        feature_extractor="pixels",
        feature_layer_fid="grid",
        cache=False,
        save_cpu_ram=True,
    )
    assert distance(fakes, reals, tmp_path) == pytest.approx(direct["frechet_inception_distance"], rel=1e-6)
    assert direct["frechet_inception_distance"] > 1


def test_fid_of_two_gaussians_is_the_closed_form(tmp_path):
    """For independent channels: sum of squared differences of means and of deviations, each pixel counted 4 times."""
    first, second = ((120, 90, 140), (20, 12, 25)), ((135, 100, 120), (14, 18, 25))
    expected = 4 * sum((a - b) ** 2 for pair in zip(first, second, strict=True) for a, b in zip(*pair, strict=True))
    found = distance(Noise(8_000, *first, seed=1), Noise(8_000, *second, seed=2), tmp_path)
    assert found == pytest.approx(expected, rel=0.03)
    assert distance(Noise(8_000, *first, seed=1), Noise(8_000, *first, seed=3), tmp_path, "same") < 0.01 * expected


def test_inception_itself_runs_from_a_local_file(images, tmp_path):
    """torch-fidelity's own Inception with random weights saved as its weight file: same distance as called directly."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    torch.manual_seed(0)
    weights = {}
    # The class loads weights while it is built, so its names and shapes are caught at that moment.
    original, FeatureExtractorInceptionV3.load_state_dict = FeatureExtractorInceptionV3.load_state_dict, None

    def catch(self, state, *args, **kwargs):
        for name, tensor in self.state_dict().items():
            drawn = (
                torch.randn_like(tensor.float()) * (2 / max(1, tensor[0].numel())) ** 0.5 if tensor.ndim > 1 else None
            )
            weights[name] = torch.ones_like(tensor) if drawn is None else drawn

    path = tmp_path / "weights.pth"
    torch.save({}, path)
    FeatureExtractorInceptionV3.load_state_dict = catch
    try:
        FeatureExtractorInceptionV3("inception-v3-compat", ["64"], feature_extractor_weights_path=str(path))
    finally:
        FeatureExtractorInceptionV3.load_state_dict = original
    torch.save(weights, path)
    fakes, reals = (ImageFiles(files[:4], "pillow") for files in images)
    found = frechet_distance(
        fakes, reals, inception=path, cache=tmp_path / "cache", reals_name="few", device=CPU, layer="64"
    )
    direct = torch_fidelity.calculate_metrics(
        input1=fakes,
        input2=reals,
        fid=True,
        cuda=False,
        verbose=False,
        cache=False,
        save_cpu_ram=True,
        feature_extractor_weights_path=str(path),
        feature_layer_fid="64",
    )
    assert found == pytest.approx(direct["frechet_inception_distance"], rel=1e-4)
    assert found > 0


def test_statistics_of_the_reals_are_kept_and_renewed(images, tmp_path):
    fakes, reals = ImageFiles(images[0], "pillow"), ImageFiles(images[1], "pillow")
    name = name_of_reals(images[1], "clean", None)
    first = distance(fakes, reals, tmp_path, name)

    class Unread(Dataset):
        def __len__(self):
            return 24

        def __getitem__(self, index):
            assert index == 0, "the real pictures were read again"
            return reals[0]

    assert distance(fakes, Unread(), tmp_path, name) == pytest.approx(first)
    assert name_of_reals(images[1][:-1], "clean", None) != name
    assert name_of_reals(images[1], "kosmosg", None) != name


def test_pictures_are_treated_as_each_protocol_says(tmp_path):
    """The original's torchvision (0.14) resized tensors without antialiasing; the clean protocol is Pillow's."""
    from torchvision.transforms import functional as theirs

    assert treatments("kosmosg") == (None, "tensor")
    assert treatments("clean") == ("pillow", "pillow")
    image = tiny.drawing(1, 640).resize((640, 480)).effect_spread(4)
    image.save(tmp_path / "wide.png")
    pixels = theirs.pil_to_tensor(image)
    by_tensor = theirs.center_crop(theirs.resize(pixels / 255, 256, antialias=False), 256)
    ours = ImageFiles([tmp_path / "wide.png"], "tensor")[0]
    assert (ours.int() - (by_tensor * 255).int()).abs().max() <= 1
    by_pillow = theirs.center_crop(theirs.resize(image, 256, theirs.InterpolationMode.BICUBIC), 256)
    assert torch.equal(ImageFiles([tmp_path / "wide.png"], "pillow")[0], theirs.pil_to_tensor(by_pillow))
    assert torch.equal(ImageFiles([tmp_path / "wide.png"], None)[0], pixels)


@pytest.fixture(scope="module")
def coco(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("coco")
    (folder / "val2014").mkdir()
    for number in range(6):
        tiny.drawing(number, 280).save(folder / "val2014" / f"COCO_val2014_{number:012d}.jpg")
    annotations = [{"image_id": i % 6, "id": i, "caption": f"a {c} thing"} for i, c in enumerate("abcdefghij")]
    (folder / "captions.json").write_text(json.dumps({"images": [], "annotations": annotations}))
    return folder / "captions.json", folder / "val2014"


def test_captions_are_sampled_as_the_original_does(coco):
    import random

    entries = json.loads(coco[0].read_text())["annotations"]
    random.seed(0)
    expected = [(entry["image_id"], entry["caption"]) for entry in random.sample(entries, 7)]
    assert sample_captions(coco[0], 7) == expected
    assert len(sample_captions(coco[0], None)) == 10
    assert [job.seed for job in caption_jobs(expected, "kosmosg")] == list(range(7))
    with pytest.raises(ConfigError, match=r"--captions: 11 are asked for, .* holds 10"):
        sample_captions(coco[0], 11)


@pytest.mark.parametrize(("captions", "rows"), [(29_999, 0), (30_000, 2)])
def test_published_distances_stand_beside_those_of_as_many_captions_alone(tmp_path, capsys, captions, rows):
    found = {"kosmosg": dict.fromkeys(PROTOCOLS, 12.0)}
    coco_report(OutputFolder(tmp_path), found, Sampling("ddim", 250, 3.0), captions, 40_504)
    assert (tmp_path / "table.md").read_text().count("published: ") == rows
    assert capsys.readouterr().out.count("published: ") == rows


def test_the_coco_command_prints_both_rows_under_both_protocols(coco, weights, sd, tmp_path, capsys):
    arguments = [
        "coco",
        "--annotations",
        str(coco[0]),
        "--images",
        str(coco[1]),
        "--weights",
        str(weights),
        "--sd",
        str(sd),
        "--captions",
        "4",
        "--steps",
        "1",
        "--size",
        "16",
        "--extractor",
        "pixels",
        "--layer",
        "grid",
        "--output",
        str(tmp_path / "out"),
    ]
    assert main(arguments) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(results["fid"]) == {"kosmosg", "sd15"}
    assert all(set(found) == {"kosmosg", "clean"} for found in results["fid"].values())
    assert results["fid"]["kosmosg"]["clean"] != results["fid"]["sd15"]["clean"]
    assert (results["captions"], results["reals"]) == (4, 6)
    assert results["sampling"] == {"scheduler": "ddim", "steps": 1, "guidance": 3.0, "size": 16}
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| sd15 |" in table
    capsys.readouterr()
    assert main([*arguments, "--resume"]) == 0
    assert json.loads((tmp_path / "out" / "results.json").read_text())["fid"] == results["fid"]


def test_wrong_inputs_of_coco_get_a_sentence(coco, weights, sd, tmp_path, capsys):
    arguments = {
        "--annotations": str(coco[0]),
        "--images": str(coco[1]),
        "--weights": str(weights),
        "--sd": str(sd),
        "--captions": "2",
        "--steps": "1",
        "--size": "16",
        "--output": str(tmp_path / "out"),
        "--rows": "kosmosg",
    }
    (tmp_path / "empty").mkdir()
    (tmp_path / "evil.pth").write_bytes(b"cposix\nsystem\n(S'true'\ntR.")
    for change, sentence in (
        ({"--annotations": str(coco[1])}, "holds no COCO captions"),
        ({"--images": str(tmp_path / "empty")}, "holds 0 pictures"),
        ({"--inception": str(tmp_path / "gone.pth"), "--resume": None}, "is no file; give torch-fidelity's Inception"),
        ({"--inception": str(tmp_path / "evil.pth"), "--resume": None}, "is no plain weight file"),
    ):
        words = [word for pair in (arguments | change).items() for word in pair if word is not None]
        assert main(["coco", *words]) == 2
        assert sentence in capsys.readouterr().err
