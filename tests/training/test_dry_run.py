"""The whole road on photographs: five trainings, each from the one before, into one file that encodes prompts."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from dev import recipe_page
from dev.dry_run import STEPS
from kosmos_core import load_model
from kosmos_core.weights import read_config
from training import smoke

LAST = "kosmos-g.safetensors"
FILES = {name: f"kosmos2-{name}.safetensors" for name in STEPS} | {"several": LAST}
BUDGET = 180  # seconds of one core


def _records(folder: Path, step: str) -> list[dict]:
    return [json.loads(line) for line in (folder / "runs/kosmos2" / step / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("step", STEPS)
def test_each_training_ends_in_a_weight_file_that_says_where_it_comes_from(dry_run: Path, step: str):
    config, description = read_config(dry_run / FILES[step])
    assert description["stage"] == {"lm": "lm", "align": "align"}.get(step, "instruct")
    assert description["provenance"]["step"] == description["provenance"]["config"]["steps"] == STEPS[step]
    assert (config.aligner is None) == (step == "lm")
    assert load_model(dry_run / FILES[step]).tokenizer.encode("a cat")


def test_losses_of_language_model_and_alignment_fall(dry_run: Path):
    for step in ("lm", "align"):
        losses = [record["loss"] for record in _records(dry_run, step) if "loss" in record]
        assert losses[-1] < 0.75 * losses[0], step


def test_each_training_begins_with_the_weights_of_the_one_before(dry_run: Path):
    states = {step: load_model(dry_run / file).state_dict() for step, file in FILES.items()}
    before = {name: tensor for name, tensor in states["lm"].items() if not name.startswith("aligner.")}
    assert all(torch.equal(states["align"][name], tensor) for name, tensor in before.items())
    for first, second in (("align", "picture-text"), ("picture-text", "single"), ("single", "several")):
        trained = {name for name, tensor in states[second].items() if not torch.equal(states[first][name], tensor)}
        frozen = {
            name
            for name in states[second]
            if name.startswith("vision.") and ".1." not in name and "norm_post" not in name
        }
        assert not trained & frozen
        assert {name.split(".")[0] for name in trained} >= {"decoder", "aligner"}
    assert "vision.blocks.1.feed_forward.fc1.weight" in trained
    assert {name.split(".")[0] for name in trained} == {"vision", "resampler", "decoder", "aligner"}


@torch.no_grad()
def test_last_file_tells_prompts_and_pictures_apart(dry_run: Path):
    model = load_model(dry_run / LAST)
    red, blue = (Image.new("RGB", (64, 64), colour) for colour in ("red", "blue"))
    with_red, with_blue, text = (
        model.encode("a cat <i>", [red]),
        model.encode("a cat <i>", [blue]),
        model.encode("a cat"),
    )
    assert with_red.shape == (1, 77, 768)
    assert not torch.allclose(with_red, with_blue, atol=1e-5)
    assert not torch.allclose(with_red, text, atol=1e-3)


def test_prompts_are_sampled_to_a_grid(dry_run: Path):
    images = sorted((dry_run / "runs/kosmos2/several/samples").glob("*.png"))
    assert images
    sheet = Image.open(images[-1])
    assert (sheet.width % 192, sheet.height) == (0, 18 + 3 * (192 + 18))
    samples = sheet.crop((sheet.width - 2 * 192, 36, sheet.width, 36 + 192))
    assert samples.getextrema() != ((255, 255), (255, 255), (255, 255))


@pytest.mark.parametrize("step", STEPS)
def test_records_go_to_tensorboard_unasked(dry_run: Path, step: str):
    assert list((dry_run / "runs/kosmos2" / step / "tensorboard").glob("events.out.tfevents*"))


def test_where_the_weights_come_from_is_said(dry_run: Path):
    said = (dry_run / "output.txt").read_text()
    assert "weights: kosmos-2-patch14-224: 93 tensors for decoder, resampler, vision" in said
    assert "tensors initialised anew: aligner." in said
    assert "tensors not used, such as aligner.reconstruction" in said


def test_the_road_is_the_one_of_the_page(dry_run: Path):
    """Every command of the page's own that the toy road runs is on the page, with the same folders and files."""
    page = recipe_page.PAGE.read_text()
    said = (dry_run / "output.txt").read_text()
    commands = {re.sub(r" --.*", "", line[2:]) for line in said.splitlines() if line.startswith("$ ")}
    for command in commands - {"python -m training.run", "python -m training.construct"}:
        if "training.data.lint" in command:
            assert re.search(rf"for set in [\w/ ]*\b{command.rpartition('data/')[2]}\b", page), command
        elif "runs/kosmos2/lm" not in command:
            assert command in page, command
    assert said.count("Fit for training.") == 5


def test_the_road_stays_within_its_time(dry_run: Path):
    (seconds,) = re.findall(r"\((\d+) s of one core\)", (dry_run / "output.txt").read_text())
    assert int(seconds) <= BUDGET


def test_the_card_tells_data_steps_and_held_out_figures(dry_run: Path):
    card = (dry_run / "card.md").read_text()
    assert yaml.safe_load(card.split("---\n")[1])["license"] == "other"
    assert "# kosmos-g\n" in card
    assert f"| step | {STEPS['several']} of {STEPS['several']}, last weights |" in card
    assert f"- before that instruct, {STEPS['single']} steps, on captions, constructed, subjects\n" in card
    assert f"- before that align, {STEPS['align']} steps, on captions\n" in card
    assert re.search(r"\| edits \| `edits` \| auto \| 2 \| \d+ \|", card)
    last = _records(dry_run, "several")[-1]
    assert f"| validate/diffusion | {last['validate/diffusion']:.4g} |" in card
    assert f"| loss | {last['loss']:.4g} |" in card


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert smoke.main(["--folder", str(tmp_path)]) == 2
    assert f"error: --folder {tmp_path} holds something else than a smoke run" in capsys.readouterr().err
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert smoke.main(["--folder", str(tmp_path / "mine.txt")]) == 2
    assert f"error: --folder {tmp_path / 'mine.txt'} is a file; choose a folder that" in capsys.readouterr().err
    assert (tmp_path / "mine.txt").read_text() == "mine"
