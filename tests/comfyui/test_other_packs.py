"""Packs that were written for CLIP's own encoders get a sentence with a way out, or plain text encoding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from dev.client import Client, ExecutionFailed
from dev.graph import SamplingGraph, link
from dev.server import Server
from kosmos_core import KosmosG

Probed = Callable[[str], Any]
WAY_OUT = "Use Kosmos-G Prompt or CLIP Text Encode with this CLIP"


def used(client: Client, probed: Probed, way: str) -> torch.Tensor:
    graph = SamplingGraph()
    image = link(graph.add("LoadImage", image="dog.png"))
    made = graph.add("ProbeOtherPack", clip=graph.clip, way=way, image=image)
    graph.add("ProbeConditioning", conditioning=link(made), name="other pack")
    client.run(graph.nodes)
    return probed("other pack").condition


@pytest.mark.parametrize(
    ("way", "sentence"),
    [
        ("index l", rf"asks for the tokens 'l', which belong to CLIP: Kosmos-G's encoder has none\. {WAY_OUT}"),
        ("own tokens", "These tokens are for l, not for Kosmos-G"),
        ("more tokens", "These tokens are for g, not for Kosmos-G"),
        ("part", rf"asks for the encoder's 'clip_l', .* {WAY_OUT}"),
        ("tokenizer's part", rf"asks for its tokenizer's 'clip_l', .* {WAY_OUT}"),
        ("generate", rf"asks for the encoder's 'generate', .* {WAY_OUT}"),
        ("padding", rf"number 49407, but Kosmos-G's end at \d+: a node put in one of CLIP's\. {WAY_OUT}"),
        ("negative weight", r"has the weight -1\.0; expected a number from 0 up"),
        ("vector", "a vector, such as a textual inversion"),
        ("nothing", "There are no tokens to encode"),
        ("list", "The prompt is a list, expected one text"),
        ("images", r"hands pictures to its CLIP in a form for other encoders, \(1, 280, 200, 3\)"),
    ],
)
def test_what_only_clip_has_is_refused_in_a_sentence(client: Client, probed: Probed, way: str, sentence: str) -> None:
    with pytest.raises(ExecutionFailed, match=sentence):
        used(client, probed, way)


@pytest.mark.parametrize(
    ("way", "warning"),
    [
        ("optional parts", ""),
        ("each key", ""),
        ("a copy", ""),
        ("pooled", "Kosmos-G has no pooled output"),
        ("option", "Kosmos-G's tokenizer has no llama_template"),
    ],
)
def test_what_any_encoder_has_works(
    client: Client, server: Server, probed: Probed, reference: KosmosG, way: str, warning: str
) -> None:
    assert torch.equal(used(client, probed, way), reference.encode("a dog at the beach"))
    assert warning in server.log
