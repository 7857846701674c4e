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
from kosmos_core import KosmosG
from tests.comfyui.conftest import COMFYUI
from tests.tiny.kosmos_file import save_tiny_kosmos

DOG, HAT = "dog.png", "hat.png"
MISTAKES = {
    "more marks than pictures": (
        ("a dog <i> wearing <i>", DOG),
        r"More marks than pictures.*\(at “<i>” after “a dog <i> wearing”, character 19\)$",
    ),
    "a mark and no picture": (("a dog <i>",), r"no picture, because none is given.*at “<i>” after “a dog”"),
    "an unused picture": (
        ("a dog <i>", DOG, HAT),
        r"(?i)picture 2 is not used in the prompt: write <i2>, or give no picture there\.$",
    ),
    "a mark in another spelling": (("a dog [image1]", DOG), r"\[image1\] is not a mark"),
    "a mark from a web page": (("a dog &lt;i&gt;", DOG), r"&lt;i&gt; is not a mark, < and > are escaped in it"),
    "an unknown slot": (("a dog <i5>", DOG), r"There is no picture 5.*at “<i5>” after “a dog”"),
    "an empty slot": (("a dog <i> and <i2>", DOG, None, HAT), r"There is no picture 2"),
    "an open parenthesis": (("(a dog <i>:1.2", DOG), r"never closed.*at “\(a dog <i>:1\.2”, character 1\)"),
    "a closing parenthesis": (("a dog <i>)", DOG), r"closes nothing.*at “\)” after “a dog <i>”"),
    "a weight that is no number": (("(a dog <i>:big)", DOG), r"The weight 'big' is not a number.*at “big\)”"),
    "a negative weight": (("(a dog <i>:-1)", DOG), r"'-1' must lie between 0"),
    "a prompt that is too long": (("dog " * 2000,), r"tokens \(pieces .*reads at most \d+"),
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
def test_a_mark_in_core_text_encode_is_refused_with_its_place(client: Client) -> None:
    graph = SamplingGraph()
    graph.positive = graph.negative = link(graph.add("CLIPTextEncode", clip=graph.clip, text="a dog <i>"))
    with pytest.raises(ExecutionFailed, match=r"no picture, because none is given.*at “<i>” after “a dog”"):
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


def test_a_mask_of_nan_is_refused(client: Client) -> None:
    graph = SamplingGraph()
    mask = link(graph.add("ImageToMask", image=link(graph.add("ProbeBrokenImage")), channel="red"))
    cut = {"crop": "entity square", "margin": 0.0, "background": "white", "weight": 1.0, "noun": ""}
    image = link(graph.add("LoadImage", image=DOG))
    graph.add("PreviewImage", images=link(graph.add("KosmosGReference", image=image, mask=mask, **cut), 1))
    with pytest.raises(ExecutionFailed, match="The mask holds NaN or infinite values"):
        client.run(graph.nodes)


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


def test_an_interrupt_stops_the_encoding_at_once(client: Client, slow_file: Path) -> None:
    graph = SamplingGraph(slow_file.name).prompt("<i> <i> <i>", DOG, HAT, "tree.png").sample()
    steps, began, pressed = [], [], []

    def press_after_the_first_blocks(kind: str, data: dict) -> None:
        if kind == "progress" and data["node"] == graph.encoder:
            steps.append((data["value"], data["max"]))
            began.append(time.monotonic())
            if len(steps) == 3:
                pressed.append(time.monotonic())
                threading.Thread(target=client.interrupt).start()

    with pytest.raises(ExecutionInterrupted):
        client.run(graph.nodes, press_after_the_first_blocks)
    done, total = steps[-1]
    whole = (began[2] - began[0]) / (steps[2][0] - steps[0][0]) * total  # at the pace of a machine as busy as this
    assert time.monotonic() - pressed[0] < max(1.0, whole / 2)
    assert done < total / 2, "the encoding was nearly over, so this proves nothing"


def test_the_progress_bar_reaches_its_end_even_when_the_picture_is_remembered(
    client: Client, reference: KosmosG
) -> None:
    text = reference.decoder, reference.aligner.source_encoder, reference.aligner.query_decoder
    blocks = sum(len(stack.blocks) for stack in text)
    total = 2 * blocks + len(reference.vision.blocks)  # the prompt, the empty negative, and one picture
    for text in ("an old car <i> and a cat", "an old car <i> and a bird"):
        graph = SamplingGraph().prompt(text, DOG)
        graph.add("ProbeConditioning", conditioning=graph.positive, name="progress")
        run = client.run(graph.nodes)
        progress = (data for kind, data in run.events if kind == "progress" and data["node"] == graph.encoder)
        steps = [(data["value"], data["max"]) for data in progress]
        assert len(steps) > (3 if COMFYUI < (0, 12) else 0)  # later ones send a few of them only
        assert steps == sorted(steps)
        assert {most for _, most in steps} == {total}
        assert steps[-1] == (total, total)


@pytest.mark.usefixtures("good")
@pytest.mark.parametrize(("text", "said"), [("dog " * 600, r"tokens \(pieces"), ("x" * 200_001, "200,001 characters")])
def test_a_prompt_that_the_model_has_no_places_for_is_counted_before_it_is_encoded(
    client: Client, text: str, said: str
) -> None:
    graph = SamplingGraph()
    graph.positive = graph.negative = link(graph.add("CLIPTextEncode", clip=graph.clip, text=text))
    with pytest.raises(ExecutionFailed, match=said):
        client.run(graph.sample().nodes)


def test_a_number_that_is_none_or_comes_out_of_range_by_a_link_is_refused(client: Client) -> None:
    graph = SamplingGraph().prompt("a dog <i>", DOG)
    graph.nodes[graph.encoder]["inputs"]["likeness"] = float("nan")
    graph.add("ProbeConditioning", conditioning=graph.positive, name="no number")
    with pytest.raises(ExecutionFailed, match="likeness is nan"):
        client.run(graph.nodes)
    for number in (float("nan"), -0.5):
        graph = SamplingGraph().prompt("a dog")
        amount = link(graph.add("PrimitiveFloat", value=number))
        ends = {"kosmos": graph.positive, "clip_conditioning": graph.negative}
        blend = graph.add("KosmosGBlend", **ends, amount=amount, mode="hand-off at percent")
        graph.add("ProbeConditioning", conditioning=link(blend), name="no number")
        with pytest.raises(ExecutionFailed, match=r"amount is (nan|-0\.5); expected 0 to 1"):
            client.run(graph.nodes)


@pytest.mark.parametrize("inputs", [{"image_1": 1025}, {"image_1": 1, "image_2": 1024}])
def test_more_images_than_a_prompt_can_hold_are_counted_before_anything_is_made_of_them(
    client: Client, inputs: dict[str, int]
) -> None:
    graph = SamplingGraph()
    images = {
        name: link(graph.add("EmptyImage", width=1, height=1, batch_size=count, color=0))
        for name, count in inputs.items()
    }
    graph.positive = graph.negative = link(graph.add("KosmosGTextEncode", clip=graph.clip, text="a dog", **images))
    with pytest.raises(ExecutionFailed, match=r"image_\d holds 1,02\d pictures, .* at most 1,024 in all"):
        client.run(graph.sample().nodes)


@pytest.mark.parametrize(
    ("node", "choice", "given", "said"),
    [
        ("KosmosGLoader", "file", "kosmos.safetensors", None),
        ("KosmosGLoader", "file", "none", "There is no Kosmos-G file 'none'"),
        ("KosmosGLoader", "dtype", "none", "dtype is 'none'; expected one of auto, fp16"),
        ("KosmosGLoader", "device", "none", "device is 'none'; expected one of auto, cpu"),
        ("KosmosGTextEncode", "batch", "none", "batch is 'none'; expected one of images are one subject"),
        ("KosmosGAttentionRecorder", "blocks", "none", "blocks is 'none'; expected one of all, down"),
        ("KosmosGLoadReference", "file", "none", "There is no reference 'none'"),
        ("KosmosGAverage", "mode", "none", "mode is 'none'; expected one of mean, norm"),
    ],
)
def test_a_choice_may_come_by_a_link_and_is_checked_then(
    client: Client, node: str, choice: str, given: str, said: str | None
) -> None:
    graph = SamplingGraph().prompt("a dog")
    cut = {"crop": "centre", "margin": 0.0, "background": "keep", "weight": 1.0, "noun": ""}
    reference = graph.add("KosmosGReference", image=link(graph.add("LoadImage", image=DOG)), **cut)
    inputs = {
        "KosmosGAverage": {"reference_1": link(reference)},
        "KosmosGLoader": {"file": "kosmos.safetensors", "dtype": "auto", "device": "auto"},
        "KosmosGTextEncode": {"clip": graph.clip, "text": "a dog"},
        "KosmosGAttentionRecorder": {"model": graph.model, "first_step": 0, "end_step": 1},
    }.get(node, {})
    linked = graph.add(node, **{**inputs, choice: link(graph.add("ProbeAnything", text=given))})
    graph.add("PreviewAny", source=link(linked))
    if said is None:
        client.run(graph.nodes)
    else:
        with pytest.raises(ExecutionFailed, match=said):
            client.run(graph.nodes)
