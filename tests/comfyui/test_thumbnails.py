"""The pictures of the workflows and the sample images: what is put together of graph, references and results."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from dev.demo import references
from dev.install import ROOT
from dev.sample_images import FOLDER, draw_all
from dev.thumbnails import GAP, LARGEST, TILE, WIDTH, compose, save_small

WORKFLOWS = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted((ROOT / "workflows").glob("*.json"))}


def test_references_and_result_are_enlarged_without_blur(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "result.png")
    shown = compose(Image.new("RGB", (800, 400)), [], [tmp_path / "result.png"])
    assert shown.size == (WIDTH, TILE + 2 * GAP + WIDTH // 2)
    left = (WIDTH - TILE - TILE // 4 - GAP) // 2 + TILE // 4 + GAP
    tile = np.asarray(shown)[GAP : GAP + TILE, left : left + TILE]
    assert np.array_equal(tile, pixels.repeat(TILE // 64, 0).repeat(TILE // 64, 1))


def test_a_row_of_three_references_and_a_result_fits() -> None:
    assert 4 * TILE + TILE // 4 + 4 * GAP <= WIDTH


def test_a_picture_is_kept_small(tmp_path: Path) -> None:
    noise = np.random.default_rng(2).integers(0, 256, (560, 560, 3), dtype=np.uint8)
    path = tmp_path / "noise.jpg"
    Image.fromarray(noise).save(path, quality=82)
    assert path.stat().st_size > LARGEST
    save_small(Image.fromarray(noise), path)
    assert path.stat().st_size <= LARGEST


def test_the_sample_images_are_what_their_script_draws() -> None:
    drawn = draw_all()
    assert sorted(path.name for path in FOLDER.glob("*.png")) == sorted(drawn)
    for name, image in drawn.items():
        shipped = Image.open(FOLDER / name)
        assert shipped.mode == image.mode
        assert np.array_equal(np.asarray(shipped), np.asarray(image))


def test_the_workflows_load_sample_images_alone_and_every_one_of_them() -> None:
    used = {name for workflow in WORKFLOWS.values() for name in references(workflow)}
    assert used == {path.name for path in FOLDER.glob("*.png")}
