"""What ComfyUI's own nodes save of a Kosmos-G CLIP can be loaded again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from dev.client import Client
from dev.graph import SamplingGraph, link
from dev.server import Server
from kosmos_core import KosmosG, load_model
from kosmos_core.reference import model_fingerprint
from kosmos_core.weights import read_config
from tests.tiny.kosmos_file import save_tiny_kosmos

TEXT = "a dog <i>"
Probed = Callable[[str], Any]


@pytest.fixture
def other(server: Server) -> Iterator[str]:
    path = save_tiny_kosmos(server.folder / "models/kosmos_g/saving.safetensors", seed=31)
    yield path.name
    path.unlink()


def saved_by(client: Client, server: Server, graph: SamplingGraph) -> Path:
    """The file that CLIPSave writes of the graph's CLIP; the folder is one that Load Kosmos-G searches."""
    folder = server.folder / "output/clip"
    before = set(folder.glob("*"))
    graph.add("CLIPSave", clip=graph.clip, filename_prefix="clip/kosmos")
    client.run(graph.nodes)
    (path,) = set(folder.glob("*")) - before
    return path


def encode(client: Client, probed: Probed, graph: SamplingGraph) -> torch.Tensor:
    graph.prompt(TEXT, "dog.png")
    graph.add("ProbeConditioning", conditioning=graph.positive, name="saved")
    client.run(graph.nodes)
    return probed("saved").condition


def test_a_saved_merge_loads_with_the_same_result_and_can_be_saved_again(
    client: Client, server: Server, probed: Probed, other: str, images: dict[str, Image.Image]
) -> None:
    merged = SamplingGraph()
    second = merged.add("KosmosGLoader", file=other, dtype="auto", device="auto")
    merged.clip = link(merged.add("CLIPMergeSimple", clip1=merged.clip, clip2=link(second), ratio=0.5))
    path = saved_by(client, server, merged)
    expected = encode(client, probed, merged)
    again = SamplingGraph(path.name)
    assert torch.equal(encode(client, probed, again), expected)
    assert torch.equal(load_model(path).encode(TEXT, [images["dog.png"]]), expected)
    once_more = saved_by(client, server, again)
    assert torch.equal(load_model(once_more).encode(TEXT, [images["dog.png"]]), expected)
    first = server.folder / "models/kosmos_g/kosmos.safetensors"
    assert len({model_fingerprint(file) for file in (path, once_more)}) == 1
    assert model_fingerprint(path) != model_fingerprint(first)
    assert read_config(path)[1]["provenance"]["saved"] == "by ComfyUI, from kosmos.safetensors"


def test_an_unchanged_clip_is_saved_as_it_is_and_references_of_the_one_fit_the_other(
    client: Client, server: Server, reference: KosmosG, images: dict[str, Image.Image]
) -> None:
    path = saved_by(client, server, SamplingGraph())
    assert "saved as a Kosmos-G file, with its tokenizer: press R, and choose the file in Load Kosmos-G" in server.log
    assert torch.equal(load_model(path).encode(TEXT, [images["dog.png"]]), reference.encode(TEXT, [images["dog.png"]]))
    assert model_fingerprint(path) == model_fingerprint(server.folder / "models/kosmos_g/kosmos.safetensors")


def test_a_saved_checkpoint_leaves_the_encoder_out_and_says_so(client: Client, server: Server) -> None:
    graph = SamplingGraph()
    graph.add(
        "CheckpointSave",
        model=graph.model,
        clip=graph.clip,
        vae=link(graph.checkpoint, 2),
        filename_prefix="checkpoints/with",
    )
    client.run(graph.nodes)
    (path,) = (server.folder / "output/checkpoints").glob("with*")
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
    assert any(name.startswith("model.diffusion_model.") for name in names)
    assert not any("resampler" in name or "tokenizer" in name for name in names)
    assert "Kosmos-G is left out of this checkpoint" in server.log
