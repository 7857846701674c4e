"""Whatever is typed, connected or left on the disk: it works or gives one clear sentence, and the server goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dev.client import Client, ExecutionFailed, PromptRefused
from dev.graph import Link, SamplingGraph, link
from dev.server import Server
from kosmos_core import WeightsError, load_model
from tests.tiny.kosmos_file import save_tiny_kosmos

CLEAR = ("ValueError", "PromptError", "WeightsError", "EmptyMaskError")
PIECES = ["<i>", "<i2>", "<image_1>", "<i", "(", ")", ":1.3", ":", "\\", "dog", " ", "\n", "\x00", "é", "犬", "\u202e"]
PROMPTS = st.one_of(st.lists(st.sampled_from(PIECES), max_size=30).map("".join), st.text(max_size=200))


@pytest.fixture(scope="module")
def unchanged(server: Server) -> Iterator[Client]:
    """The server, which after everything must still draw the same pixels as before."""
    client = Client(server.address)
    graph = SamplingGraph().prompt("a dog <i>", "dog.png").sample()
    before = client.pixels(client.run(graph.nodes), graph.saved)
    yield client
    client.post("/free", {"unload_models": True, "free_memory": True})
    assert np.array_equal(client.pixels(client.run(graph.nodes), graph.saved), before)
    client.close()


def clear(error: ExecutionFailed) -> None:
    """The error is one of ours and short enough to be read."""
    kind = error.exception_type.rpartition(".")[2]
    assert kind in CLEAR, f"{error.exception_type}: {error}\n{error.traceback}"
    assert 10 < len(str(error)) < 600


def encode(client: Client, text: str, **inputs: Any) -> None:
    graph = SamplingGraph()
    encoder = graph.add("KosmosGTextEncode", clip=graph.clip, text=text, **inputs)
    graph.add("PreviewAny", source=link(encoder, 3))
    try:
        client.run(graph.nodes)
    except ExecutionFailed as error:
        clear(error)


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(text=PROMPTS)
def test_any_prompt_works_or_gives_one_clear_sentence(unchanged: Client, text: str) -> None:
    encode(unchanged, text)


def test_a_prompt_of_20000_characters_works_or_gives_one_clear_sentence(unchanged: Client) -> None:
    for text in ("(" * 20000, "dog " * 5000, "<i>" * 6000, "\\" * 20000):
        encode(unchanged, text)


IMAGES = [
    (1, 1, 1, 3, "plain"),
    (1, 1, 4000, 3, "plain"),
    (1, 4000, 1, 3, "plain"),
    (1, 8000, 8000, 3, "plain"),
    (1, 20, 30, 4, "plain"),
    (1, 20, 30, 1, "plain"),
    (1, 20, 30, 3, "nan"),
    (1, 20, 30, 3, "infinite"),
    (1, 20, 30, 3, "out of range"),
    (1, 20, 30, 3, "half"),
    (0, 20, 30, 3, "plain"),
    (1, 0, 30, 3, "plain"),
    (1, 20, 30, 7, "plain"),
    (3, 20, 30, 3, "plain"),
    (3, 20, 30, 3, "nan"),
]


def made(graph: SamplingGraph, image: tuple[int, int, int, int, str]) -> str:
    names = ("count", "height", "width", "channels", "kind")
    return graph.add("ProbeAnyImage", **dict(zip(names, image, strict=True)))


@pytest.mark.parametrize("through", ["prompt", "reference"])
@pytest.mark.parametrize("shape", IMAGES, ids=str)
def test_any_picture_works_or_gives_one_clear_sentence(
    unchanged: Client, shape: tuple[int, int, int, int, str], through: str
) -> None:
    graph = SamplingGraph()
    image: Link = link(made(graph, shape))
    if through == "reference":
        cut = {"crop": "entity square", "margin": 0.1, "background": "white", "weight": 1.0, "noun": "dog"}
        mask = link(made(graph, (1, 16, 24, 3, "plain")), 1)  # of another size
        image = link(graph.add("KosmosGReference", image=image, mask=mask, **cut))
    encoder = graph.add("KosmosGTextEncode", clip=graph.clip, text="<i>", image_1=image)
    graph.add("PreviewAny", source=link(encoder, 3))
    said = ""
    try:
        unchanged.run(graph.nodes)
    except ExecutionFailed as error:
        clear(error)
        said = str(error)
    bad = shape[0] != 1 or shape[4] in ("nan", "infinite") or 0 in shape or shape[3] == 7
    # A mask brought to a single pixel may miss it.
    assert bad or not said or "The mask is empty" in said


@pytest.mark.parametrize("mode", ["I;16", "L", "RGBA", "P", "1"])
def test_picture_files_of_every_mode_work(unchanged: Client, server: Server, mode: str) -> None:
    name = f"mode {mode.replace(';', ' ')}.png"
    numbers = np.random.default_rng(1).integers(0, 65535, (40, 50), dtype=np.uint16)
    image = Image.fromarray(numbers) if mode == "I;16" else Image.fromarray((numbers // 257).astype(np.uint8))
    (image if mode == "I;16" else image.convert(mode)).save(server.folder / "input" / name)
    graph = SamplingGraph().prompt("<i>", name)
    graph.add("PreviewAny", source=link(graph.encoder, 3))
    unchanged.run(graph.nodes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return save_tiny_kosmos(tmp_path_factory.mktemp("whole") / "a.safetensors").read_bytes()


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_weight_file_cut_anywhere_is_refused_in_one_sentence(
    whole: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "cut.safetensors"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(WeightsError) as refused:
        load_model(path)
    assert len(str(refused.value)) < 600


def test_a_cut_weight_file_is_refused_by_the_server_too(unchanged: Client, server: Server, whole: bytes) -> None:
    path: Path = server.folder / "models/kosmos_g/cut.safetensors"
    try:
        for length in (0, 7, 1000, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:length])
            with pytest.raises(PromptRefused, match=r"cut.safetensors"):
                unchanged.run(SamplingGraph("cut.safetensors").prompt("a dog").sample().nodes)
    finally:
        path.unlink()


def test_two_files_queued_in_turn_never_mix_what_they_remember(unchanged: Client, server: Server) -> None:
    other = save_tiny_kosmos(server.folder / "models/kosmos_g/other file.safetensors", seed=12)
    try:
        drawn: dict[str, list[bytes]] = {"kosmos.safetensors": [], other.name: []}
        for turn in range(3):
            for name, pixels in drawn.items():
                graph = SamplingGraph(name).prompt("a dog <i>", "dog.png").sample(seed=1, steps=1 + turn % 2)
                pixels.append(unchanged.pixels(unchanged.run(graph.nodes), graph.saved).tobytes())
        for pixels in drawn.values():
            assert pixels[0] == pixels[2] != pixels[1]
        assert drawn["kosmos.safetensors"][0] != drawn[other.name][0]
    finally:
        other.unlink()
