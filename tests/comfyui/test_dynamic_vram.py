"""Weights that ComfyUI brings to the device when they are needed: its default on NVIDIA cards, forced on a CPU here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dev.client import Client, ExecutionFailed
from dev.graph import SamplingGraph, link
from dev.install import COMFYUI_TREE
from dev.server import Server, prepare_folder, running_server
from kosmos_core import load_model
from tests.comfyui.conftest import PROBE_NODES, read_probe, save_image
from tests.tiny.comfyui_files import save_tiny_checkpoint
from tests.tiny.kosmos_file import save_tiny_kosmos

FORCED = Path(__file__).parent / "dynamic_patcher"
FILE, OTHER = "kosmos.safetensors", "other.safetensors"
REFUSAL = "a merge or a hook changed it"


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A ComfyUI that loads every text encoder dynamically."""
    if "class ModelPatcherDynamic" not in (COMFYUI_TREE / "comfy/model_patcher.py").read_text(encoding="utf-8"):
        pytest.skip("this ComfyUI has no dynamic VRAM; run `make test COMFYUI=<folder>` with 0.12 or later")
    folder = prepare_folder(tmp_path_factory.mktemp("dynamic"))
    save_tiny_checkpoint(folder / "models/checkpoints/tiny.safetensors")
    for name, seed in ((FILE, 11), (OTHER, 31)):
        save_tiny_kosmos(folder / "models/kosmos_g" / name, seed=seed)
    for name, pack in (("probe", PROBE_NODES), ("forced", FORCED)):
        (folder / "custom_nodes" / name).symlink_to(pack, target_is_directory=True)
    with running_server(folder, "--fp32-text-enc") as running:
        yield running


@pytest.fixture
def dynamic_client(dynamic: Server) -> Iterator[Client]:
    connection = Client(dynamic.address)
    yield connection
    connection.close()


def graph_of(share: float | None = None) -> SamplingGraph:
    """A graph whose CLIP is the first file's, or a merge that keeps `share` of it."""
    graph = SamplingGraph()
    graph.clip = link(graph.add("ProbeCounter", clip=graph.clip))
    if share is not None:
        other = graph.add("KosmosGLoader", file=OTHER, dtype="auto", device="auto")
        graph.clip = link(graph.add("CLIPMergeSimple", clip1=graph.clip, clip2=link(other), ratio=share))
    return graph


def condition(client: Client, server: Server, graph: SamplingGraph, text: str, **inputs: Any) -> torch.Tensor:
    encoder = graph.add("KosmosGTextEncode", clip=graph.clip, text=text, **inputs)
    graph.add("ProbeConditioning", conditioning=link(encoder), name="dynamic")
    client.run(graph.nodes)
    return read_probe(server, "dynamic").condition


def counted(client: Client, text: str, seed: int) -> dict[str, int]:
    """How often the encoder's parts ran for a prompt."""
    graph = graph_of()
    graph.encoder = graph.add("KosmosGTextEncode", clip=graph.clip, text=text, likeness=1.0 + seed / 100)
    shown = graph.add("PreviewAny", source=link(graph.add("ProbeCount", after=link(graph.encoder))))
    return json.loads(client.run(graph.nodes).text(shown))


def test_a_merge_acts_and_leaves_the_file_as_it_was(dynamic: Server, dynamic_client: Client) -> None:
    first, second = (load_model(dynamic.folder / "models/kosmos_g" / name).encode("a dog") for name in (FILE, OTHER))
    seen = [condition(dynamic_client, dynamic, graph_of(share), "a dog") for share in (None, 0.0, 0.5, None)]
    assert torch.equal(seen[0], first)
    assert torch.allclose(seen[1], second, atol=1e-4)
    assert not torch.allclose(seen[2], second, atol=1e-2)
    assert torch.equal(seen[3], first)
    control = SamplingGraph()
    shown = control.add("PreviewAny", source=link(control.add("ProbeCorePatch", dynamic=True)))
    assert json.loads(dynamic_client.run(control.nodes).text(shown)) > 1e-3  # core's own CLIP heeds its patches too


def test_references_are_saved_loaded_and_used_but_not_with_a_merge(dynamic: Server, dynamic_client: Client) -> None:
    save_image(dynamic.folder / "input/dog.png", 0)

    def saving(share: float | None, name: str) -> SamplingGraph:
        graph = graph_of(share)
        image = link(graph.add("LoadImage", image="dog.png"))
        cut = {"crop": "entity square", "margin": 0.0, "background": "white", "weight": 1.0, "noun": ""}
        reference = graph.add("KosmosGReference", image=image, **cut)
        saved = graph.add("KosmosGSaveReference", clip=graph.clip, reference=link(reference), name=name)
        graph.encoder = saved
        return graph

    graph = saving(None, "saved")
    straight = condition(dynamic_client, dynamic, graph, "a <i>", image_1=link(graph.encoder))
    with pytest.raises(ExecutionFailed, match=REFUSAL):
        dynamic_client.run(saving(0.5, "merged").nodes)
    for share, refused in ((None, False), (0.5, True), (None, False)):
        using = graph_of(share)
        file = link(using.add("KosmosGLoadReference", file="saved.safetensors"))
        if refused:
            with pytest.raises(ExecutionFailed, match=REFUSAL):
                condition(dynamic_client, dynamic, using, "a <i>", image_1=file)
        else:
            assert torch.equal(condition(dynamic_client, dynamic, using, "a <i>", image_1=file), straight)


def test_texts_are_remembered_again_after_a_merge(dynamic: Server, dynamic_client: Client) -> None:
    counted(dynamic_client, "a blue ship", 1)  # starts the count
    assert counted(dynamic_client, "a red ship", 1)["decoder"] == 1  # the negative is known
    assert counted(dynamic_client, "a red ship", 2)["decoder"] == 0
    merged = condition(dynamic_client, dynamic, graph_of(0.5), "a red ship")
    assert counted(dynamic_client, "a red ship", 3)["decoder"] == 2  # the merge's, whose results are not remembered
    assert counted(dynamic_client, "a red ship", 4)["decoder"] == 0
    assert not torch.equal(condition(dynamic_client, dynamic, graph_of(), "a red ship"), merged)


def test_a_second_copy_of_the_weights_can_be_made_for_another_device(dynamic: Server, dynamic_client: Client) -> None:
    if "SelectCLIPDevice" not in dynamic_client.get("/object_info"):
        pytest.skip("this ComfyUI has no Select CLIP Device")
    plain = condition(dynamic_client, dynamic, graph_of(), "a dog")
    graph = graph_of()
    graph.clip = link(graph.add("SelectCLIPDevice", clip=graph.clip, device="cpu"))
    assert torch.equal(condition(dynamic_client, dynamic, graph, "a dog"), plain)
    assert "cannot retarget CLIP" not in dynamic.log
