"""The smoke chain: three stages, each from the one before, into one file that encodes prompts."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from kosmos_core import load_model
from kosmos_core.weights import read_config

STAGES = ("lm", "align", "instruct")


def _records(folder: Path, stage: str) -> list[dict]:
    return [json.loads(line) for line in (folder / stage / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_ends_in_a_weight_file_that_says_where_it_comes_from(smoke_run: Path, stage: str):
    config, description = read_config(smoke_run / f"{stage}.safetensors")
    assert description["stage"] == stage
    assert description["provenance"]["step"] == description["provenance"]["config"]["steps"]
    assert (config.aligner is None) == (stage == "lm")
    assert load_model(smoke_run / f"{stage}.safetensors").tokenizer.encode("a red circle")


def test_losses_of_language_model_and_alignment_fall(smoke_run: Path):
    for stage in ("lm", "align"):
        losses = [record["loss"] for record in _records(smoke_run, stage) if "loss" in record]
        assert losses[-1] < 0.75 * losses[0], stage


def test_each_stage_begins_with_the_weights_of_the_one_before(smoke_run: Path):
    lm, align, instruct = (load_model(smoke_run / f"{stage}.safetensors").state_dict() for stage in STAGES)
    before = {name: tensor for name, tensor in lm.items() if not name.startswith("aligner.")}
    assert all(torch.equal(align[name], tensor) for name, tensor in before.items())
    trained = {name for name, tensor in instruct.items() if not torch.equal(align[name], tensor)}
    frozen = {name for name in instruct if name.startswith("vision.") and ".1." not in name and "norm_post" not in name}
    assert not trained & frozen
    assert "vision.blocks.1.feed_forward.fc1.weight" in trained
    assert {name.split(".")[0] for name in trained} == {"vision", "resampler", "decoder", "aligner"}


@torch.no_grad()
def test_last_file_tells_prompts_and_pictures_apart(smoke_run: Path):
    model = load_model(smoke_run / "instruct.safetensors")
    red, blue = (Image.new("RGB", (64, 64), colour) for colour in ("red", "blue"))
    with_red, with_blue, text = (
        model.encode("a circle <i>", [red]),
        model.encode("a circle <i>", [blue]),
        model.encode("a circle"),
    )
    assert with_red.shape == (1, 77, 768)
    assert not torch.allclose(with_red, with_blue, atol=1e-5)
    assert not torch.allclose(with_red, text, atol=1e-3)


def test_prompts_are_sampled_to_a_grid(smoke_run: Path):
    images = sorted((smoke_run / "instruct" / "samples").glob("*.png"))
    assert images
    sheet = Image.open(images[-1])
    assert sheet.size == (4 * 192, 18 + 3 * (192 + 18))
    samples = sheet.crop((2 * 192, 36, 4 * 192, 36 + 192))
    assert samples.getextrema() != ((255, 255), (255, 255), (255, 255))


@pytest.mark.parametrize("stage", STAGES)
def test_records_go_to_tensorboard_unasked(smoke_run: Path, stage: str):
    assert list((smoke_run / stage / "tensorboard").glob("events.out.tfevents*"))


def test_where_the_weights_come_from_is_said(smoke_run: Path):
    said = (smoke_run / "output.txt").read_text()
    assert "weights: none given, initialised from seed 0" in said
    assert "tensors initialised anew: aligner." in said
    assert "tensors not used, such as aligner.reconstruction" in said
