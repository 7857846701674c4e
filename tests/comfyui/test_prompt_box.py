"""The prompt box: what it asks the server, and what a person sees of it in ComfyUI's own front end."""

from __future__ import annotations

import gzip
import json
import random
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from dev.browser import missing, use
from dev.client import Client, ExecutionFailed
from dev.graph import SamplingGraph, link
from dev.install import ROOT
from dev.server import Server
from kosmos_core import KosmosG, Prompt, PromptError
from tests.comfyui.test_pages import CHINESE
from tests.comfyui.test_sentences import untranslated

WORKFLOW = {
    "last_node_id": 2,
    "last_link_id": 0,
    "nodes": [
        {"id": 1, "type": "KosmosGTextEncode", "pos": [0, 0]},
        {
            "id": 2,
            "type": "MarkdownNote",
            "pos": [0, 600],
            "title": "Read me",
            "widgets_values": ["## Two subjects in one prompt\nText.\n\n### Files\n- Not known."],
        },
    ],
    "links": [],
    "groups": [{"title": "2 Images", "bounding": [0, 0, 100, 100]}],
    "version": 0.4,
}
ENVIRONMENT = Path(sys.executable).parents[1]
FILES = {"file": "kosmos.safetensors", "checkpoint": "tiny.safetensors"}
in_a_browser = pytest.mark.skipif(missing(ENVIRONMENT) is not None, reason=str(missing(ENVIRONMENT)))


def ask(client: Client, text: str = "", negative: str = "", **others: Any) -> dict[str, Any]:
    return client.post("/kosmos_g/prompt", {"text": text, "negative": negative, **FILES, **others})


def test_the_count_is_what_the_model_reads(client: Client, reference: KosmosG) -> None:
    answer = ask(client, "a (dog <i>:1.2) at the beach", "rain <i>", images={"2": "", "5": "hat"})
    assert answer["error"] is answer["remark"] is None
    tokenizer = reference.required_tokenizer()
    prompts = (Prompt.parse("a (dog <i1>:1.2) at the beach"), Prompt.parse("rain hat <i1>"))
    assert [answer["tokens"], answer["negative_tokens"]] == [len(tokenizer.layout(each).token_ids) for each in prompts]
    assert answer["width"] == 768
    unknown = ask(client, "a dog", file="../kosmos.safetensors", checkpoint="../tiny.safetensors")
    assert (unknown["tokens"], unknown["width"], unknown["error"]) == (None, None, None)


@pytest.mark.parametrize(
    ("texts", "box", "position"),
    [(("a dog <i2>", ""), "text", 6), (("dog <i>", "a <i>"), "negative", 2), (("(a dog <i>", ""), "text", 0)],
)
def test_a_mistake_is_the_sentence_of_the_run(client: Client, texts: tuple[str, str], box: str, position: int) -> None:
    error = ask(client, *texts, images={"1": ""})["error"]
    assert (error["box"], error["position"]) == (box, position)
    graph = SamplingGraph().prompt(texts[0], "dog.png")
    graph.nodes[graph.encoder]["inputs"]["negative"] = texts[1]
    with pytest.raises(ExecutionFailed) as failed:
        client.run(graph.sample().nodes)
    assert str(failed.value).startswith(error["reason"])


def test_what_other_tools_would_read_in_it_is_said_while_typing_and_by_the_run_and_changes_nothing(
    client: Client, reference: KosmosG, probed: Callable[[str], Any], images: dict[str, Any]
) -> None:
    text, negative = "((a dog)) <i> BREAK <i>, (hat:4)", "embedding:bad"
    typed = ask(client, text, negative, images={"1": "", "2": ""})["remarks"]
    assert [remark.split(" ", 1)[0] for remark in typed] == ["“BREAK”", "“((a", "The", "In"]
    assert typed[-1].startswith("In the negative prompt: “embedding:bad” is read as text")
    graph = SamplingGraph().prompt(text, "dog.png")
    inputs = graph.nodes[graph.encoder]["inputs"]
    inputs |= {"negative": negative, "image_2": inputs["image_1"]}
    shown = graph.add("PreviewAny", source=link(graph.encoder, 3))
    graph.add("ProbeConditioning", conditioning=graph.positive, name="habits")
    run = client.run(graph.nodes)
    *ran, twins = run.outputs[graph.encoder]["kosmos_g_remarks"]
    assert ran == typed
    assert twins.startswith("image_1 and image_2 hold the same picture. A list, such as")
    assert all(f"- warning: `{remark}`" in run.text(shown) for remark in (*ran, twins))
    dog = images["dog.png"]
    assert torch.equal(probed("habits").condition, reference.encode(Prompt.parse(text), [dog, dog]))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"text": "x" * 20_001}, "text is no text of at most 20,000 characters"),
        ({"text": 3}, "text is no text"),
        ({"images": {"9": ""}}, "images is no object of nouns by slot, 1 to 8"),
        ([], "The request is no JSON object"),
        ({"other": "x" * 400_000}, "more than 320,000 bytes"),
    ],
)
def test_a_request_that_the_box_does_not_send_is_refused(client: Client, body: Any, said: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        client.post("/kosmos_g/prompt", body)
    assert refused.value.code == 400
    assert said in json.loads(refused.value.read())["error"]


@pytest.mark.parametrize(
    ("body", "headers", "said"),
    [
        (b'{"text": ' + b"[" * 200_000, {}, "is not JSON (maximum recursion depth"),
        (b'{"text": ""', {"Content-Type": "application/json; charset=none-such"}, "is not JSON"),
        (gzip.compress(b" " * 50_000_000), {"Content-Encoding": "gzip"}, "more than 320,000 bytes"),
    ],
)
def test_a_body_is_read_as_what_it_is_and_no_further(
    server: Server, body: bytes, headers: dict[str, str], said: str
) -> None:
    request = urllib.request.Request(f"http://{server.address}/kosmos_g/prompt", body, headers)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=300)
    assert refused.value.code == 400
    assert said in json.loads(refused.value.read())["error"]


@pytest.fixture(scope="module")
def other_model(server: Server) -> Iterator[str]:
    """Name of a checkpoint whose U-Net reads what Stable Diffusion XL's does; its values are never looked at."""
    key = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
    path = server.folder / "models/checkpoints/other model.safetensors"
    save_file({key: torch.zeros(4, 2048)}, path)
    yield path.name
    path.unlink()


@pytest.fixture(scope="module")
def seen(
    server: Server, other_model: str, front_end: Path | None, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What prompt_box.mjs saw, step by step."""
    for name in ("cat.png", "pizza.png"):  # of the front end before
        (server.folder / "input" / name).unlink(missing_ok=True)
    images = [str(ROOT / "assets/world" / name) for name in ("cat.png", "pizza.png")]
    script = Path(__file__).with_name("prompt_box.mjs")
    return use(
        ENVIRONMENT,
        server.address,
        script,
        {"images": images, "other": other_model, "workflow": WORKFLOW},
        tmp_path_factory.mktemp("prompt_box"),
        front_end,
    )


def marks(box: list[dict[str, str]]) -> list[tuple[str, str]]:
    """Each mark with the file of its thumbnail, or `wrong`."""
    return [
        (piece["text"], "wrong" if "wrong" in piece["kinds"] else piece["image"].split("filename=")[-1].split("&")[0])
        for piece in box
        if "mark" in piece["kinds"].split()
    ]


@in_a_browser
def test_marks_are_drawn_with_the_image_that_they_take(seen: dict[str, Any]) -> None:
    assert marks(seen["right"]["text"]) == [("<i>", "cat.png"), ("<i>", "pizza.png")]
    assert marks(seen["mark without image"]["text"]) == [("<i>", "wrong")]
    assert marks(seen["copied"]["negative"]) == [("<i1>", "cat.png"), ("<i1>", "cat.png"), ("<i2>", "pizza.png")]
    assert marks(seen["nodes 2.0"]["text"]) == [("<i2>", "pizza.png"), ("<i>", "cat.png"), ("<i4>", "wrong")]


@in_a_browser
def test_what_is_wrong_says_why_on_hover(seen: dict[str, Any]) -> None:
    why = [(text, said) for text, said in seen["why"] if said]
    assert ("<i1>", "image_1: cat.png, weight 1.3") in why
    assert ("cat ", "weight 1.3") in why
    assert any(text == "(" and said.startswith("This ( is never closed") for text, said in why)
    assert seen["wrong"]["unmarked"] == ["image_2 (pizza.png) has no mark: click to write <i2>, or disconnect it."]
    kinds = {(piece["text"], piece["kinds"]) for piece in seen["wrong"]["text"]}
    assert {("cat ", "stronger"), (")", "partner")} <= kinds  # the caret stands behind the last bracket


@in_a_browser
def test_a_bracket_offers_the_connected_images(seen: dict[str, Any]) -> None:
    assert seen["menu without images"]["menu"] == "No image is connected: drop one on the node."
    assert seen["menu"]["menu"] == "<i1>  cat.png"
    assert seen["chosen"]["values"][0] == "a cat <i1> and <i1>"
    assert seen["undone"]["values"][0] == "a cat <i1> and <"


@in_a_browser
def test_a_dropped_and_a_pasted_image_are_loaded_connected_and_marked(seen: dict[str, Any], server: Server) -> None:
    assert seen["dropped"]["values"][0] == "a cat <i1>"
    assert seen["dropped"]["linked"] == ["clip", "image_1"]
    assert seen["pasted"]["values"][0] == "a cat <i1> and <i1> eats <i2>"
    assert seen["pasted"]["linked"] == ["clip", "image_1", "image_2"]
    assert seen["pasted"]["files"] == ["cat.png", "pizza.png"]
    for name in seen["pasted"]["files"]:
        assert (server.folder / "input" / name).read_bytes() == (ROOT / "assets/world" / name).read_bytes()


@in_a_browser
def test_one_image_input_is_shown_beyond_those_that_are_connected_or_named(seen: dict[str, Any]) -> None:
    assert seen["empty"]["shown"] == ["image_1"]
    assert seen["dropped"]["shown"] == ["image_1", "image_2"]
    assert seen["pasted"]["shown"] == ["image_1", "image_2", "image_3"]
    assert seen["habits"]["shown"] == ["image_1", "image_2", "image_3", "image_4"]
    assert seen["right"]["shown"] == ["image_1", "image_2", "image_3"]
    assert seen["nodes 2.0"]["shown"][-1] == "image_4"  # a mark names it
    assert seen["reloaded"]["linked"] == seen["right"]["linked"]
    (original, copy), another = seen["pasted_with_links"]
    assert another
    assert copy == original
    assert [name.split(" ")[0] for name in copy] == ["clip", "image_1", "image_2", "negative"]
    assert seen["reloaded"]["shown"] == ["image_1", "image_2", "image_3"]


@in_a_browser
def test_dragging_from_an_image_input_to_the_canvas_looks_for_images(seen: dict[str, Any]) -> None:
    dragged, both = seen["dragged"], "IMAGE,KOSMOSG_IMAGE"
    assert dragged["type"] == both
    if seen["version"] >= [1, 41]:  # it reads each of the two types
        assert dragged["asked"] == both
    else:
        assert dragged["asked"] == "IMAGE"
        assert dragged["colours"][0] == dragged["colours"][1] != ""
        assert "LoadImage" in dragged["offered"]


@in_a_browser
def test_what_is_saved_sent_and_copied_is_plain_text(seen: dict[str, Any]) -> None:
    assert seen["copied"]["values"][:2] == ["a cat <i1> and <i1> eats <i2>"] * 2
    assert seen["right"]["values"] == ["a cat <i> eats <i>", "", 1, "images are one subject"]
    assert set(seen["prompt"]) == {"clip", "text", "negative", "image_1", "image_2", "likeness", "batch"}
    assert seen["nodes 2.0"]["values"][0] == "Nodes 2.0: <i2> and <i> and <i4>"
    # The last is the test's own change of renderer.
    assert {path for path in seen["asked"] if "/settings/" not in path} == {"/api/kosmos_g/prompt", "/api/upload/image"}


@in_a_browser
def test_what_does_not_fit_or_comes_from_elsewhere_is_said(seen: dict[str, Any], other_model: str) -> None:
    line, warning = seen["what is elsewhere"]["status"][1:]
    assert line == "line: text comes from another node: it is read when the graph runs"
    assert warning.startswith(f"warning: {other_model} is Stable Diffusion XL (conditionings of width 2048)")
    assert seen["what is elsewhere"]["unmarked"] == []


@in_a_browser
def test_choices_notes_and_titles_are_shown_in_chinese_and_choices_sent_in_english(seen: dict[str, Any]) -> None:
    words = json.loads((ROOT / "locales/zh/main.json").read_text(encoding="utf-8"))["kosmosG"]
    assert seen["chinese"]["batch"] == [words["options"]["batch"]["images are one subject"], "images are one subject"]
    note = [*words["notes"]["Two subjects in one prompt"], "", words["lines"]["### Files"], "- Not known."]
    assert seen["chinese"]["note"] == "## " + "\n".join(note)
    assert [seen["chinese"][part] for part in ("group", "title")] == ["2 图片", "说明"]


@in_a_browser
def test_the_prompt_box_speaks_chinese(seen: dict[str, Any], tmp_path: Path) -> None:
    line, error = seen["chinese"]["error"]
    assert line == "line: 没有接入图片：可拖放一张到这里"
    assert error.startswith("error: 这个 ( 没有闭合")
    assert seen["chinese"]["placeholder"] == "画面中不要的内容"
    line, *warnings = seen["chinese"]["remarks"]
    assert line.endswith("没有接入图片：可拖放一张到这里")
    assert [warning[:12] for warning in warnings] == ["warning: <1>", "warning: “BR", "warning: “(("]
    assert all(CHINESE.search(warning) for warning in warnings)
    steps = [step for step in seen.values() if isinstance(step, dict) and "status" in step]
    shown = [line.split(": ", 1)[1] for step in steps for line in step["status"] if not line.startswith("images:")]
    shown += [title for step in steps for title in step["unmarked"]]
    shown += [why for _, why in seen["why"] if why] + [seen["menu without images"]["menu"]]
    apart = {part for sentence in shown for part in sentence.split(" · ") if len(part) > 12}
    assert len(apart) > 15
    assert untranslated(sorted(apart), tmp_path) == []


@in_a_browser
def test_what_a_node_refuses_or_fails_with_is_on_the_screen_at_once(seen: dict[str, Any]) -> None:
    assert (seen["refused"], seen["failed"]) == (True, True)


@in_a_browser
def test_the_packs_nodes_come_in_their_colour(seen: dict[str, Any]) -> None:
    assert {kind.startswith("KosmosG") for kind, _ in seen["colours"]} == {True, False}
    for kind, colour in seen["colours"]:
        assert (colour == "#355") == kind.startswith("KosmosG")


GRAMMAR = """
import fs from "node:fs";
import { pieces } from "./prompt_grammar.mjs";
const texts = JSON.parse(fs.readFileSync("texts.json", "utf8"));
console.log(JSON.stringify(texts.map((text) => {
  const found = pieces(text, [{ slot: 1 }, { slot: 3 }, { slot: 4 }], new Set());
  return found.some((piece) => piece.wrong) ? null
    : found.filter((piece) => piece.kind === "mark").map((piece) => [piece.image.slot, piece.weight]);
})));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="no node")
def test_marks_and_weights_are_drawn_as_the_server_reads_them(tmp_path: Path) -> None:
    common, rare = ["<i>", "<i3>", "(", "(", ":1.5)", ":.5)", "dog "], ["<image_4>", "<i2>", ")", ":", ":x)", "\\", "<"]
    words = common * 4 + rare
    chosen = random.Random(7)
    texts = ["".join(chosen.choices(words, k=chosen.randrange(1, 12))) for _ in range(3000)]
    (tmp_path / "prompt_grammar.mjs").write_bytes((ROOT / "web/prompt_grammar.js").read_bytes())
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    (tmp_path / "compare.mjs").write_text(GRAMMAR)
    ran = subprocess.run(["node", "compare.mjs"], cwd=tmp_path, capture_output=True, text=True, check=True)
    drawn = json.loads(ran.stdout)
    read = []
    for text in texts:
        try:
            prompt = Prompt.parse(text, slots=(1, 3, 4), all_used=False)
            read.append([[image.slot, pytest.approx(image.weight)] for image in prompt.images])
        except PromptError:
            read.append(None)
    assert drawn == read
    assert 300 < sum(each is None for each in read) < 2700


@in_a_browser
def test_the_line_counts_and_names_what_does_not_fit(seen: dict[str, Any], client: Client) -> None:
    tokens = ask(client, "a cat <i> eats <i>", images={"1": "", "2": ""})["tokens"]
    assert seen["right"]["status"][1:] == [f"line: {tokens} of 2,048 tokens · negative 1 · 2 of 2 images used"]
    assert seen["empty"]["status"][0].endswith("no image connected: drop one here")
    assert "The negative of KSampler comes from CLIP Text Encode" in seen["pasted"]["status"][-1]
    assert seen["wrong"]["status"][2].startswith("error: This ( is never closed")
    warned = [line.removeprefix("warning: ") for line in seen["habits"]["status"][2:]]
    assert (
        warned[:2] == ask(client, "((a cat <i>)) eats <i2> BREAK <i3>", images={"1": "", "2": "", "3": ""})["remarks"]
    )
    assert warned[2].startswith("image_1 and image_3 are the same output (cat.png)")
