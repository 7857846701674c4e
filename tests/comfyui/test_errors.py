"""Everything that can be typed or connected wrongly: one sentence, at the right node, and the server goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dev.client import Client, ExecutionFailed, ExecutionInterrupted
from dev.graph import SamplingGraph, link
from dev.server import Server
from tests.comfyui.conftest import COMFYUI
from tests.tiny.kosmos_file import save_tiny_kosmos

DOG, HAT = "dog.png", "hat.png"
MISTAKES = {
    "more marks than pictures": (("a dog <i> wearing <i>", DOG), r"More marks than pictures[\s\S]*\^ \(character 19\)"),
    "a mark and no picture": (("a dog <i>",), r"no picture, because none is given[\s\S]*\^"),
    "an unused picture": (("a dog <i>", DOG, HAT), r"(?i)picture 2 is not used in the prompt[\s\S]*\^"),
    "a mark in another spelling": (("a dog [image1]", DOG), r"\[image1\] is not a mark"),
    "an unknown slot": (("a dog <i5>", DOG), r"There is no picture 5[\s\S]*\^"),
    "an empty slot": (("a dog <i> and <i2>", DOG, None, HAT), r"There is no picture 2"),
    "an open parenthesis": (("(a dog <i>:1.2", DOG), r"never closed[\s\S]*\^ \(character 1\)"),
    "a closing parenthesis": (("a dog <i>)", DOG), r"closes nothing[\s\S]*\^"),
    "a weight that is no number": (("(a dog <i>:big)", DOG), r"The weight 'big' is not a number[\s\S]*\^"),
    "a negative weight": (("(a dog <i>:-1)", DOG), r"'-1' must lie between 0"),
    "a prompt that is too long": (("dog " * 2000,), r"tokens, but this model's aligner takes at most \d+"),
}


@pytest.fixture(scope="module")
def good(server: Server) -> Iterator[bytes]:
    """The picture of a right graph before all the wrong ones; afterwards the server must still make the same."""
    client = Client(server.address)
    graph = SamplingGraph().prompt("a dog <i>", DOG).sample()
    before = client.pixels(client.run(graph.nodes), graph.saved).tobytes()
    yield before
    client.post("/free", {"unload_models": True, "free_memory": True})
    assert client.pixels(client.run(graph.nodes), graph.saved).tobytes() == before
    client.close()


@pytest.mark.usefixtures("good")
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_prompt_is_one_sentence_at_the_prompt_node(client: Client, mistake: str) -> None:
    arguments, sentence = MISTAKES[mistake]
    graph = SamplingGraph().prompt(*arguments).sample()
    with pytest.raises(ExecutionFailed, match=sentence) as failed:
        client.run(graph.nodes)
    assert failed.value.node_id == graph.encoder
    assert failed.value.node_type == "KosmosGTextEncode"


@pytest.mark.usefixtures("good")
def test_a_mark_in_the_negative_without_a_picture_is_refused(client: Client) -> None:
    graph = SamplingGraph().prompt("a dog <i>", DOG, negative="a hat <i>").sample()
    with pytest.raises(ExecutionFailed, match=r"In the negative prompt: More marks than pictures: picture 1"):
        client.run(graph.nodes)


@pytest.mark.usefixtures("good")
def test_a_mark_in_core_text_encode_is_refused_with_the_caret(client: Client) -> None:
    graph = SamplingGraph()
    graph.positive = graph.negative = link(graph.add("CLIPTextEncode", clip=graph.clip, text="a dog <i>"))
    with pytest.raises(ExecutionFailed, match=r"no picture, because none is given[\s\S]*\^"):
        client.run(graph.sample().nodes)


@pytest.mark.usefixtures("good")
def test_batches_of_different_sizes_are_refused_by_the_names_of_their_inputs(client: Client) -> None:
    graph = SamplingGraph()
    one = link(graph.add("LoadImage", image=DOG))
    two = link(graph.add("RepeatImageBatch", image=one, amount=2))
    three = link(graph.add("RepeatImageBatch", image=one, amount=3))
    graph.encoder = graph.add(
        "KosmosGTextEncode",
        clip=graph.clip,
        text="a dog <i> and <i>",
        image_1=two,
        image_2=three,
        batch="one conditioning per picture",
    )
    graph.positive, graph.negative = link(graph.encoder, 0), link(graph.encoder, 1)
    with pytest.raises(ExecutionFailed, match=r"image_1 has 2, image_2 has 3"):
        client.run(graph.sample().nodes)


@pytest.mark.usefixtures("good")
def test_a_picture_of_nan_is_refused_by_the_name_of_its_input(client: Client) -> None:
    graph = SamplingGraph()
    broken = graph.add("ProbeBrokenImage")
    graph.encoder = graph.add("KosmosGTextEncode", clip=graph.clip, text="a dog <i3>", image_3=link(broken))
    graph.positive, graph.negative = link(graph.encoder, 0), link(graph.encoder, 1)
    with pytest.raises(ExecutionFailed, match=r"image_3: The picture holds NaN"):
        client.run(graph.sample().nodes)


@pytest.fixture
def plain_clip(server: Server) -> Iterator[str]:
    """The text encoder of Stable Diffusion 1.5 with zeros for weights, as a file that CLIPLoader takes."""
    width, tensors = 768, {}
    shapes = {
        "embeddings.token_embedding.weight": (49408, width),
        "embeddings.position_embedding.weight": (77, width),
        "final_layer_norm.weight": (width,),
        "final_layer_norm.bias": (width,),
    }
    for layer in range(12):
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= {f"encoder.layers.{layer}.self_attn.{name}.{kind}": (width,) * n for kind, n in KINDS}
        for name in ("layer_norm1", "layer_norm2"):
            shapes |= {f"encoder.layers.{layer}.{name}.{kind}": (width,) for kind, _ in KINDS}
        shapes[f"encoder.layers.{layer}.mlp.fc1.weight"] = (4 * width, width)
        shapes[f"encoder.layers.{layer}.mlp.fc1.bias"] = (4 * width,)
        shapes[f"encoder.layers.{layer}.mlp.fc2.weight"] = (width, 4 * width)
        shapes[f"encoder.layers.{layer}.mlp.fc2.bias"] = (width,)
    tensors = {f"text_model.{name}": torch.zeros(shape, dtype=torch.float16) for name, shape in shapes.items()}
    path = server.folder / "models/text_encoders/clip.safetensors"
    save_file(tensors, path)
    yield path.name
    path.unlink()


KINDS = (("weight", 2), ("bias", 1))


@pytest.mark.usefixtures("good")
def test_an_ordinary_clip_is_refused_with_the_name_of_the_right_node(client: Client, plain_clip: str) -> None:
    graph = SamplingGraph()
    graph.clip = link(graph.add("CLIPLoader", clip_name=plain_clip, type="stable_diffusion"))
    with pytest.raises(ExecutionFailed, match=r"ordinary text encoder.*connect the CLIP of Load Kosmos-G"):
        client.run(graph.prompt("a dog <i>", DOG).sample().nodes)


@pytest.mark.usefixtures("good")
def test_the_missing_clip_of_a_checkpoint_without_one_is_refused(client: Client) -> None:
    graph = SamplingGraph()
    graph.clip = link(graph.checkpoint, 1)
    with pytest.raises(ExecutionFailed, match=r"clip got nothing.*connect the CLIP of Load Kosmos-G"):
        client.run(graph.prompt("a dog <i>", DOG).sample().nodes)


@pytest.fixture
def slow_file(server: Server) -> Iterator[Path]:
    """A Kosmos-G file whose vision tower takes seconds for a picture: few weights, but 3,137 patches."""
    path = server.folder / "models/kosmos_g/slow.safetensors"
    yield save_tiny_kosmos(path, patch_size=4, layers=16)
    path.unlink()


def test_an_interrupt_stops_the_encoding_within_a_second(client: Client, slow_file: Path) -> None:
    graph = SamplingGraph(slow_file.name).prompt("<i> <i> <i>", DOG, HAT, "tree.png").sample()
    steps, pressed = [], []

    def press_after_the_first_blocks(kind: str, data: dict) -> None:
        if kind == "progress" and data["node"] == graph.encoder:
            steps.append((data["value"], data["max"]))
            if len(steps) == 3:
                pressed.append(time.monotonic())
                threading.Thread(target=client.interrupt).start()

    with pytest.raises(ExecutionInterrupted):
        client.run(graph.nodes, press_after_the_first_blocks)
    assert time.monotonic() - pressed[0] < 1.0
    done, total = steps[-1]
    assert done < total / 2, "the encoding was nearly over, so this proves nothing"


def test_the_progress_bar_reaches_its_end_even_when_the_picture_is_remembered(client: Client) -> None:
    for text in ("an old car <i> and a cat", "an old car <i> and a bird"):
        graph = SamplingGraph().prompt(text, DOG)
        graph.add("ProbeConditioning", conditioning=graph.positive, name="progress")
        run = client.run(graph.nodes)
        progress = (data for kind, data in run.events if kind == "progress" and data["node"] == graph.encoder)
        steps = [(data["value"], data["max"]) for data in progress]
        assert len(steps) > (3 if COMFYUI < (0, 12) else 0)  # later ones send a few of them only
        assert steps == sorted(steps)
        assert steps[-1][0] == steps[-1][1]


@pytest.mark.usefixtures("good")
@pytest.mark.parametrize(("text", "said"), [("dog " * 600, r"tokens \(pieces"), ("x" * 200_001, "200,001 characters")])
def test_a_prompt_that_the_model_has_no_places_for_is_counted_before_it_is_encoded(
    client: Client, text: str, said: str
) -> None:
    graph = SamplingGraph()
    graph.positive = graph.negative = link(graph.add("CLIPTextEncode", clip=graph.clip, text=text))
    with pytest.raises(ExecutionFailed, match=said):
        client.run(graph.sample().nodes)
