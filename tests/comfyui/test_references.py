"""References in a real ComfyUI: what they encode to, in files and out of them, and as entities of a segmentation."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dev.client import Client, ExecutionFailed, PromptRefused
from dev.graph import Link, SamplingGraph, link
from dev.server import Server
from kosmos_core import KosmosG, Prompt
from kosmos_core.blend import likeness as mix_likeness
from kosmos_core.images import preprocess_image
from tests.tiny.kosmos_file import save_tiny_kosmos

Probed = Callable[[str], Any]
CUT = {"crop": "entity square", "margin": 0.0, "background": "white", "weight": 1.0, "noun": ""}


@pytest.fixture
def graph() -> SamplingGraph:
    return SamplingGraph()


def load(graph: SamplingGraph, name: str) -> Link:
    return link(graph.add("LoadImage", image=name))


def cut(graph: SamplingGraph, image: Link, **changed: Any) -> str:
    return graph.add("KosmosGReference", image=image, **(CUT | changed))


def encode(graph: SamplingGraph, client: Client, probed: Probed, text: str, **inputs: Any) -> torch.Tensor:
    """The positive condition of a prompt."""
    graph.encoder = graph.add("KosmosGTextEncode", clip=graph.clip, text=text, **inputs)
    graph.add("ProbeConditioning", conditioning=link(graph.encoder), name="reference")
    client.run(graph.nodes)
    return probed("reference").condition


def mask_link(graph: SamplingGraph, left: int, top: int, width: int, height: int, size: tuple[int, int]) -> Link:
    """A mask of `size` (width, height) with one white rectangle."""
    empty = graph.add("SolidMask", value=0.0, width=size[0], height=size[1])
    box = graph.add("SolidMask", value=1.0, width=width, height=height)
    return link(graph.add("MaskComposite", destination=link(empty), source=link(box), x=left, y=top, operation="add"))


def test_a_neutral_reference_of_a_whole_picture_is_the_picture_bit_for_bit(
    client: Client, graph: SamplingGraph, probed: Probed, reference: KosmosG, images: dict[str, Image.Image]
) -> None:
    made = cut(graph, load(graph, "dog.png"))
    seen = encode(graph, client, probed, "a dog <i>", image_1=link(made))
    assert torch.equal(seen, reference.encode("a dog <i>", [images["dog.png"]]))


def test_weight_and_noun_act_as_in_the_prompt(
    client: Client, graph: SamplingGraph, probed: Probed, reference: KosmosG, images: dict[str, Image.Image]
) -> None:
    made = cut(graph, load(graph, "dog.png"), weight=0.5, noun="dog")
    seen = encode(graph, client, probed, "a (<i>:1.5) at the beach", image_1=link(made))
    expected = reference.encode(Prompt.parse("a dog (<i>:0.75) at the beach", images=1), [images["dog.png"]])
    assert torch.equal(seen, expected)


def test_view_and_mask_are_what_the_model_sees(
    client: Client, graph: SamplingGraph, probed: Probed, reference: KosmosG, images: dict[str, Image.Image]
) -> None:
    width, height = images["hat.png"].size
    mask = mask_link(graph, 100, 50, 80, 60, (width, height))
    made = cut(graph, load(graph, "hat.png"), mask=mask)
    graph.add("ProbeImage", image=link(made, 1), name="view")
    shown = graph.add("MaskToImage", mask=link(made, 2))
    graph.add("ProbeImage", image=link(shown), name="view mask")
    seen = encode(graph, client, probed, "<i>", image_1=link(made))
    window = height // 100  # dilation: one pixel further down and right where the window is even
    before, after = (window - 1) // 2, window // 2
    pixels = np.array(images["hat.png"])
    outside = np.ones((height, width), dtype=bool)
    outside[50 - after : 110 + before, 100 - after : 180 + before] = False
    pixels[outside] = 255
    side = 80 + before + after
    top = (50 - after + 110 + before - side) // 2
    square = pixels[top : top + side, 100 - after : 100 - after + side]
    assert torch.equal(seen, reference.encode("<i>", [Image.fromarray(square)]))
    view = probed("view").tensors["image"]
    assert view.shape == (1, 224, 224, 3)
    assert torch.equal(preprocess_image(view[0]), preprocess_image(square))
    view_mask = probed("view mask").tensors["image"]
    assert set(view_mask.unique().tolist()) == {0.0, 1.0}
    assert view_mask.mean() == pytest.approx((60 + before + after) / side, abs=0.02)


def test_alpha_is_the_mask_where_none_is_given(client: Client, graph: SamplingGraph, probed: Probed) -> None:
    image = load(graph, "dog.png")
    mask = mask_link(graph, 40, 60, 50, 50, (200, 280))
    clear = graph.add("InvertMask", mask=mask)
    joined = graph.add("JoinImageWithAlpha", image=image, alpha=link(clear))
    for name, made in (("alpha", cut(graph, link(joined))), ("mask", cut(graph, image, mask=mask))):
        graph.add("ProbeImage", image=link(made, 1), name=name)
        graph.add("ProbeImage", image=link(graph.add("MaskToImage", mask=link(made, 2))), name=f"{name} mask")
    client.run(graph.nodes)
    assert torch.equal(probed("alpha mask").tensors["image"], probed("mask mask").tensors["image"])
    # The rim that dilation adds is transparent, so white, in the one and the picture's own in the other.
    rim = probed("alpha").tensors["image"] != probed("mask").tensors["image"]
    assert not rim[:, 20:-20, 20:-20].any()


def test_an_inverted_mask_is_noticed_and_a_switch_inverts_it(
    client: Client, graph: SamplingGraph, probed: Probed
) -> None:
    image = load(graph, "dog.png")
    mask = mask_link(graph, 44, 64, 46, 46, (200, 280))  # its own: what is remembered shows no view again
    inverted = link(graph.add("InvertMask", mask=mask))
    made = {
        "right": cut(graph, image, mask=mask),
        "wrong": cut(graph, image, mask=inverted),
        "switched": cut(graph, image, mask=inverted, invert_mask=True),
        "no mask": cut(graph, image, invert_mask=True),
    }
    for name, node in made.items():
        graph.add("ProbeImage", image=link(node, 1), name=f"inverted {name}")
    said = {name: graph.add("PreviewAny", source=link(node, 3)) for name, node in made.items()}
    run = client.run(graph.nodes)
    views = {name: probed(f"inverted {name}").tensors["image"] for name in made}
    assert torch.equal(views["switched"], views["right"])
    assert not torch.equal(views["wrong"], views["right"])
    assert run.text(said["wrong"]).startswith("What the mask marks touches all four borders of the picture")
    assert [run.text(said[name]) for name in ("right", "switched")] == ["", ""]
    assert run.text(said["no mask"]).endswith("invert_mask is on, but no mask is connected: nothing is inverted.")
    (shown,) = run.outputs[made["right"]]["images"]  # the node shows what the model sees
    view = np.asarray(Image.open(io.BytesIO(client.file(shown))))
    assert np.array_equal(view, (views["right"][0] * 255).round().to(torch.uint8).numpy())


def test_a_crop_that_cuts_much_away_warns_in_report_and_log(
    client: Client, server: Server, graph: SamplingGraph
) -> None:
    image = load(graph, "dog.png")
    wide = mask_link(graph, 0, 10, 400, 20, (400, 40))
    scaled = graph.add("ImageScale", image=image, upscale_method="area", width=400, height=40, crop="disabled")
    shown = {
        crop: graph.add("PreviewAny", source=link(cut(graph, link(scaled), mask=wide, crop=crop), 3))
        for crop in ("entity square", "pad")
    }
    run = client.run(graph.nodes)
    assert "cuts away 90% of the subject" in run.text(shown["entity square"])
    assert run.text(shown["pad"]) == ""
    assert "Kosmos-G Reference: The crop cuts away 90%" in server.log


def test_an_empty_mask_and_a_batch_are_refused(client: Client, graph: SamplingGraph) -> None:
    empty = graph.add("SolidMask", value=0.0, width=64, height=64)
    made = cut(graph, load(graph, "dog.png"), mask=link(empty))
    graph.add("PreviewImage", images=link(made, 1))
    with pytest.raises(
        ExecutionFailed, match=r"The mask is empty.* Load Image's mask is, for a picture without transparency"
    ):
        client.run(graph.nodes)
    graph = SamplingGraph()
    two = graph.add("RepeatImageBatch", image=load(graph, "dog.png"), amount=2)
    graph.add("PreviewImage", images=link(cut(graph, link(two)), 1))
    with pytest.raises(ExecutionFailed, match="image holds 2 pictures"):
        client.run(graph.nodes)


def test_an_image_batch_is_one_subject_like_its_average(client: Client, graph: SamplingGraph, probed: Probed) -> None:
    first, second = load(graph, "dog.png"), load(graph, "tree.png")
    sized = graph.add("ImageScale", image=second, upscale_method="area", width=200, height=280, crop="disabled")
    batch = graph.add("ImageBatch", image1=first, image2=link(sized))
    as_batch = encode(graph, client, probed, "a dog <i>", image_1=link(batch))
    parts = {f"reference_{n}": link(cut(graph, image)) for n, image in enumerate((first, link(sized)), 1)}
    mean = graph.add("KosmosGAverage", mode="mean", **parts)
    assert torch.equal(as_batch, encode(graph, client, probed, "a dog <i>", image_1=link(mean)))
    kept = graph.add("KosmosGAverage", mode="norm-preserving mean", **parts)
    assert not torch.equal(as_batch, encode(graph, client, probed, "a dog <i>", image_1=link(kept)))


def test_one_conditioning_per_picture_is_each_pictures_own(
    client: Client, graph: SamplingGraph, probed: Probed, reference: KosmosG, images: dict[str, Image.Image]
) -> None:
    dog = load(graph, "dog.png")
    hat = graph.add(
        "ImageScale",
        image=load(graph, "hat.png"),
        upscale_method="nearest-exact",
        width=200,
        height=280,
        crop="disabled",
    )
    batch = graph.add("ImageBatch", image1=dog, image2=link(hat))
    tree = load(graph, "tree.png")
    seen = encode(
        graph,
        client,
        probed,
        "a dog <i> and <i>",
        image_1=link(batch),
        image_2=tree,
        batch="one conditioning per picture",
    )
    resized = images["hat.png"].resize((200, 280), Image.Resampling.NEAREST)
    for index, first in enumerate((images["dog.png"], resized)):
        expected = reference.encode("a dog <i> and <i>", [first, images["tree.png"]])
        assert torch.equal(seen[index : index + 1], expected)
    graph.positive, graph.negative = link(graph.encoder, 0), link(graph.encoder, 1)
    graph.sample(batch=2)
    assert client.pixels(client.run(graph.nodes), graph.saved).shape == (2, 64, 64, 3)


@pytest.mark.parametrize("likeness", [0.0, 0.4, 1.0, 2.0])
def test_likeness_is_the_line_from_text_alone_through_the_full_encoding(
    client: Client,
    graph: SamplingGraph,
    probed: Probed,
    reference: KosmosG,
    images: dict[str, Image.Image],
    likeness: float,
) -> None:
    seen = encode(graph, client, probed, "a dog <i>", image_1=load(graph, "dog.png"), likeness=likeness)
    full, text = reference.encode("a dog <i>", [images["dog.png"]]), reference.encode("a dog")
    assert torch.equal(seen, mix_likeness(text, full, likeness))
    assert torch.equal(seen, full) == (likeness == 1)


def saved_file(server: Server, name: str) -> Path:
    return server.folder / "output/kosmos_g_references" / name


def save(graph: SamplingGraph, name: str, noun: str = "dog") -> str:
    made = cut(graph, load(graph, "dog.png"), noun=noun, weight=0.8)
    return graph.add("KosmosGSaveReference", clip=graph.clip, reference=link(made), name=name)


def test_a_saved_reference_encodes_as_the_picture_did_and_is_never_overwritten(
    client: Client, server: Server, graph: SamplingGraph, probed: Probed
) -> None:
    saved = save(graph, "pets/saved dog")
    straight = encode(graph, client, probed, "a <i>", image_1=link(saved))
    loading = SamplingGraph()
    file = loading.add("KosmosGLoadReference", file="pets/saved dog.safetensors")
    assert torch.equal(encode(loading, client, probed, "a <i>", image_1=link(file)), straight)
    again = SamplingGraph()
    save(again, "pets/saved dog", noun="cat")
    client.run(again.nodes)
    assert saved_file(server, "pets/saved dog_2.safetensors").exists()


@pytest.mark.parametrize(
    "name",
    [
        "",
        "../outside",
        "/etc/passwd",
        "a:b",
        "x/../../y",
        "a" * 200,
        "😀" * 60,
        "\ud83d",
        "con",
        "pets/NUL.txt",
        "dog.",
    ],
)
def test_a_name_outside_the_folder_is_refused(client: Client, graph: SamplingGraph, name: str) -> None:
    save(graph, name)
    with pytest.raises(ExecutionFailed, match="expected a file name"):
        client.run(graph.nodes)


def test_a_reference_of_another_model_a_damaged_and_a_missing_file_are_refused(
    client: Client, server: Server, graph: SamplingGraph
) -> None:
    save(graph, "refused")
    client.run(graph.nodes)
    other = server.folder / "models/kosmos_g/other.safetensors"
    save_tiny_kosmos(other, seed=9)
    try:
        foreign = SamplingGraph("other.safetensors")
        file = foreign.add("KosmosGLoadReference", file="refused.safetensors")
        encoder = foreign.add("KosmosGTextEncode", clip=foreign.clip, text="<i>", image_1=link(file))
        foreign.add("ProbeConditioning", conditioning=link(encoder), name="foreign")
        with pytest.raises(ExecutionFailed, match=r"refused\.safetensors was encoded by another Kosmos-G file"):
            client.run(foreign.nodes)
        content = saved_file(server, "refused.safetensors").read_bytes()
        saved_file(server, "refused.safetensors").write_bytes(content[:-100])
        with pytest.raises(ExecutionFailed, match="cut short"):
            client.run(foreign.nodes)
    finally:
        other.unlink()
    missing = SamplingGraph()
    missing.add("PreviewAny", source=link(missing.add("KosmosGLoadReference", file="nowhere.safetensors")))
    with pytest.raises(PromptRefused, match=r"There is no reference 'nowhere.safetensors'. Searched: "):
        client.run(missing.nodes)


ENTITIES = {"crop": "entity square", "margin": 0.0, "background": "white", "weight": 1.0}


def merged(graph: SamplingGraph, file: str) -> SamplingGraph:
    """The graph with its CLIP half merged with another file's."""
    other = graph.add("KosmosGLoader", file=file, dtype="auto", device="auto")
    graph.clip = link(graph.add("CLIPMergeSimple", clip1=graph.clip, clip2=link(other), ratio=0.5))
    return graph


def test_a_merged_clip_neither_saves_references_nor_takes_saved_ones(
    client: Client, server: Server, graph: SamplingGraph, probed: Probed
) -> None:
    save(graph, "before merging")
    client.run(graph.nodes)
    other = save_tiny_kosmos(server.folder / "models/kosmos_g/half.safetensors", seed=9)
    try:
        saving = merged(SamplingGraph(), other.name)
        save(saving, "of a merge")
        with pytest.raises(ExecutionFailed, match="a merge or a hook changed it"):
            client.run(saving.nodes)
        assert not saved_file(server, "of a merge.safetensors").exists()
        using = merged(SamplingGraph(), other.name)
        file = link(using.add("KosmosGLoadReference", file="before merging.safetensors"))
        with pytest.raises(ExecutionFailed, match="a merge or a hook changed it"):
            encode(using, client, probed, "a <i>", image_1=file)
    finally:
        other.unlink()
    plain = SamplingGraph()
    file = link(plain.add("KosmosGLoadReference", file="before merging.safetensors"))
    assert encode(plain, client, probed, "a <i>", image_1=file).isfinite().all()


def test_unpatched_weights_among_comfyuis_backups_are_no_merge(
    client: Client, graph: SamplingGraph, probed: Probed
) -> None:
    graph.clip = link(graph.add("ProbeBackup", clip=graph.clip))
    saved = save(graph, "beside backups")
    straight = encode(graph, client, probed, "a <i>", image_1=link(saved))
    graph.encoder = graph.add("KosmosGLoadReference", file="beside backups.safetensors")
    assert torch.equal(encode(graph, client, probed, "a <i>", image_1=link(graph.encoder)), straight)


def entities(graph: SamplingGraph, only: int = 0) -> str:
    """Two masks, and an empty one between them."""
    size = (200, 280)
    first, last = mask_link(graph, 10, 10, 60, 60, size), mask_link(graph, 90, 100, 80, 80, size)
    empty = link(graph.add("SolidMask", value=0.0, width=size[0], height=size[1]))
    images = [link(graph.add("MaskToImage", mask=mask)) for mask in (first, empty, last)]
    pair = link(graph.add("ImageBatch", image1=images[0], image2=images[1]))
    batch = link(graph.add("ImageBatch", image1=pair, image2=images[2]))
    masks = link(graph.add("ImageToMask", image=batch, channel="red"))
    return graph.add(
        "KosmosGEntities", image=load(graph, "dog.png"), masks=masks, nouns="dog\n\nhat", only=only, **ENTITIES
    )


def test_entities_give_one_reference_per_mask_and_leave_empty_ones_out(
    client: Client, graph: SamplingGraph, probed: Probed
) -> None:
    found = entities(graph)
    graph.add("ProbeImage", image=link(found, 1), name="entities")
    encoder = graph.add("KosmosGTextEncode", clip=graph.clip, text="a <i>", image_1=link(found))
    shown = graph.add("PreviewAny", source=link(encoder, 3))
    single = graph.add(
        "KosmosGReference", image=load(graph, "dog.png"), mask=mask_link(graph, 90, 100, 80, 80, (200, 280)), **CUT
    )
    graph.add("ProbeImage", image=link(single, 1), name="single")
    run = client.run(graph.nodes)
    preview = probed("entities").tensors["image"]
    assert preview.shape == (2, 224, 224, 3)
    assert torch.equal(preview[1:], probed("single").tensors["image"])
    text = "".join(run.outputs[shown]["text"])  # the prompt ran once for each
    assert "a dog <i1>" in text
    assert "a hat <i1>" in text


def test_only_one_entity_can_be_taken(client: Client, graph: SamplingGraph, probed: Probed) -> None:
    found = entities(graph, only=3)
    graph.add("ProbeImage", image=link(found, 1), name="only")
    client.run(graph.nodes)
    assert len(probed("only").tensors["image"]) == 1
    graph = SamplingGraph()
    found = entities(graph, only=4)
    graph.add("PreviewImage", images=link(found, 1))
    with pytest.raises(ExecutionFailed, match="only is 4, but there are 3 masks"):
        client.run(graph.nodes)
    graph.nodes[found]["inputs"]["only"] = link(graph.add("PrimitiveInt", value=-1))  # links are not checked by ComfyUI
    with pytest.raises(ExecutionFailed, match="only is -1, but there are 3 masks"):
        client.run(graph.nodes)


def test_too_many_masks_at_once_are_refused_and_one_of_them_is_taken(client: Client, graph: SamplingGraph) -> None:
    box = graph.add("MaskToImage", mask=mask_link(graph, 0, 0, 8, 8, (16, 16)))
    batch = graph.add("RepeatImageBatch", image=link(box), amount=65)
    masks = link(graph.add("ImageToMask", image=link(batch), channel="red"))
    found = graph.add("KosmosGEntities", image=load(graph, "dog.png"), masks=masks, nouns="", only=0, **ENTITIES)
    graph.add("PreviewImage", images=link(found, 1))
    with pytest.raises(ExecutionFailed, match="masks holds 65 masks, but at most 64"):
        client.run(graph.nodes)
    graph.nodes[found]["inputs"]["only"] = 65
    client.run(graph.nodes)
