"""What ComfyUI shows of the pack before anything runs."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from dev.client import Client, PromptRefused
from dev.graph import SamplingGraph
from dev.server import Server
from kosmos_core import KosmosG, KosmosGConfig, save_model
from tests.tiny.comfyui_files import save_tiny_lora
from tests.tiny.kosmos_file import save_tiny_kosmos

NODES = ("KosmosGLoader", "KosmosGTextEncode")


@pytest.fixture
def models(server: Server) -> Path:
    return server.folder / "models"


@pytest.mark.parametrize("node", NODES)
def test_the_node_is_listed_with_words_for_everything(client: Client, node: str) -> None:
    info = client.get(f"/object_info/{node}")[node]
    assert info["display_name"]
    assert info["category"] == "Kosmos-G"
    assert info["description"]
    inputs = {**info["input"]["required"], **info["input"].get("optional", {})}
    assert inputs
    for name, declared in inputs.items():
        assert declared[1].get("tooltip"), f"{node}.{name} has no tooltip"
    assert len(info["output_tooltips"]) == len(info["output"])
    assert all(info["output_tooltips"])


def test_the_prompt_widgets_leave_braces_alone(client: Client) -> None:
    info = client.get("/object_info/KosmosGTextEncode")["KosmosGTextEncode"]["input"]
    assert info["required"]["text"][1]["dynamicPrompts"] is False
    assert info["optional"]["negative"][1]["dynamicPrompts"] is False


def listed_files(client: Client) -> list[str]:
    return client.get("/object_info/KosmosGLoader")["KosmosGLoader"]["input"]["required"]["file"][1]["options"]


def test_files_are_listed_by_content_from_both_folders(client: Client, models: Path) -> None:
    foreign = models / "kosmos_g/kosmos-g-final.safetensors"
    hidden = models / "text_encoders/sub folder/clip_l.safetensors"
    save_tiny_lora(foreign)
    hidden.parent.mkdir(exist_ok=True)
    shutil.copy(models / "kosmos_g/kosmos.safetensors", hidden)
    try:
        listed = listed_files(client)
        assert "sub folder/clip_l.safetensors" in listed
        assert "kosmos.safetensors" in listed
        assert "kosmos-g-final.safetensors" not in listed
        with pytest.raises(PromptRefused, match=r"kosmos-g-final\.safetensors is not a Kosmos-G file.*a LoRA"):
            client.run(SamplingGraph("kosmos-g-final.safetensors").prompt("a dog").sample().nodes)
        run = client.run(SamplingGraph("sub folder/clip_l.safetensors").prompt("a dog").sample().nodes)
        assert run.outputs
    finally:
        foreign.unlink()
        hidden.unlink()


def test_a_missing_file_is_refused_with_the_folders_and_the_way_out(client: Client, models: Path) -> None:
    with pytest.raises(PromptRefused) as refused:
        client.run(SamplingGraph("gone.safetensors").prompt("a dog").sample().nodes)
    sentence = str(refused.value)
    assert "'gone.safetensors'" in sentence
    assert str(models / "kosmos_g") in sentence
    assert str(models / "text_encoders") in sentence
    assert "kosmos.safetensors" in sentence
    assert list(refused.value.node_errors) == ["2"]


def test_a_file_that_was_cut_short_is_refused_with_its_reason(client: Client, models: Path) -> None:
    cut = models / "kosmos_g/cut.safetensors"
    content = (models / "kosmos_g/kosmos.safetensors").read_bytes()
    cut.write_bytes(content[: len(content) // 2])
    try:
        assert "cut.safetensors" not in listed_files(client)
        with pytest.raises(PromptRefused, match="cut short"):
            client.run(SamplingGraph("cut.safetensors").prompt("a dog").sample().nodes)
    finally:
        cut.unlink()


def test_a_file_of_the_first_stage_says_that_it_cannot_condition(client: Client, models: Path) -> None:
    early = models / "kosmos_g/early.safetensors"
    config = dataclasses.replace(KosmosGConfig.tiny(), aligner=None)
    save_model(KosmosG(config).initialize(1), early, stage="lm")
    try:
        with pytest.raises(Exception, match="first stage only") as failed:
            client.run(SamplingGraph("early.safetensors").prompt("a dog").sample().nodes)
        assert failed.value.node_type == "KosmosGLoader"
    finally:
        early.unlink()


def test_a_replaced_file_is_loaded_again(client: Client, models: Path) -> None:
    path = models / "kosmos_g/replaced.safetensors"
    graph = SamplingGraph("replaced.safetensors").prompt("a dog").sample()
    save_tiny_kosmos(path, seed=1)
    try:
        before = client.pixels(client.run(graph.nodes), graph.saved)
        save_tiny_kosmos(path, seed=2)
        after = client.pixels(client.run(graph.nodes), graph.saved)
        assert (before != after).any()
        path.touch()  # the same content with another date
        assert graph.loader not in client.run(graph.nodes).executed_nodes
    finally:
        path.unlink()
