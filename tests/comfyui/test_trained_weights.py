"""What training exports is what ComfyUI loads."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dev.client import Client
from dev.graph import SamplingGraph
from dev.server import Server
from kosmos_core import load_model


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_the_road_gives_a_file_that_the_loader_takes(
    dry_run: Path, server: Server, client: Client, probed: Callable[[str], Any], images: dict[str, Image.Image]
) -> None:
    shutil.copy(dry_run / "kosmos-g.safetensors", server.folder / "models/kosmos_g/trained.safetensors")
    graph = SamplingGraph(file="trained.safetensors").prompt("a red circle <i>", "dog.png")
    graph.add("ProbeConditioning", conditioning=graph.positive, name="trained")
    client.run(graph.sample(steps=1).nodes)
    expected = load_model(dry_run / "kosmos-g.safetensors").encode("a red circle <i>", [images["dog.png"]])
    assert torch.equal(probed("trained").condition, expected)
