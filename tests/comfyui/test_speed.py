"""What a prompt costs that differs little from the one before it: only what is new is computed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from dev.client import Client
from dev.graph import SamplingGraph, link
from dev.server import Server
from kosmos_core import load_model
from tests.comfyui.conftest import IMAGES, save_image
from tests.tiny.kosmos_file import save_tiny_kosmos

TEXT = "a dog <i> with a hat <i> under a tree <i>"
Probed = Callable[[str], Any]
Counts = tuple[int, int]


@pytest.fixture
def fresh_file(server: Server, request: pytest.FixtureRequest) -> Iterator[str]:
    """A Kosmos-G file that the server has never loaded, so that it remembers nothing of it."""
    path = server.folder / f"models/kosmos_g/{request.node.name}.safetensors"
    yield save_tiny_kosmos(path, seed=21).name
    path.unlink()


def counted(client: Client, file: str, *images: str, **changes: Any) -> Counts:
    """How often the vision tower and the language model ran for a graph."""
    seed, text_only = changes.pop("seed", 1), changes.pop("text_only", False)
    graph = SamplingGraph(file)
    graph.clip = link(graph.add("ProbeCounter", clip=graph.clip))
    graph.prompt(changes.pop("text", TEXT), *images)
    graph.nodes[graph.encoder]["inputs"] |= changes
    shown = graph.add("PreviewAny", source=link(graph.add("ProbeCount", after=graph.positive)))
    graph.sample(seed=seed, steps=1)
    if text_only:
        graph.add("ProbeConditioning", conditioning=link(graph.encoder, 2), name="read")
    counts = json.loads(client.run(graph.nodes).text(shown))
    return counts["vision"], counts["decoder"]


def test_only_what_is_new_is_encoded(client: Client, server: Server, fresh_file: str) -> None:
    save_image(server.folder / "input/new.png", seed=7)
    assert counted(client, fresh_file, *IMAGES) == (3, 2)  # the prompt and its negative
    assert counted(client, fresh_file, *IMAGES, seed=2) == (0, 0)
    assert counted(client, fresh_file, IMAGES[0], "new.png", IMAGES[2]) == (1, 1)
    assert counted(client, fresh_file, *IMAGES, text=TEXT + " in the snow") == (0, 1)


def test_the_text_alone_is_encoded_only_where_it_is_needed_and_never_missing(
    client: Client, fresh_file: str, probed: Probed
) -> None:
    assert counted(client, fresh_file, *IMAGES) == (3, 2)
    # The result without text_only is remembered, and must not be taken for one with it.
    assert counted(client, fresh_file, *IMAGES, text_only=True) == (0, 2)
    assert probed("read").condition.shape == (1, 77, 768)
    assert counted(client, fresh_file, *IMAGES, text="a cat <i> <i> <i>", likeness=0.5) == (0, 2)


def test_text_only_without_pictures_is_the_prompt_itself(
    client: Client, server: Server, probed: Probed, fresh_file: str
) -> None:
    assert counted(client, fresh_file, text="a dog", text_only=True) == (0, 2)  # the prompt and its negative
    expected = load_model(server.folder / "models/kosmos_g" / fresh_file).encode("a dog")
    assert torch.allclose(probed("read").condition, expected, atol=1e-5)
