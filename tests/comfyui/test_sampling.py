"""The picture: it depends on what it should depend on, and on nothing else."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dev.client import Client
from dev.graph import SamplingGraph, link
from dev.server import Server

TEXT = "a dog <i> at the beach"


def image(client: Client, graph: SamplingGraph) -> np.ndarray:
    """The sampled picture in 16-bit integers, so that differences do not wrap."""
    return client.pixels(client.run(graph.nodes), graph.saved)[0].astype(np.int16)


def difference(first: np.ndarray, second: np.ndarray) -> float:
    """Mean absolute difference in levels of 255."""
    return float(np.abs(first - second).mean())


@pytest.fixture
def plain(client: Client) -> np.ndarray:
    return image(client, SamplingGraph().prompt(TEXT, "dog.png").sample())


def test_another_reference_picture_changes_the_result(client: Client, plain: np.ndarray) -> None:
    assert difference(plain, image(client, SamplingGraph().prompt(TEXT, "tree.png").sample())) > 1


def test_another_text_changes_the_result(client: Client, plain: np.ndarray) -> None:
    changed = SamplingGraph().prompt("a dog <i> in the snow", "dog.png").sample()
    assert difference(plain, image(client, changed)) > 1


def test_another_negative_changes_the_result(client: Client, plain: np.ndarray) -> None:
    changed = SamplingGraph().prompt(TEXT, "dog.png", negative="a red car").sample()
    assert difference(plain, image(client, changed)) > 1


def with_controlnet(hint: str, strength: float) -> SamplingGraph:
    graph = SamplingGraph().prompt(TEXT, "dog.png")
    net = graph.add("ControlNetLoader", control_net_name="tiny.safetensors")
    image = graph.add("LoadImage", image=hint)
    applied = graph.add(
        "ControlNetApplyAdvanced",
        positive=graph.positive,
        negative=graph.negative,
        control_net=link(net),
        image=link(image),
        strength=strength,
        start_percent=0.0,
        end_percent=1.0,
    )
    graph.positive, graph.negative = link(applied, 0), link(applied, 1)
    return graph.sample()


def test_a_controlnet_and_its_hint_change_the_result(client: Client, plain: np.ndarray) -> None:
    hat, tree = (image(client, with_controlnet(hint, 1.0)) for hint in ("hat.png", "tree.png"))
    assert difference(plain, hat) > 1
    assert difference(hat, tree) > 1
    assert difference(plain, image(client, with_controlnet("hat.png", 0.0))) == 0


def with_lora(strength: float) -> SamplingGraph:
    graph = SamplingGraph()
    lora = graph.add(
        "LoraLoader",
        model=graph.model,
        clip=graph.clip,
        lora_name="tiny.safetensors",
        strength_model=strength,
        strength_clip=1.0,
    )
    graph.model, graph.clip = link(lora, 0), link(lora, 1)
    return graph.prompt(TEXT, "dog.png").sample()


def test_a_lora_changes_the_result_and_one_line_says_what_of_it_does_not_apply(
    client: Client, server: Server, plain: np.ndarray
) -> None:
    line = "a LoRA's U-Net part applies, its text encoder keys do not"
    before = server.log.count(line)
    assert difference(plain, image(client, with_lora(1.0))) > 1
    assert server.log.count(line) == before + 1
    assert difference(plain, image(client, with_lora(0.0))) == 0


def test_a_lora_hook_scheduled_through_the_clip_works(client: Client, plain: np.ndarray) -> None:
    graph = SamplingGraph()
    hook = graph.add("CreateHookLora", lora_name="tiny.safetensors", strength_model=1.0, strength_clip=1.0)
    hooked = graph.add("SetClipHooks", clip=graph.clip, hooks=link(hook), apply_to_conds=True, schedule_clip=True)
    graph.clip = link(hooked)
    assert difference(plain, image(client, graph.prompt(TEXT, "dog.png").sample())) > 1


def test_clip_skip_does_nothing_and_says_so(client: Client, server: Server, plain: np.ndarray) -> None:
    graph = SamplingGraph()
    graph.clip = link(graph.add("CLIPSetLastLayer", clip=graph.clip, stop_at_clip_layer=-2))
    assert difference(plain, image(client, graph.prompt(TEXT, "dog.png").sample())) == 0
    assert "no layers to skip" in server.log


def test_after_everything_was_unloaded_the_same_graph_gives_equal_pixels(client: Client, plain: np.ndarray) -> None:
    client.post("/free", {"unload_models": True, "free_memory": True})
    graph = SamplingGraph().prompt(TEXT, "dog.png").sample()
    run = client.run(graph.nodes)
    while graph.encoder not in run.executed_nodes:  # the server frees memory a moment after it was asked to
        run = client.run(graph.nodes)
    assert difference(plain, client.pixels(run, graph.saved)[0].astype(np.int16)) == 0


def test_only_the_sampler_runs_again_when_only_the_seed_changed(client: Client) -> None:
    first = SamplingGraph().prompt(TEXT, "dog.png").sample(seed=1)
    client.run(first.nodes)
    second = SamplingGraph().prompt(TEXT, "dog.png").sample(seed=2)
    assert second.encoder not in client.run(second.nodes).executed_nodes


def test_pictures_and_conditionings_are_left_as_they_were(
    client: Client, images: dict[str, Image.Image], probed: Callable[[str], Any]
) -> None:
    graph = SamplingGraph().prompt(TEXT, "dog.png")
    image = next(node for node, value in graph.nodes.items() if value["class_type"] == "LoadImage")
    graph.add("ProbeConditioning", conditioning=graph.positive, name="early")
    graph.sample()
    graph.add("ProbeConditioning", conditioning=graph.positive, name="late", after=graph.latent)
    graph.add("ProbeImage", image=link(image), name="image", after=graph.latent)
    client.run(graph.nodes)
    assert torch.equal(probed("early").condition, probed("late").condition)
    original = torch.from_numpy(np.array(images["dog.png"])).float() / 255
    assert torch.equal(probed("image").tensors["image"][0], original)


def test_one_conditioning_serves_a_batch_of_latents(client: Client) -> None:
    graph = SamplingGraph().prompt(TEXT, "dog.png").sample(batch=2)
    assert client.pixels(client.run(graph.nodes), graph.saved).shape == (2, 64, 64, 3)


def test_a_picture_with_transparency_from_another_node_is_accepted(client: Client) -> None:
    content = io.BytesIO()
    Image.new("RGBA", (50, 30), (255, 0, 0, 0)).save(content, "png")
    client.upload("clear.png", content.getvalue())
    graph = SamplingGraph()
    loaded = graph.add("LoadImage", image="clear.png")
    joined = graph.add("JoinImageWithAlpha", image=link(loaded, 0), alpha=link(loaded, 1))
    graph.encoder = graph.add("KosmosGTextEncode", clip=graph.clip, text="<i>", image_1=link(joined))
    graph.positive, graph.negative = link(graph.encoder, 0), link(graph.encoder, 1)
    assert image(client, graph.sample()).std() > 0
