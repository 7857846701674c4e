"""Scores with known answers, from real DINO and CLIP classes of tiny size."""

import json
import shutil
from typing import ClassVar

import numpy
import pytest
import torch
from PIL import Image
from torchvision import transforms

from kosmos_core.reference import Encoded, Reference, load_reference, save_reference
from tests.tiny import drawings as tiny
from training.base.errors import ConfigError
from training.base.processes import ProcessGroup
from training.evaluate import dreambench
from training.evaluate.compare import _scores
from training.evaluate.feature_networks import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ClassAttention,
    FeatureNets,
    ImageFeatures,
    foreground_mask,
    prefetched,
    prepare,
)
from training.evaluate.image_generator import Sampling
from training.evaluate.jobs import Job, dreambench_jobs
from training.evaluate.output_folder import OutputFolder
from training.evaluate.protocols import PROTOCOLS
from training.evaluate.score import References, copy_threshold, echo, fidelity, oracle, score
from training.evaluate.statistics import bootstrap_interval, subject_means, summarise
from training.evaluate.subjects import DREAMBENCH, Subject, SubjectSet
from training.evaluate.table import markdown
from training.evaluate.tuned import opened

ALONE = ProcessGroup(rank=0, world_size=1, device=torch.device("cpu"))
SUBJECTS = SubjectSet(
    "shapes",
    tuple(Subject(name, "thing", "object", "01.jpg") for name in ("one", "two", "three")),
    {"object": ("a {} on the beach", "a red {}")},
)


@pytest.fixture(scope="module")
def nets(dino, clip) -> FeatureNets:
    return FeatureNets(dino, clip, torch.device("cpu"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.save_subjects(tmp_path_factory.mktemp("shapes"), {"one": 3, "two": 4, "three": 3})


def references_of(data, nets) -> References:
    images = {s.name: sorted((data / "dataset" / s.name).iterdir()) for s in SUBJECTS.subjects}
    return References.read(images, {s.name: s.picked for s in SUBJECTS.subjects}, nets)


def test_identical_pictures_score_one_and_a_shuffled_pairing_less(data, nets, tmp_path):
    jobs = dreambench_jobs(SUBJECTS, data, PROTOCOLS["kosmosg"])
    references = references_of(data, nets)
    means = {}
    for name, shift in (("right", 0), ("shuffled", 1)):
        folder = OutputFolder(tmp_path / name)
        names = [subject.name for subject in SUBJECTS.subjects]
        for job in jobs:
            shown = names[(names.index(job.group) + shift) % 3]
            (folder.path / job.path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(data / "dataset" / shown / "01.jpg", folder.path / job.path)
        assert score(jobs, references, nets, folder, ALONE, all_references=False) == len(jobs) == 24
        assert score(jobs, references, nets, folder, ALONE, all_references=False) == 0
        for record in list(folder.records("scores").values())[::7]:  # one of each subject, in batches of all
            alone = nets.of_images([folder.path / record["path"]]).clip @ nets.of_texts([record["text"]]).T
            assert record["clip_t"] == pytest.approx(float(alone), abs=1e-5)
        means[name] = summarise(list(folder.records("scores").values()), ("dino", "clip_i", "copy"))
    for metric in ("dino", "clip_i", "copy"):
        assert means["right"][metric]["mean"] == pytest.approx(1, abs=1e-5)
        assert means["shuffled"][metric]["mean"] < means["right"][metric]["mean"] - 1e-4


def test_the_two_protocols_compare_with_one_or_with_all_real_pictures(data, nets):
    references = references_of(data, nets)
    job = dreambench_jobs(SUBJECTS, data, PROTOCOLS["kosmosg"])[0]
    result = nets.of_images([data / "dataset" / "two" / "03.jpg"])
    one = fidelity(result, 0, job, references, False)["dino"]
    real = references.features["one"].dino
    assert one == pytest.approx(float(real[1] @ result.dino[0]), abs=1e-6)
    every = fidelity(result, 0, job, references, True)["dino"]
    assert every == pytest.approx(float((real @ result.dino[0]).mean()), abs=1e-6)


def test_two_subjects_are_averaged_and_listed(data, nets):
    from dataclasses import replace

    references = references_of(data, nets)
    job = replace(dreambench_jobs(SUBJECTS, data, PROTOCOLS["kosmosg"])[0], subjects=("one", "two"))
    result = nets.of_images([data / "dataset" / "one" / "01.jpg"])
    scores = fidelity(result, 0, job, references, False)
    assert scores["dino_per_subject"][0] == pytest.approx(1, abs=1e-5)
    assert scores["dino"] == pytest.approx(sum(scores["dino_per_subject"]) / 2, abs=1e-6)


def test_oracle_echo_and_copy_threshold_follow_from_the_features():
    def features(*angles):
        rows = torch.tensor([[numpy.cos(a), numpy.sin(a)] for a in angles], dtype=torch.float32)
        return ImageFeatures(rows, rows, rows)

    references = References({}, {"one": features(0, numpy.pi / 3, numpy.pi / 3)}, {"one": 0})

    class Job:
        group, subjects, text, tuned = "one", ("one",), "a thing", ()

    [record] = oracle(references, [Job()])
    assert record["dino"] == pytest.approx((0.5 + 0.5 + 1.0) / 3, abs=1e-6)
    assert copy_threshold(references) == pytest.approx(numpy.quantile([0.5, 0.5, 1.0], 0.95), abs=1e-6)

    class Nets:
        def of_texts(self, texts):
            return torch.tensor([[0.0, 1.0]])

    [echoed] = echo(references, [Job(), Job()], Nets(), False)
    assert echoed["dino"] == pytest.approx(1)
    assert echoed["clip_t"] == pytest.approx(0, abs=1e-6)
    with pytest.raises(ConfigError, match="--copy-threshold"):
        copy_threshold(References({}, {"one": features(0)}, {"one": 0}))


def unit(*angles: float) -> torch.Tensor:
    rows = torch.tensor(angles)
    return torch.stack([rows.cos(), rows.sin()], dim=1)


def test_each_score_is_of_its_own_features_and_a_copy_is_one_of_any_shown_picture():
    angles = {"one": (0.0, 0.5), "two": (1.5, 1.0)}  # of the foregrounds; DINO and CLIP are turned by 0.1 and 0.2
    features = {
        name: ImageFeatures(*(unit(*(angle + turn for angle in own)) for turn in (0.1, 0.2, 0.0)))
        for name, own in angles.items()
    }
    references = References({}, features, {"one": 0, "two": 1})

    class Job:
        subjects, tuned = ("one", "two"), ()

    result = ImageFeatures(unit(3.0, 0.9), unit(3.0, 0.8), unit(3.0, 0.7))
    scores = fidelity(result, 1, Job(), references, True)
    cosines = torch.tensor([[0.8, 0.3], [0.7, 0.2]]).cos()
    assert scores["dino"] == pytest.approx(float(cosines.mean()), abs=1e-6)
    assert scores["dino_per_subject"] == pytest.approx(cosines.mean(1).tolist(), abs=1e-6)
    assert scores["clip_i"] == pytest.approx(float(torch.tensor([0.6, 0.1, 0.9, 0.4]).cos().mean()), abs=1e-6)
    assert scores["copy"] == pytest.approx(float(torch.tensor(0.3).cos()), abs=1e-6)  # to `two`, the nearest


def test_a_comparison_scores_each_picture_against_the_mean_of_those_it_was_shown(tmp_path):
    class Nets:
        """Features by the name of a file or by a text."""

        rows: ClassVar = {"made.png": 0.0, "other.png": 2.0, "a.png": 0.5, "b.png": 1.0, "a dog": 0.25, "a hat": 2.5}

        def of_images(self, paths):
            angles = [self.rows[path.name] for path in paths]
            return ImageFeatures(unit(*angles), unit(*(angle / 2 for angle in angles)), unit(*angles))

        def of_texts(self, texts):
            return unit(*(self.rows[text] for text in texts))

    shown = tmp_path / "a.png", tmp_path / "b.png"
    jobs = [
        Job("other.png", "a hat", "a hat", (), ("m",), 1),
        Job("made.png", "a dog <i> <i>", "a dog", shown, ("m",), 2),
    ]
    other, made = _scores(jobs, Nets(), OutputFolder(tmp_path))
    assert made["dino"] == pytest.approx(float(torch.tensor([0.5, 1.0]).cos().mean()), abs=1e-6)
    assert made["clip_i"] == pytest.approx(float(torch.tensor([0.25, 0.5]).cos().mean()), abs=1e-6)
    assert made["clip_t"] == pytest.approx(float(torch.tensor(0.25).cos()), abs=1e-6)
    assert other["clip_t"] == pytest.approx(float(torch.tensor(1.5).cos()), abs=1e-6)
    assert "dino" not in other


def test_averages_are_those_of_a_table_made_by_hand():
    records = [
        {"subject": "a", "dino": 0.2},
        {"subject": "a", "dino": 0.4},
        {"subject": "a", "dino": 0.6},
        {"subject": "b", "dino": 1.0},
        {"subject": "c", "dino": 0.0},
        {"subject": "c", "dino": 0.2},
    ]
    assert subject_means(records, "dino") == pytest.approx({"a": 0.4, "b": 1.0, "c": 0.1})
    summary = summarise(records, ("dino", "clip_t"))
    assert summary["dino"]["mean"] == pytest.approx(0.5)
    assert summary["dino"]["subjects"] == 3
    assert summary["clip_t"] is None
    table = markdown("Title", {"ours": summary, "theirs": {"dino": 0.25}}, {"dino": "DINO", "clip_t": "CLIP-T"})
    assert "| ours | 0.500 [" in table
    assert "| theirs | 0.250 | - |" in table


def test_bootstrap_intervals_equal_numpys_and_cover_the_mean_95_times_of_100():
    values = numpy.random.default_rng(1).normal(0.7, 0.1, 30)
    generator = numpy.random.default_rng(0)
    places = generator.integers(0, 30, (10_000, 30))
    means = numpy.array([values[row].mean() for row in places])
    assert bootstrap_interval(values) == pytest.approx(tuple(numpy.percentile(means, [2.5, 97.5])))
    normal = 1.96 * values.std() / 30**0.5
    assert bootstrap_interval(values) == pytest.approx((values.mean() - normal, values.mean() + normal), abs=0.004)
    assert bootstrap_interval([0.5]) == (0.5, 0.5)


def test_pictures_are_prepared_as_torchvision_does():
    for size in ((300, 300), (300, 304), (640, 481), (200, 333), (224, 224)):
        image = tiny.drawing(3, 700).resize(size)
        theirs = transforms.Compose(
            [
                transforms.Resize(256, transforms.InterpolationMode.BICUBIC),
                transforms.CenterCrop(224),
                transforms.ToTensor(),
                transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )
        assert torch.allclose(prepare(image, 256, IMAGENET_MEAN, IMAGENET_STD), theirs(image), atol=1e-5)


def test_dino_sees_pictures_of_256_cut_to_224_pixels(nets):
    image = tiny.drawing(3, 640)
    assert torch.equal(nets.prepare(image)[0], prepare(image, 256, IMAGENET_MEAN, IMAGENET_STD))
    assert not torch.allclose(nets.prepare(image)[0], prepare(image, 224, IMAGENET_MEAN, IMAGENET_STD), atol=0.1)


def test_clip_sees_pictures_as_its_own_processor_shows_them(nets, clip):
    from transformers import CLIPImageProcessor

    image = tiny.drawing(3, 640)
    theirs = CLIPImageProcessor.from_pretrained(clip)(images=image, return_tensors="pt")["pixel_values"][0]
    assert (nets.prepare(image)[1] - theirs).abs().max() < 0.05  # its resizing rounds elsewhere


def test_the_foreground_is_where_the_class_token_looks():
    mask = foreground_mask(torch.tensor([[[0.5, 0.2, 0.2, 0.1]] * 2]), 4)
    assert mask[0, 0].tolist() == [[1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_the_class_tokens_attention_is_that_of_the_slow_way(dino):
    from transformers import ViTModel

    model = ViTModel.from_pretrained(dino, add_pooling_layer=False, attn_implementation="eager").eval()
    attention = ClassAttention(model)
    with torch.no_grad():
        slow = model(pixel_values=torch.randn(2, 3, 224, 224), output_attentions=True).attentions[-1]
    assert torch.allclose(attention.weights(), slow[:, :, 0, 1:], atol=1e-6)


def test_features_do_not_depend_on_the_batch(nets, data):
    images = sorted((data / "dataset").rglob("*.jpg"))
    together, alone = nets.of_images(images, batch_size=4, threads=2), nets.of_images(images, batch_size=1)
    for name in ("dino", "clip", "foreground"):
        assert torch.allclose(getattr(together, name), getattr(alone, name), atol=1e-5)
    assert torch.allclose(together.dino.norm(dim=1), torch.ones(len(images)))
    assert list(prefetched(lambda x: x * x, range(200), threads=3)) == [x * x for x in range(200)]


def test_networks_that_are_not_there_are_named(dino, clip, tmp_path):
    with pytest.raises(ConfigError, match=r"--dino: no ViTModel at .*nothing is downloaded"):
        FeatureNets(tmp_path, clip, torch.device("cpu"))
    with pytest.raises(ConfigError, match="--clip: no CLIPModel"):
        FeatureNets(dino, tmp_path, torch.device("cpu"))


def test_records_survive_a_line_cut_short(tmp_path):
    folder = OutputFolder(tmp_path)
    folder.append("scores", [{"path": "a.png", "dino": 1}])
    with (tmp_path / "scores-0.jsonl").open("a") as file:
        file.write('{"path": "b.png", "di')
    assert list(folder.records("scores")) == ["a.png"]
    OutputFolder(tmp_path).append("scores", [{"path": "c.png"}])
    assert [json.loads(line)["path"] for line in (tmp_path / "scores-0.jsonl").open()] == ["a.png", "c.png"]


@pytest.mark.parametrize("left_out", [0, 1])
def test_published_figures_stand_beside_all_subjects_alone_and_a_copy_is_above_the_threshold(
    tmp_path, monkeypatch, left_out
):
    names = [subject.name for subject in DREAMBENCH.subjects][left_out:]
    jobs = [Job(f"pictures/{name}/00_0.png", "<i>", "dog", subjects=(name,)) for name in names]
    figures = {"dino": 0.5, "clip_i": 0.6, "clip_t": 0.7}
    records = {job.path: {**job.record(), **figures, "copy": 0.8} for job in jobs}
    records[jobs[0].path]["copy"] = 0.8 + 1e-6
    folder = OutputFolder(tmp_path)
    monkeypatch.setattr(folder, "records", {"scores": records}.get)
    for name in ("oracle", "echo"):  # rows that need real pictures
        monkeypatch.setattr(dreambench, name, lambda *_: [dict(figures, subject=names[0], copied=0.0)])
    monkeypatch.setattr(dreambench, "subject_sheet", lambda *_: Image.new("RGB", (1, 1)))
    sampling = Sampling("dpmsolver++", 100, 7.5)
    dreambench._report(jobs, None, None, folder, DREAMBENCH, PROTOCOLS["kosmosg"], sampling, 0.8)
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert rows["this model"]["copied"]["mean"] == pytest.approx(1 / len(jobs))
    assert ("published: Kosmos-G (its paper)" in rows) == (not left_out)


def test_a_tuned_reference_has_the_protocols_words_and_not_its_own(tmp_path):
    numbers = torch.rand(4, 8)
    reference = Reference(Encoded(numbers, "", ""), weight=1.4, noun="mug")
    save_reference(tmp_path / "mug.safetensors", numbers, reference, "made by", tuned="{}")
    assert (load_reference(tmp_path / "mug.safetensors").weight, opened(tmp_path / "mug.safetensors").weight) == (
        1.4,
        1,
    )
    assert not opened(tmp_path / "mug.safetensors").noun
