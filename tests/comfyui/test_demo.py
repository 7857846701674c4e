"""The demo as `make demo` runs it, in a folder of its own."""

from __future__ import annotations

import io
import json
import socket
from pathlib import Path

import pytest
from PIL import Image

from dev import demo


@pytest.mark.usefixtures("comfyui_folder")
def test_the_demo_draws_the_shipped_graph_and_says_what_to_press(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "OUTPUT", tmp_path)
    monkeypatch.setattr("sys.argv", ["demo"])
    assert demo.main() == 0
    printed = capsys.readouterr().out
    assert demo.TRAINED in printed
    assert str(tmp_path / "two_subjects.png") in printed
    assert "/?template=two_subjects&source=kosmos-g" in printed
    image = Image.open(io.BytesIO((tmp_path / "two_subjects.png").read_bytes()))
    assert image.size == (64, 64)
    assert json.loads(image.info["workflow"]) == json.loads(demo.WORKFLOW.read_text(encoding="utf-8"))


def test_without_trained_weights_random_ones_stand_where_the_workflows_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "WORLD", tmp_path / "no world")
    assert demo.prepare(tmp_path / "folder") == demo.RANDOM
    assert all((tmp_path / "folder" / name).is_file() for name in (demo.KOSMOS, demo.CHECKPOINT))


def test_a_port_that_is_taken_or_none_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "OUTPUT", tmp_path / "output")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        for given, said in ((str(port), f"port {port} is taken"), ("70000", "the port is 70000; expected 1 to 65535")):
            monkeypatch.setattr("sys.argv", ["demo", "--port", given])
            with pytest.raises(SystemExit):
                demo.main()
            assert said in capsys.readouterr().err
    assert not (tmp_path / "output").exists()
