"""The demo as `make demo` runs it, in a folder of its own."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from dev import demo
from tests.tiny.comfyui_files import save_tiny_checkpoint, save_tiny_lora
from tests.tiny.kosmos_file import save_tiny_kosmos


@pytest.mark.usefixtures("comfyui_folder")
def test_the_demo_draws_the_shipped_graph_and_says_what_its_weights_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "OUTPUT", tmp_path)
    monkeypatch.setattr(demo, "WORLD", tmp_path / "no world")
    monkeypatch.setattr("sys.argv", ["demo"])
    assert demo.main() == 0
    printed = capsys.readouterr().out
    assert "tiny and random" in printed
    assert str(tmp_path / "two_subjects.png") in printed
    assert "/?template=two_subjects&source=kosmos-g-demo" in printed
    image = Image.open(io.BytesIO((tmp_path / "two_subjects.png").read_bytes()))
    assert image.size == (demo.SIZE, demo.SIZE)
    drawn = json.loads(image.info["workflow"])
    shipped = json.loads(demo.WORKFLOW.read_text(encoding="utf-8"))
    assert drawn["links"] == shipped["links"]
    assert [node["type"] for node in drawn["nodes"]] == [node["type"] for node in shipped["nodes"]]


def test_trained_weights_are_found_by_what_is_in_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "WORLD", tmp_path)
    save_tiny_lora(tmp_path / "a.safetensors")
    kosmos = save_tiny_kosmos(tmp_path / "b.safetensors")
    assert demo.world_weights() is None
    checkpoint = save_tiny_checkpoint(tmp_path / "c.safetensors")
    found = demo.world_weights()
    assert (found.kosmos, found.checkpoint) == (kosmos, checkpoint)
    assert "assets/world" in found.remark
    shutil.rmtree(tmp_path)
