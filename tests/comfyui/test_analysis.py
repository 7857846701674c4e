"""Blend, Inspect, Token Map and the attention recorder in a real ComfyUI."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from dev.client import Client, ExecutionFailed
from dev.graph import Link, SamplingGraph, link

Probed = Callable[[str], Any]
TEXT = "a dog <i> at the beach <i>"
MODES = ("lerp", "slerp per slot", "keep slot 0", "concat", "hand-off at percent")


@pytest.fixture
def graph() -> SamplingGraph:
    return SamplingGraph().prompt(TEXT, "dog.png", "hat.png")


def blended(graph: SamplingGraph, amount: float, mode: str) -> Link:
    other = graph.add("CLIPTextEncode", clip=graph.clip, text="a red car")
    return link(
        graph.add("KosmosGBlend", kosmos=graph.positive, clip_conditioning=link(other), amount=amount, mode=mode)
    )


@pytest.mark.parametrize("mode", MODES)
def test_a_blend_of_0_and_1_is_the_input_bit_for_bit_and_the_middle_can_be_sampled(
    client: Client, probed: Probed, graph: SamplingGraph, mode: str
) -> None:
    graph.add("ProbeConditioning", conditioning=graph.positive, name="kosmos")
    other = graph.add("CLIPTextEncode", clip=graph.clip, text="a red car")
    graph.add("ProbeConditioning", conditioning=link(other), name="clip")
    for amount in (0.0, 0.5, 1.0):
        graph.add("ProbeConditioning", conditioning=blended(graph, amount, mode), name=f"blend {amount}")
    graph.positive = blended(graph, 0.5, mode)
    run = client.run(graph.sample().nodes)
    for amount, name in ((0.0, "kosmos"), (1.0, "clip")):
        seen, expected = probed(f"blend {amount}"), probed(name)
        assert seen.tensors.keys() == expected.tensors.keys()
        assert all(torch.equal(seen.tensors[key], expected.tensors[key]) for key in seen.tensors)
        assert seen.scalars == expected.scalars
    assert not torch.equal(probed("blend 0.5").condition, probed("kosmos").condition) or mode == MODES[-1]
    assert client.pixels(run, graph.saved).std() > 0


def test_a_hand_off_gives_each_its_part_of_the_steps(client: Client, probed: Probed, graph: SamplingGraph) -> None:
    ranged = graph.add("ConditioningSetTimestepRange", conditioning=graph.positive, start=0.2, end=1.0)
    graph.positive = link(ranged)
    graph.add("ProbeConditioning", conditioning=blended(graph, 0.25, MODES[-1]), name="hand-off")
    client.run(graph.nodes)
    first, second = probed("hand-off").scalars
    assert (first["start_percent"], first["end_percent"]) == (0.2, 0.75)
    assert (second["start_percent"], second["end_percent"]) == (0.75, 1.0)


def test_a_hand_off_that_would_leave_no_conditioning_at_all_is_refused(client: Client, graph: SamplingGraph) -> None:
    late = graph.add("ConditioningSetTimestepRange", conditioning=graph.positive, start=0.9, end=1.0)
    text = graph.add("CLIPTextEncode", clip=graph.clip, text="a red car")
    early = graph.add("ConditioningSetTimestepRange", conditioning=link(text), start=0.0, end=0.1)
    made = graph.add(
        "KosmosGBlend", kosmos=link(late), clip_conditioning=link(early), amount=0.5, mode="hand-off at percent"
    )
    graph.add("ProbeConditioning", conditioning=link(made), name="nothing")
    with pytest.raises(ExecutionFailed, match="leave nothing of either"):
        client.run(graph.nodes)


def test_a_lora_and_a_blend_work_together(client: Client) -> None:
    graph = SamplingGraph()
    lora = graph.add(
        "LoraLoader",
        model=graph.model,
        clip=graph.clip,
        lora_name="tiny.safetensors",
        strength_model=1.0,
        strength_clip=1.0,
    )
    graph.model, graph.clip = link(lora, 0), link(lora, 1)
    graph.prompt(TEXT, "dog.png", "hat.png")
    graph.positive = blended(graph, 0.3, "slerp per slot")
    assert client.pixels(client.run(graph.sample().nodes), graph.saved).std() > 0


def inspect(client: Client, graph: SamplingGraph, conditioning: Link, **inputs: Any) -> str:
    made = graph.add("KosmosGInspect", conditioning=conditioning, **inputs)
    graph.add("ProbeImage", image=link(made, 0), name="chart")
    shown = graph.add("PreviewAny", source=link(made, 1))
    return client.run(graph.nodes).text(shown)


def test_inspect_describes_and_compares(client: Client, probed: Probed, graph: SamplingGraph) -> None:
    report = inspect(client, graph, graph.positive, compared_with=link(graph.encoder, 2))
    first, blank, *table = report.splitlines()
    assert re.fullmatch(r"Fine: Stable Diffusion 1.5 can use this. The two are .* \(mean cosine [01]\.\d\d\)\.", first)
    assert blank == ""
    assert all(line.startswith("    ") for line in table)
    assert "conditioning: 1 x 77 x 768, float32" in report
    assert "cosine per slot: mean" in report
    assert "WARNING" not in report
    assert probed("chart").tensors["image"].std() > 0.05


def test_inspect_says_that_equal_conditionings_are_equal(client: Client, graph: SamplingGraph) -> None:
    report = inspect(client, graph, graph.positive, compared_with=graph.positive)
    assert "equal, bit for bit" in report
    assert report.splitlines()[0].endswith("can use this. Both are the same.")


def test_inspect_warns_of_zeros_odd_lengths_nan_and_other_widths(client: Client, graph: SamplingGraph) -> None:
    zero = graph.add("ConditioningZeroOut", conditioning=graph.positive)
    assert "all numbers are 0" in inspect(client, graph, link(zero))
    odd = graph.add("ProbeMadeConditioning", slots=80, width=768, value=1.0)
    assert "80 slots are no multiple of 77" in inspect(client, graph, link(odd))
    broken = graph.add("ProbeMadeConditioning", slots=77, width=2048, value=float("inf"))
    report = inspect(client, graph, link(broken))
    assert "77 slot(s) hold NaN or infinity" in report
    assert "2048 wide, Stable Diffusion 1.5 needs 768" in report
    assert re.match(r"Look at this: 77 slot\(s\) hold NaN .* And 1 more, see below\.", report)


def test_the_token_map_has_a_row_for_each_word_and_picture(
    client: Client, probed: Probed, graph: SamplingGraph
) -> None:
    images = {f"image_{n}": graph.nodes[graph.encoder]["inputs"][f"image_{n}"] for n in (1, 2)}
    made = graph.add("KosmosGTokenMap", clip=graph.clip, text=TEXT, **images)
    graph.add("ProbeImage", image=link(made, 0), name="map")
    shown = graph.add("PreviewAny", source=link(made, 1))
    lines = client.run(graph.nodes).text(shown).splitlines()[1:]
    assert [line.split()[0] for line in lines] == ["(start)", "a", "dog", "<i1>", "at", "the", "beach", "<i2>"]
    shares = [float(line.split("%")[0].split()[-1]) for line in lines]
    assert sum(shares) == pytest.approx(100, abs=0.5)
    assert probed("map").tensors["image"].std() > 0.05


def test_a_prompt_that_is_connected_is_mapped_as_if_it_were_written_again(
    client: Client, probed: Probed, graph: SamplingGraph
) -> None:
    prompt = graph.nodes[graph.encoder]["inputs"]
    prompt |= {"text": "a (dog <i>:1.3) at the beach", "negative": "a hat <i2>"}  # one picture is in the negative alone
    both = link(graph.encoder, 4)
    token_map = graph.add("KosmosGTokenMap", clip=graph.clip, text="", prompt=both)
    unread = graph.add("KosmosGTokenMap", clip=graph.clip, text="a", prompt=both, image_3=prompt["image_1"])
    written = graph.add("KosmosGTokenMap", clip=graph.clip, text=prompt["text"], image_1=prompt["image_1"])
    for name, node in (("prompt", token_map), ("written", written)):
        graph.add("ProbeImage", image=link(node), name=f"map of {name}")
    _, shown = recorded(graph)
    mapping = next(node for node in graph.nodes.values() if node["class_type"] == "KosmosGAttentionMap")["inputs"]
    mapping |= {"text": "", "prompt": both}
    del mapping["image_1"], mapping["image_2"]
    reports = [graph.add("PreviewAny", source=link(node, 1)) for node in (token_map, unread, written)]
    run = client.run(graph.nodes)
    assert torch.equal(probed("map of prompt").tensors["image"], probed("map of written").tensors["image"])
    assert run.text(reports[0]) == run.text(reports[2])
    assert run.text(reports[1]).endswith("text, image_3 are not read: prompt is connected.")
    assert [line.split()[0] for line in run.text(shown).splitlines()] == ["a", "dog", "<i1>", "at", "the", "beach"]
    assert "differs" not in run.text(shown)
    image = probed("words").tensors["image"]
    assert image.shape[2] == 256  # 64 pixels have no room for a caption


def recorded(graph: SamplingGraph, **settings: Any) -> tuple[str, str]:
    """Add recorder, sampler and map; returns the ids of recorder and map."""
    values = {"first_step": 0, "end_step": 10000, "blocks": "all"} | settings
    batch = values.pop("batch", 1)
    recorder = graph.add("KosmosGAttentionRecorder", model=graph.model, **values)
    graph.model = link(recorder)
    graph.sample(batch=batch)
    decoded = graph.nodes[graph.saved]["inputs"]["images"]
    images = {f"image_{n}": graph.nodes[graph.encoder]["inputs"][f"image_{n}"] for n in (1, 2)}
    made = graph.add(
        "KosmosGAttentionMap", trace=link(recorder, 1), image=decoded, clip=graph.clip, text=TEXT, **images
    )
    for output, name in enumerate(("pictures", "words")):
        graph.add("ProbeImage", image=link(made, output), name=name)
    return recorder, graph.add("PreviewAny", source=link(made, 2))


@pytest.mark.parametrize("blocks", ["all", "down", "middle", "up"])
def test_the_map_shows_each_picture_and_word_and_the_recorder_changes_no_pixel(
    client: Client, probed: Probed, graph: SamplingGraph, blocks: str
) -> None:
    plain = SamplingGraph().prompt(TEXT, "dog.png", "hat.png").sample()
    expected = client.pixels(client.run(plain.nodes), plain.saved)
    _, shown = recorded(graph, blocks=blocks)
    run = client.run(graph.nodes)
    assert np.array_equal(client.pixels(run, graph.saved), expected)
    lines = run.text(shown).splitlines()
    assert [line.split()[0] for line in lines] == ["a", "dog", "<i1>", "at", "the", "beach", "<i2>"]
    assert len(probed("pictures").tensors["image"]) == 2
    assert len(probed("words").tensors["image"]) == 5
    assert all(image.std() > 0.02 for image in probed("pictures").tensors["image"])


def test_the_map_works_with_a_batch_a_controlnet_and_a_lora(
    client: Client, probed: Probed, graph: SamplingGraph
) -> None:
    lora = graph.add("LoraLoaderModelOnly", model=graph.model, lora_name="tiny.safetensors", strength_model=1.0)
    graph.model = link(lora)
    net = graph.add("ControlNetLoader", control_net_name="tiny.safetensors")
    applied = graph.add(
        "ControlNetApplyAdvanced",
        positive=graph.positive,
        negative=graph.negative,
        control_net=link(net),
        image=link(graph.add("LoadImage", image="tree.png")),
        strength=1.0,
        start_percent=0.0,
        end_percent=1.0,
    )
    graph.positive, graph.negative = link(applied, 0), link(applied, 1)
    _, shown = recorded(graph, batch=2)
    report = client.run(graph.nodes).text(shown)
    assert "picture 2 of 2" in report
    maps = probed("pictures").tensors["image"]
    assert len(maps) == 4
    assert not torch.equal(maps[0], maps[2])


def test_a_new_sampling_replaces_the_trace(client: Client, probed: Probed, graph: SamplingGraph) -> None:
    recorder, _ = recorded(graph)
    client.run(graph.nodes)
    first = probed("pictures").tensors["image"]
    next(node for node in graph.nodes.values() if node["class_type"] == "KSampler")["inputs"]["seed"] = 2
    assert recorder not in client.run(graph.nodes).executed_nodes
    second = probed("pictures").tensors["image"]
    assert not torch.equal(first, second)
    graph.nodes[recorder]["inputs"]["end_step"] = 9999
    assert recorder in client.run(graph.nodes).executed_nodes
    assert torch.equal(probed("pictures").tensors["image"], second)


def test_the_trace_is_of_the_model_that_samples_and_not_of_the_one_the_recorder_was_given(
    client: Client, probed: Probed
) -> None:
    maps = []
    for twin_first in (True, False):
        graph = SamplingGraph().prompt(TEXT, "dog.png", "hat.png")
        if twin_first:
            graph.model = link(graph.add("ProbeTwin", model=graph.model))
        _, shown = recorded(graph)
        if not twin_first:
            sampler = next(node for node in graph.nodes.values() if node["class_type"] == "KSampler")
            sampler["inputs"]["model"] = link(graph.add("ProbeTwin", model=graph.model))
        client.run(graph.nodes).text(shown)
        maps.append(probed("pictures").tensors["image"])
    assert torch.equal(*maps)


def test_the_steps_that_are_recorded_make_a_difference_and_steps_beyond_the_sampling_are_explained(
    client: Client, probed: Probed
) -> None:
    maps = []  # not the reports, whose shares are rounded to tenths of a per cent
    for settings in ({"end_step": 1}, {"first_step": 1, "end_step": 2}):
        graph = SamplingGraph().prompt(TEXT, "dog.png", "hat.png")
        recorded(graph, **settings)
        client.run(graph.nodes)
        maps.append(probed("pictures").tensors["image"])
    assert not torch.equal(*maps)
    graph = SamplingGraph().prompt(TEXT, "dog.png", "hat.png")
    recorded(graph, first_step=50, end_step=60)
    with pytest.raises(ExecutionFailed, match="The trace is empty"):
        client.run(graph.nodes)


def heat_of(overlays: torch.Tensor) -> torch.Tensor:
    """Where overlays have colour, (n, height, width): what carries no heat is grey."""
    images = overlays[:, :-24]  # without the caption
    return images.amax(-1) - images.amin(-1)


@pytest.mark.parametrize("bounds", ["area", "percent", "mask bounds", "mask"])
def test_a_map_is_pasted_where_the_conditioning_acts_and_blank_elsewhere(
    client: Client, probed: Probed, graph: SamplingGraph, bounds: str
) -> None:
    rest = link(graph.add("KosmosGTextEncode", clip=graph.clip, text="a tree"))
    if bounds == "area":
        limited = graph.add(
            "ConditioningSetArea", conditioning=graph.positive, width=64, height=64, x=64, y=0, strength=1.0
        )
    elif bounds == "percent":
        limited = graph.add(
            "ConditioningSetAreaPercentage",
            conditioning=graph.positive,
            width=0.5,
            height=1.0,
            x=0.5,
            y=0,
            strength=1.0,
        )
    else:
        empty = graph.add("SolidMask", value=0.0, width=64, height=64)
        box = graph.add("SolidMask", value=1.0, width=32, height=64)
        mask = graph.add("MaskComposite", destination=link(empty), source=link(box), x=32, y=0, operation="add")
        limited = graph.add(
            "ConditioningSetMask",
            conditioning=graph.positive,
            mask=link(mask),
            strength=1.0,
            set_cond_area="mask bounds" if bounds == "mask bounds" else "default",
        )
    graph.positive = link(graph.add("ConditioningCombine", conditioning_1=link(limited), conditioning_2=rest))
    _, shown = recorded(graph)
    if bounds == "area":  # that node knows no rectangle below 64 pixels
        next(node for node in graph.nodes.values() if node["class_type"] == "EmptyLatentImage")["inputs"]["width"] = 128
    report = client.run(graph.nodes).text(shown)
    heat = heat_of(probed("words").tensors["image"])
    half = heat.shape[-1] // 2
    assert heat[..., :half].max() < 0.01
    assert heat[..., half:].min() > 0.05
    assert "acts on 50% of the picture" in report


def test_each_image_of_a_batch_is_mapped_with_its_own_conditioning(
    client: Client, probed: Probed, graph: SamplingGraph
) -> None:
    prompt = graph.nodes[graph.encoder]["inputs"]
    dog, hat = prompt["image_1"], prompt["image_2"]
    sized = graph.add("ImageScale", image=hat, upscale_method="area", width=200, height=280, crop="disabled")
    prompt["image_1"] = link(graph.add("ImageBatch", image1=dog, image2=link(sized)))
    prompt["batch"] = "one conditioning per picture"
    _, shown = recorded(graph, batch=2)
    for image, own in ((0, dog), (1, link(sized))):  # each image's map is the one with its own picture alone
        mapping = next(node for node in graph.nodes.values() if node["class_type"] == "KosmosGAttentionMap")
        single = graph.add("KosmosGAttentionMap", **(mapping["inputs"] | {"image_1": own}))
        graph.add("ProbeImage", image=link(single), name=f"own {image}")
    report = client.run(graph.nodes).text(shown)
    both = probed("pictures").tensors["image"]
    assert torch.equal(both[:2], probed("own 0").tensors["image"][:2])
    assert torch.equal(both[2:], probed("own 1").tensors["image"][2:])
    assert not torch.equal(both[:2], probed("own 1").tensors["image"][:2])
    assert "picture 2 of 2" in report
    assert "differs from this prompt" not in report
    assert len(both) == 4


def second_sampler(graph: SamplingGraph, seed: int) -> list[str]:
    """Another sampler on the same recorder, with a map of its own image; returns what was added."""
    before = set(graph.nodes)
    first = next(node for node in graph.nodes.values() if node["class_type"] == "KSampler")
    sampler = graph.add("KSampler", **(first["inputs"] | {"seed": seed}))
    decoder = next(node for node in graph.nodes.values() if node["class_type"] == "VAEDecode")
    decoded = graph.add("VAEDecode", **(decoder["inputs"] | {"samples": link(sampler)}))
    mapping = next(node for node in graph.nodes.values() if node["class_type"] == "KosmosGAttentionMap")
    made = graph.add("KosmosGAttentionMap", **(mapping["inputs"] | {"image": link(decoded)}))
    graph.add("ProbeImage", image=link(made), name="second pictures")
    return sorted(set(graph.nodes) - before)


def test_two_samplers_on_one_recorder_each_have_their_own_map(
    client: Client, probed: Probed, graph: SamplingGraph
) -> None:
    expected = []
    for seed in (1, 7):
        alone = SamplingGraph().prompt(TEXT, "dog.png", "hat.png")
        recorded(alone)
        next(node for node in alone.nodes.values() if node["class_type"] == "KSampler")["inputs"]["seed"] = seed
        client.run(alone.nodes)
        expected.append(probed("pictures").tensors["image"])
    recorded(graph)
    second_sampler(graph, seed=7)
    client.run(graph.nodes)
    for node in graph.nodes.values():  # the maps run again, behind both samplings, which are cached
        if node["class_type"] == "KosmosGAttentionMap":
            node["inputs"]["text"] = TEXT.replace("beach", "(beach:1.0)")
    client.run(graph.nodes)
    assert torch.equal(probed("pictures").tensors["image"], expected[0])
    assert torch.equal(probed("second pictures").tensors["image"], expected[1])


def test_a_map_of_an_image_that_the_recorder_never_saw_is_refused_and_two_passes_are_named(
    client: Client, graph: SamplingGraph
) -> None:
    _, shown = recorded(graph)
    first = next(node for node in graph.nodes.values() if node["class_type"] == "KSampler")
    name = next(key for key, node in graph.nodes.items() if node is first)
    again = graph.add("KSampler", **(first["inputs"] | {"latent_image": link(name), "denoise": 0.5}))
    decoder = next(node for node in graph.nodes.values() if node["class_type"] == "VAEDecode")
    decoder["inputs"]["samples"] = link(again)
    assert f"sampled in 2 passes: the map is of KSampler, node {again}" in client.run(graph.nodes).text(shown)
    other = next(node for node in graph.nodes.values() if node["class_type"] == "KosmosGAttentionMap")
    other["inputs"]["image"] = link(graph.add("LoadImage", image="tree.png"))
    with pytest.raises(ExecutionFailed, match="The trace is not of this image: it holds samplings of KSampler"):
        client.run(graph.nodes)
