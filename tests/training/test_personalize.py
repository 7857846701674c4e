"""Tuned references: what is tuned, what stays as it is, stopping and going on, and photographs that cannot be used."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import signal
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from kosmos_core import Reference, WeightsError, load_model, preprocess_image, save_model
from kosmos_core.reference import View, average, load_reference
from kosmos_core.safetensors_file import read_header
from tests.tiny.kosmos_file import save_tiny_kosmos
from tests.tiny.stable_diffusion import save_folder, tiny_parts
from training.base.errors import ConfigError
from training.base.precision import LossScale
from training.base.processes import ProcessGroup
from training.base.rng import RowRng
from training.personalize.__main__ import _check, main, parser
from training.personalize.photographs import Sizes, held_out, read_photographs
from training.personalize.several import tasks_of
from training.personalize.subject_run import Models, SubjectTask, _settings, _write
from training.personalize.tuning import Progress, Tuning, TuningConfig, prompts_of
from training.personalize.unfinished import load, owned, save

SIDE = 16
SEEN = 224
SIZES = Sizes(painted=SIDE, seen=SEEN)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_kosmos(tmp_path_factory.mktemp("weights") / "kosmos-g.safetensors")


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_folder(tiny_parts(), tmp_path_factory.mktemp("sd"))


def picture(seed: int, side: int = 20) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def photographs(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        picture(number).save(folder / f"{number:02}.png")
    return folder


@pytest.fixture
def run(weights: Path, sd: Path) -> Callable[..., int]:
    def run(images: Path, output: Path, *options: str) -> int:
        paths = ["--weights", weights, "--sd", sd, "--images", images, "--output", output]
        few = ["--size", SIDE, "--batch-size", 2, "--judge-every", 2, "--steps", 6, "--precision", "fp32"]
        return main([str(word) for word in (*paths, *few, *options)])

    return run


def test_a_tuned_file_is_a_reference_beside_others_and_nothing_without_it_changes(run, weights, tmp_path, capsys):
    before = weights.read_bytes()
    output = tmp_path / "rex.safetensors"
    assert run(photographs(tmp_path / "rex", 3), output, "--noun", "dog", "--weight", "1.2", "--patience", "9") == 0
    assert "held out: 02.png" in capsys.readouterr().out
    assert weights.read_bytes() == before
    model, tuned, other = load_model(weights), Reference.load(output), picture(9)
    assert (tuned.noun, tuned.weight, tuned.tuned) == ("dog", 1.2, True)
    together = model.encode("a <i> and a cat <i> at the beach", [tuned, other])
    zero_shot = Reference(_mean(model, [picture(0), picture(1)]), 1.2, "dog")
    assert not torch.equal(together, model.encode("a <i> and a cat <i> at the beach", [zero_shot, other]))
    alone = load_model(weights)
    for prompt, images in (("a cat at the beach", []), ("a cat <i> at the beach", [other])):
        assert torch.equal(model.encode(prompt, images), alone.encode(prompt, images))


def _mean(model, images):
    views = [Reference(View(torch.from_numpy(np.array(image)))) for image in images]
    return average(views, keep_norm=True).source


def test_tuning_starts_at_zero_shot_lowers_its_loss_and_counts_inside_the_masks_alone(weights, sd, tmp_path):
    folder = photographs(tmp_path / "rex", 2)
    mask = np.zeros((20, 20), bool)
    mask[:10, :10] = True
    Image.fromarray(mask).save(folder / "00.mask.png")
    found = read_photographs(folder, SIZES, lambda _: None)
    model, frozen = load_model(weights), tiny_parts()
    config = TuningConfig(steps=12, rate=0.2, batch=4, seed=3)
    tuning = Tuning(
        model, frozen["unet"].eval(), frozen["vae"].eval(), frozen["scheduler"], found, [], "dog", config, "fp32"
    )
    views = torch.stack([model.image_embeddings(one.view) for one in found])
    expected = views.mean(0) * views.norm(dim=-1, keepdim=True).mean(0) / views.mean(0).norm(dim=-1, keepdim=True)
    assert torch.allclose(tuning.start, expected)
    cut = np.where(np.pad(mask[:10, :10], 0)[..., None], np.array(picture(0))[:10, :10], 255).astype(np.uint8)
    assert torch.equal(found[0].view, preprocess_image(Image.fromarray(cut), SEEN))

    rng = RowRng(0, 0)
    shares = tuning.tuned_on.inside
    assert 0 < shares[0].sum() < shares[1].sum() == shares[1].numel()
    parts = [torch.ones_like(shares[0]), shares[0].clone(), 1 - shares[0]]
    with torch.no_grad():
        losses = []
        for part in parts:  # all of the first photograph, its inside and its outside
            shares[0] = part
            losses.append(float(tuning.errors(tuning.start, tuning.tuned_on, rng, 2, spread=True)[0]))
    sums = [loss * float(part.sum()) for loss, part in zip(losses, parts, strict=True)]
    assert sums[0] == pytest.approx(sums[1] + sums[2], rel=1e-4)
    assert losses[1] != losses[2]

    first = tuning.judge()
    while not tuning.finished():
        tuning.step()
    assert tuning.judge() < first
    assert tuning.progress.best_step == 12
    best = tuning.progress.best.clone()
    tuning.step()
    assert torch.equal(tuning.progress.best, best)


def test_a_stopped_tuning_goes_on_to_the_same_file(run, tmp_path, capsys, monkeypatch):
    folder, whole, halves = (
        photographs(tmp_path / "rex", 3),
        tmp_path / "whole.safetensors",
        tmp_path / "rex.safetensors",
    )
    assert run(folder, whole) == 0
    step = Tuning.step

    def stopped(tuning: Tuning) -> float:
        if tuning.progress.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(tuning)

    with monkeypatch.context() as changed:
        changed.setattr(Tuning, "step", stopped)
        assert run(folder, halves) == 128 + signal.SIGTERM
    assert not halves.exists()
    assert "Stopped by SIGTERM" in capsys.readouterr().err
    assert run(folder, halves) == 2
    assert "add --resume" in capsys.readouterr().err
    assert run(folder, halves, "--resume", "--rate", "0.2") == 2
    assert "begun with another rate (0.1, now 0.2)" in capsys.readouterr().err
    assert run(folder, halves, "--resume") == 0
    assert "going on after step 3" in capsys.readouterr().out
    one, other = load_reference(whole).source, load_reference(halves).source
    assert torch.equal(one.image_embeddings, other.image_embeddings)
    assert [path.name for path in tmp_path.glob("*.unfinished")] == []
    assert run(folder, halves) == 2
    assert "exists already" in capsys.readouterr().err


def test_what_a_finished_file_was_made_with_is_asked_for_before_it_is_kept(run, weights, tmp_path, capsys):
    folder, output = photographs(tmp_path / "rex", 2), tmp_path / "rex.safetensors"
    assert run(folder, output, "--steps", "1", "--resume") == 0
    assert "rex: no tuning of it was stopped; it begins anew" in capsys.readouterr().out
    before = output.read_bytes()
    for words, told in (
        (["--rate", "0.2"], "was made with another rate (0.1, now 0.2); give what it was made with, or remove rex."),
        (["--size", "24"], "with another size (16, now 24)"),
        (["--weight", "1.5"], "with another weight (1.0, now 1.5)"),
        (["--noun", "dog"], "with another noun (none, now dog)"),
        (["--weights", str(save_tiny_kosmos(tmp_path / "other.safetensors", 6))], "with another Kosmos-G file ("),
    ):
        assert run(folder, output, "--steps", "1", "--resume", *words) == 2
        assert told in capsys.readouterr().err
    for name, content, told in (
        ("01.txt", b"<i> at sea", "another set of captions (it differs in 01.png)"),
        ("00.mask.png", (folder / "00.png").read_bytes(), "another set of masks (it differs in 00.png)"),
        ("02.png", (folder / "00.png").read_bytes() + b"x", None),  # a repetition, which is left out
    ):
        (folder / name).write_bytes(content)
        assert run(folder, output, "--steps", "1", "--resume") == (2 if told else 0)
        assert (told or "") in capsys.readouterr().err
        (folder / name).unlink()
    output.write_bytes(weights.read_bytes())
    assert run(folder, output, "--resume") == 2
    assert "is no finished tuning" in capsys.readouterr().err
    output.write_bytes(before)
    assert run(folder, output, "--steps", "1", "--resume") == 0
    assert f"{output} is done already" in capsys.readouterr().out


def test_an_output_is_tuned_by_one_command_at_a_time(run, tmp_path, capsys):
    folder, output = photographs(tmp_path / "rex", 2), tmp_path / "rex.safetensors"
    with owned(output):
        assert run(folder, output) == 2
    assert f"another command is tuning {output}" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rex"]


def test_of_two_that_start_while_another_ends_one_owns_the_output(tmp_path, monkeypatch):
    output, locked = tmp_path / "rex.safetensors", fcntl.flock
    ending, next_one = owned(output), owned(output)
    ending.__enter__()

    def late(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(fcntl, "flock", locked)
        ending.__exit__(None, None, None)  # the file that was opened has no name from here on
        next_one.__enter__()
        locked(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(ConfigError, match="another command is tuning"), owned(output):
        pass
    next_one.__exit__(None, None, None)
    assert list(tmp_path.iterdir()) == []


def test_a_broken_state_is_refused_and_left_alone(run, tmp_path, capsys):
    folder, output = photographs(tmp_path / "rex", 2), tmp_path / "rex.safetensors"
    beside = tmp_path / "rex.safetensors.unfinished"
    beside.write_bytes(b"half")
    assert run(folder, output, "--resume") == 2
    assert "cannot be read" in capsys.readouterr().err
    assert beside.read_bytes() == b"half"


def _damage(folder: Path) -> None:
    path = folder / "01.png"
    path.write_bytes(path.read_bytes()[:200])


def _mark_nothing(folder: Path) -> None:
    Image.new("1", (20, 20)).save(folder / "01.mask.png")


def _turn_the_mask(folder: Path) -> None:
    Image.new("1", (10, 20), 1).save(folder / "01.mask.png")


def _cut_out_the_mask(folder: Path) -> None:
    cut = np.zeros((20, 20, 4), np.uint8)
    cut[5:15, 5:15] = 30, 30, 30, 255  # laid on white, its mask would be what is around it
    Image.fromarray(cut).save(folder / "01.mask.png")


def _share_the_name(folder: Path) -> None:
    (folder / "00.TXT").write_text("<i> at sea")
    (folder / "01.png").rename(folder / "00.webp")


def _repeat(folder: Path) -> None:
    picture(0).save(folder / "01.png")


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_damage, "01.png is left out: it cannot be read"),
        (lambda folder: picture(1, 7).save(folder / "01.png"), "at least 8 of each side, half of --size 16"),
        (_mark_nothing, "01.png is left out: its mask 01.mask.png marks no pixel"),
        (lambda folder: (folder / "01.mask.png").write_bytes(b"x"), "01.png is left out: its mask cannot be read"),
        (lambda folder: (folder / "01.txt").write_bytes(b"\xff\xff\0"), "out: its caption 01.txt cannot"),
        (lambda folder: (folder / "01.txt").write_text("dog " * 9000), "01.txt cannot be read (36,000 bytes, expected"),
        (_turn_the_mask, "01.mask.png has 10 x 20 pixels, another shape than its 20 x 20"),
        (lambda folder: (folder / "01.png").rename(folder / "00.mask.jpg"), "save it as 00.mask.png"),
        (lambda folder: (folder / "01.txt").write_text("<i2> at sea"), "01.txt has <i2>; the subject's mark"),
        (_cut_out_the_mask, "01.mask.png is transparent in parts"),
        (_share_the_name, "00.webp is left out: 00.png has the same name, so that 00.TXT would be of both"),
        (_repeat, "01.png is left out: it is the same picture as 00.png"),
    ],
)
def test_a_photograph_that_cannot_be_used_is_named_and_the_rest_goes_on(tmp_path, spoil, told):
    folder, notes = photographs(tmp_path / "rex", 3), []
    spoil(folder)
    assert [one.name for one in read_photographs(folder, SIZES, notes.append)] == ["00.png", "02.png"]
    assert [note for note in notes if told in note] == notes


def test_a_photograph_of_just_half_of_the_size_is_used(tmp_path):
    Image.new("RGB", (SIZES.painted // 2, SIZES.painted)).save(tmp_path / "rex.png")
    assert [one.name for one in read_photographs(tmp_path, SIZES, pytest.fail)] == ["rex.png"]


def test_masks_and_captions_are_found_whatever_the_case_of_their_names(tmp_path):
    folder, notes = tmp_path / "Réx 犬", []
    folder.mkdir()
    turned = Image.Exif()
    turned[0x0112] = 6  # a phone held upright
    picture(1, 20).resize((30, 20)).save(folder / "IMG_1.JPG", exif=turned)
    mask = Image.new("1", (40, 60))  # of the upright photograph, at another size
    mask.paste(1, (0, 0, 40, 30))
    mask.save(folder / "img_1.Mask.PNG")
    (folder / "IMG_1.Txt").write_text("<i> à la plage", encoding="utf-16")
    (found,) = read_photographs(folder, SIZES, notes.append)
    assert (found.name, found.caption, notes) == ("IMG_1.JPG", "<i> à la plage", [])
    assert found.inside is not None
    assert 0 < float(found.inside.mean()) < 1


@pytest.mark.parametrize(("size", "box"), [((40, 20), (20, 0, 40, 20)), ((20, 40), (0, 20, 20, 40))])
def test_a_masked_photograph_is_painted_as_the_square_about_its_subject(tmp_path, size, box):
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    image.save(tmp_path / "rex.png")
    image.crop(box).save(tmp_path / "square.png")
    mask = Image.new("1", size)
    mask.paste(1, (box[2] - 6, box[3] - 6, box[2] - 1, box[3] - 1))
    mask.save(tmp_path / "rex.mask.png")
    masked, square = read_photographs(tmp_path, SIZES, pytest.fail)
    assert torch.equal(masked.target, square.target)
    assert masked.inside[-8:, -8:].sum() == masked.inside.sum() > 0


def test_a_mask_that_was_drawn_anew_is_another_setting_and_so_is_a_caption(tmp_path):
    folder, told = photographs(tmp_path / "rex", 1), []
    for edge, caption in ((5, "a dog"), (9, "a dog"), (9, "a cat")):
        mask = Image.new("1", (20, 20))
        mask.paste(1, (0, 0, edge, edge))
        mask.save(folder / "00.mask.png")
        (folder / "00.txt").write_text(caption)
        task = SubjectTask("rex", "", 1.0, read_photographs(folder, SIZES, pytest.fail), tmp_path / "rex.safetensors")
        told.append(_settings(task, TuningConfig(), "fp32"))
    differences = [{key for key in one if one[key] != other[key]} for one, other in itertools.pairwise(told)]
    assert differences == [{"set of masks"}, {"set of captions"}]


def test_a_tuned_file_tells_the_step_whose_numbers_it_holds(tmp_path):
    found = read_photographs(photographs(tmp_path / "rex", 2), SIZES, pytest.fail)
    task = SubjectTask("rex", "dog", 1.0, found, tmp_path / "rex.safetensors")
    progress = Progress.at(torch.ones(4, 8))
    progress.step, progress.best_step, progress.best_loss, progress.start_loss = 6, 4, 0.5, 0.75
    _write(task, SimpleNamespace(fingerprint="model"), {"rate": 0.1}, SimpleNamespace(progress=progress))
    told = json.loads(read_header(task.output).metadata["tuned"])
    assert (told["steps"], told["loss"]["tuned"], told["loss"]["zero-shot"]) == (4, 0.5, 0.75)
    assert (told["photographs"], told["held out"], told["settings"]) == (["00.png"], ["01.png"], {"rate": 0.1})


@pytest.mark.parametrize("shape", [(4, 16), (5, 8), (8, 4)])
def test_an_unfinished_tuning_of_another_models_size_is_refused(tmp_path, shape):
    output = tmp_path / "rex.safetensors"
    save(output, Progress.at(torch.ones(4, 8)), {"rate": 0.1})
    assert torch.equal(load(output, {"rate": 0.1}, Progress.at(torch.zeros(4, 8))).best, torch.ones(4, 8))
    with pytest.raises(ConfigError, match=r"its embeddings are \(4, 8\), expected \(\d, \d+\)\); remove it"):
        load(output, {"rate": 0.1}, Progress.at(torch.zeros(shape)))


def test_the_rate_of_a_tuning_falls_to_a_tenth():
    tuning = Tuning.__new__(Tuning)
    tuning.config, tuning.scale, tuning.progress = TuningConfig(steps=10, rate=0.1), 2.0, Progress.at(torch.zeros(1, 1))
    moved = []
    for _ in range(10):
        before = float(tuning.progress.embeddings)
        tuning.progress.step += 1
        tuning._update(torch.ones(1, 1))  # of which Adam makes the rate itself
        moved.append(before - float(tuning.progress.embeddings))
    assert moved == pytest.approx([0.2 * (1 - 0.09 * step) for step in range(10)], rel=1e-4)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--size", "12"], "--size: 12 must be a multiple of 8"),
        (["--size", "8"], None),
        (["--snr-bounds", "2", "2"], None),
        (["--snr-bounds", "2", "1"], "--snr-bounds: 2 1 must be two numbers above 0, the lower first"),
        (["--snr-bounds", "0", "1"], "--snr-bounds: 0 1 must be"),
        (["--seed", "0", "--steps", "1", "--patience", "1"], None),
        (["--seed", "-1"], "--seed: -1 must be 0 or more"),
        (["--patience", "0"], "--patience: 0 must be at least 1"),
    ],
)
def test_a_setting_is_taken_to_its_very_limit(words, said):
    options = parser().parse_args(["--weights", "w", "--sd", "s", "--images", "i", "--output", "o", *words])
    with pytest.raises(ConfigError, match=f"^{said}") if said else nullcontext():
        _check(options)


def test_the_noun_of_a_subject_is_its_words_alone(weights, tmp_path):
    words = ["--weights", weights, "--sd", "s", "--images", photographs(tmp_path / "rex", 1), "--noun", "  my \n dog "]
    words += ["--output", tmp_path / "rex.safetensors", "--size", SIDE]
    (task,) = tasks_of(parser().parse_args([str(word) for word in words]), pytest.fail)
    assert (task.name, task.noun, task.weight) == ("rex", "my dog", 1.0)


def test_a_folder_without_a_usable_photograph_is_refused_before_any_model_is_read(run, tmp_path, capsys):
    empty, output = tmp_path / "empty", tmp_path / "rex.safetensors"
    empty.mkdir()
    (empty / "IMG_1.HEIC").write_bytes(b"x")
    assert run(empty, output) == 2
    assert "holds no photograph, but IMG_1.HEIC" in capsys.readouterr().err
    picture(1, 7).save(empty / "01.png")
    assert run(empty, output) == 2
    printed = capsys.readouterr()
    assert "none of the 1 photographs" in printed.err
    assert "not read: IMG_1.HEIC" in printed.out
    assert run(tmp_path / "missing", output) == 2
    assert "is no folder that can be read" in capsys.readouterr().err
    for name, told in (
        ("rex.png", "is no name of a .safetensors file"),
        (f"{'x' * 300}.safetensors", "has 312 bytes, expected at most 200"),
    ):
        assert run(empty, tmp_path / name) == 2
        assert told in capsys.readouterr().err
    for noun, told in (("<i2>", "holds the mark <i2>"), ("\ud83d", "--noun: Half of a surrogate pair")):
        assert run(empty, output, "--noun", noun) == 2
        assert told in capsys.readouterr().err


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="needs a folder that nobody may write into")
def test_a_folder_that_cannot_be_written_is_refused_before_any_model_is_read(run, tmp_path, capsys):
    assert run(photographs(tmp_path / "rex", 1), Path("/proc/rex.safetensors")) == 2
    assert "--output: /proc cannot be written" in capsys.readouterr().err


def test_what_no_file_may_hold_no_model_reads_and_no_gpu_has_room_for_is_told(run, tmp_path, capsys, monkeypatch):
    folder, output = photographs(tmp_path / "rex", 1), tmp_path / "rex.safetensors"
    assert run(folder, output, "--rate", "1e30") == 2
    assert "--rate: 1e+30 drove the numbers of rex by step 2 beyond what" in capsys.readouterr().err
    (folder / "00.txt").write_text("dog " * 1900)
    assert run(folder, output) == 2
    assert "--images: the caption of 00.png of rex makes a prompt of 5707 tokens" in capsys.readouterr().err
    (folder / "00.txt").unlink()

    def too_much(_: Tuning) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(Tuning, "step", too_much)  # as no CPU has it
    assert run(folder, output) == 2
    assert "--batch-size: 2 draws of 16 x 16 pixels do not fit into the GPU's memory" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["rex"]


def test_of_one_none_is_held_out_and_of_fifty_every_fifth(run, tmp_path, capsys):
    one, fifty = photographs(tmp_path / "one", 1), photographs(tmp_path / "fifty", 50)
    assert run(one, tmp_path / "one.safetensors", "--steps", "2") == 0
    assert "one photograph (00.png), so none is held out" in capsys.readouterr().out
    tuned_on, kept = held_out(read_photographs(fifty, SIZES, print))
    assert (len(tuned_on), len(kept), kept[0].name) == (40, 10, "04.png")
    assert run(fifty, tmp_path / "fifty.safetensors", "--steps", "2") == 0


def test_a_file_tuned_for_another_model_is_refused_even_where_pictures_are_read_alike(run, weights, tmp_path):
    output = tmp_path / "rex.safetensors"
    assert run(photographs(tmp_path / "rex", 2), output, "--steps", "2") == 0
    other = load_model(weights)
    other.decoder.norm.weight.data += 0.5
    with pytest.raises(ValueError, match=r"other weights than .* by now"):
        other.encode("<i>", [Reference.load(output)])
    save_model(other, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"rex\.safetensors was encoded by another Kosmos-G file"):
        load_model(tmp_path / "other.safetensors").encode("<i>", [Reference.load(output)])


def test_several_subjects_in_dreambenchs_layout_and_the_finished_ones_stay(run, tmp_path, capsys):
    data = tmp_path / "data"
    for name in ("mug", "pets/fox"):
        photographs(data / "dataset" / name, 2)
    listed = tmp_path / "subjects.yaml"
    listed.write_text(
        "prompts: {object: ['a {} on the beach']}\n"
        "subjects:\n- {name: mug, noun: mug, kind: object, picked: 00.png}\n"
        "- {name: pets/fox, noun: fox, kind: object, picked: 00.png}\n"
    )
    output = tmp_path / "tuned"
    assert run(data, output, "--subjects", str(listed), "--steps", "1") == 0
    assert {str(path.relative_to(output)): load_reference(path).noun for path in output.rglob("*.safetensors")} == {
        "mug.safetensors": "mug",
        "pets/fox.safetensors": "fox",
    }
    before = (output / "mug.safetensors").stat().st_mtime_ns
    (output / "pets/fox.safetensors").unlink()
    assert run(data, output, "--subjects", str(listed), "--steps", "1", "--resume") == 0
    assert (output / "mug.safetensors").stat().st_mtime_ns == before
    assert (output / "pets/fox.safetensors").exists()
    capsys.readouterr()
    assert run(data, output, "--subjects", str(listed), "--noun", "dog") == 2
    assert "--noun: 'dog', but the nouns are in --subjects" in capsys.readouterr().err
    assert run(output, tmp_path / "other", "--subjects", str(listed)) == 2
    assert f"has no folder {output}/mug or {output}/dataset/mug; give --images the folder" in capsys.readouterr().err
    listed.write_text(listed.read_text().replace("noun: fox", f"noun: {'x' * 201}"))
    assert run(data, tmp_path / "other", "--subjects", str(listed)) == 2
    assert "--subjects: subject 'pets/fox': The noun of a reference has 201 characters" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_captions_say_where_the_subject_stands():
    assert prompts_of("", "") == ["<i>"]
    assert prompts_of("", "apple") == ["<i>", "an apple <i>"]
    assert prompts_of("my dog at the sea", "dog") == ["my dog <i> at the sea"]
    assert prompts_of("A hotdog and My Dog", "dog") == ["A hotdog and My Dog <i>"]
    assert prompts_of("a location", "cat") == ["<i> a location"]
    assert prompts_of("at the sea", "dog") == ["<i> at the sea"]
    assert prompts_of("<i> and a cat", "cat") == ["<i> and a cat"]


def test_a_gradient_that_overflows_changes_nothing_but_the_scale(weights, tmp_path):
    found = read_photographs(photographs(tmp_path / "rex", 1), SIZES, print)
    parts = tiny_parts()
    tuning = Tuning(
        load_model(weights),
        parts["unet"],
        parts["vae"],
        parts["scheduler"],
        found,
        [],
        "",
        TuningConfig(batch=1),
        "fp32",
    )
    tuning.progress.loss_scale = LossScale(2.0**140, dynamic=True)
    tuning.step()
    assert torch.equal(tuning.progress.embeddings, tuning.start)
    assert tuning.progress.loss_scale.value == 2.0**139
    moments = []
    for scale in (1.0, 8.0):
        tuning.progress = Progress.at(tuning.start)
        tuning.progress.loss_scale = LossScale(scale, dynamic=True)
        tuning.step()
        moments.append(tuning.progress.first_moment)
    assert moments[0].any()
    assert torch.equal(*moments)
    tuning.held_out = tuning.tuned_on  # whose loss was lowest at the start
    for step, ended in ((9, False), (10, True)):
        tuning.progress.step = step
        assert tuning.finished() == ended, "two looks in a row, every five steps"


def test_weights_that_give_no_condition_are_refused(run, tmp_path, capsys, weights, sd):
    with pytest.raises(WeightsError, match=r"--weights: .*missing"):
        Models.load(str(tmp_path / "none.safetensors"), str(sd), "fp32", ProcessGroup(0, 1, torch.device("cpu")))
