"""The pictures of the workflows: what is put together of graph, references and results."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dev.install import ROOT
from dev.thumbnails import GAP, TILE, WIDTH, compose
from dev.world_workflows import IMAGES, WORDS, has_result, in_the_world, save_images

WORKFLOWS = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted((ROOT / "workflows").glob("*.json"))}


def test_references_and_result_are_enlarged_without_blur(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "result.png")
    shown = compose(Image.new("RGB", (800, 400)), [], [tmp_path / "result.png"])
    assert shown.size == (WIDTH, TILE + 2 * GAP + WIDTH // 2)
    left = (WIDTH - TILE - TILE // 4 - GAP) // 2 + TILE // 4 + GAP
    tile = np.asarray(shown)[GAP : GAP + TILE, left : left + TILE]
    assert np.array_equal(tile, pixels.repeat(TILE // 64, 0).repeat(TILE // 64, 1))


def test_a_row_of_two_references_and_a_result_fits() -> None:
    assert 3 * TILE + TILE // 4 + 3 * GAP <= WIDTH


def test_every_workflow_that_the_world_can_draw_has_its_words_and_its_pictures(tmp_path: Path) -> None:
    assert {name for name, workflow in WORKFLOWS.items() if has_result(workflow)} == set(WORDS)
    save_images(tmp_path)
    for name, (images, _) in WORDS.items():
        assert set(images) <= set(IMAGES)
        assert all(Image.open(tmp_path / image).size == (32, 32) for image in images)
        assert name in WORKFLOWS


@pytest.mark.parametrize("name", WORDS)
def test_the_world_changes_names_words_and_sizes_and_leaves_the_graph(name: str) -> None:
    before = json.dumps(WORKFLOWS[name])
    adapted = in_the_world(name, WORKFLOWS[name], "sd.safetensors", "kosmos.safetensors")
    assert json.dumps(WORKFLOWS[name]) == before
    assert adapted["links"] == WORKFLOWS[name]["links"]
    nodes = adapted["nodes"]
    images = [node["widgets_values"][0] for node in nodes if node["type"] == "LoadImage"]
    prompts = [node["widgets_values"][0] for node in nodes if node["type"] == "KosmosGTextEncode"]
    assert sorted(images) == sorted(WORDS[name][0])
    assert "512" not in json.dumps([node.get("widgets_values") for node in nodes])
    assert all("background" in prompt for prompt in prompts)
