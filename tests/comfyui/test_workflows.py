"""Every shipped workflow: well formed, explained, known to ComfyUI's template browser, and it runs as it is opened."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dev.browser import browse, missing, validate
from dev.client import Client
from dev.install import ROOT
from dev.server import PACK_NAME, Server
from dev.workflow import to_api
from emoji_world.scenes import BACKGROUNDS

WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
assert WORKFLOWS

each_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


@pytest.fixture
def workflow(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def samples(server: Server) -> None:
    """The sample files are where the one action puts them; nothing else is changed for a workflow to run."""
    client = Client(server.address)
    assert client.post("/kosmos_g/samples")["left"] == []
    client.close()


@pytest.fixture
def prompt(workflow: dict[str, Any], client: Client, samples: None) -> dict[str, Any]:
    """The API form, as the front end would send it right after opening the file."""
    return to_api(workflow, client.get("/object_info"))


@each_workflow
def test_the_file_is_of_ui_format_04_and_its_links_agree_with_its_nodes(workflow: dict[str, Any]) -> None:
    assert workflow["version"] == 0.4
    nodes = {node["id"]: node for node in workflow["nodes"]}
    assert max(nodes) == workflow["last_node_id"]
    for link, source, output, target, socket, kind in workflow["links"]:
        assert link in nodes[source]["outputs"][output]["links"]
        assert nodes[target]["inputs"][socket]["link"] == link
        assert kind in (nodes[source]["outputs"][output]["type"], "*")
    linked = {entry["link"] for node in nodes.values() for entry in node.get("inputs", [])} - {None}
    assert linked == {link[0] for link in workflow["links"]}


@each_workflow
def test_seeds_are_fixed(workflow: dict[str, Any]) -> None:
    for node in workflow["nodes"]:
        assert not {"randomize", "increment", "decrement"} & set(map(str, node.get("widgets_values") or []))


@each_workflow
def test_the_template_browser_lists_and_serves_it(path: Path, workflow: dict[str, Any], client: Client) -> None:
    assert path.stem in client.get("/workflow_templates")[PACK_NAME]
    assert client.get(f"/api/workflow_templates/{PACK_NAME}/{path.name}") == workflow


def schema_for(prompt: dict[str, Any], object_info: dict[str, Any]) -> dict[str, Any]:
    """What the server declares; comfy-lint knows no inputs of several types, so they get the type that is linked."""
    for node in prompt.values():
        for group in object_info[node["class_type"]]["input"].values():
            for name, declared in group.items():
                value = node["inputs"].get(name)
                if isinstance(declared[0], str) and "," in declared[0] and isinstance(value, list):
                    linked = object_info[prompt[value[0]]["class_type"]]["output"][value[1]]
                    if linked in declared[0].split(","):
                        declared[0] = linked
    return object_info


def lint(prompt: dict[str, Any], client: Client, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "schema.json").write_text(json.dumps(schema_for(prompt, client.get("/object_info"))))
    (folder / "prompt.json").write_text(json.dumps(prompt))
    program = Path(sys.executable).with_name("comfy-lint")
    command = [program, "--strict", "--schema-cache", folder / "schema.json", folder / "prompt.json"]
    return subprocess.run(command, capture_output=True, text=True)


@each_workflow
def test_comfy_lint_finds_nothing_in_it(prompt: dict[str, Any], client: Client, tmp_path: Path) -> None:
    found = lint(prompt, client, tmp_path)
    assert found.returncode == 0, found.stdout + found.stderr
    broken = next(node for node in prompt.values() if node["class_type"] == "KosmosGTextEncode")
    broken["inputs"]["clip"][1] = 1  # the loader's info text in place of its CLIP
    assert lint(prompt, client, tmp_path).returncode != 0


@each_workflow
def test_it_runs_as_it_is_and_draws_the_background_that_it_names(prompt: dict[str, Any], client: Client) -> None:
    run = client.run(prompt)
    (saved,) = [node for node, value in prompt.items() if value["class_type"] == "SaveImage"]
    text = next(node["inputs"]["text"] for node in prompt.values() if node["class_type"] == "KosmosGTextEncode")
    colour = np.array(BACKGROUNDS[re.search(r"(\w+) background", text)[1]])
    images = client.pixels(run, saved).astype(int)
    assert images.shape[1:] == (64, 64, 3)
    for image in images:
        border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
        assert np.abs(np.median(border, axis=0) - colour).max() < 24
        assert np.abs(image - colour).max(axis=2).mean() > 10  # and something on it


@each_workflow
def test_its_note_says_what_to_press_to_change_and_to_expect(workflow: dict[str, Any]) -> None:
    (note,) = [node["widgets_values"][0] for node in workflow["nodes"] if node["type"] == "MarkdownNote"]
    assert note.startswith("## ")
    for words in ("**Press Run**", "xpect", "### Change", "### Files", "get sample files", "### With your own files"):
        assert words in note
    checkpoint = next(node for node in workflow["nodes"] if node["type"] == "CheckpointLoaderSimple")
    (model,) = checkpoint["properties"]["models"]
    assert model["directory"] == "checkpoints"
    assert model["url"].startswith("https://huggingface.co/")
    assert model["url"].endswith(model["name"])
    assert f"({model['url']})" in note


@each_workflow
def test_its_nodes_say_whose_they_are_and_have_their_colour(workflow: dict[str, Any]) -> None:
    version = re.search(r'(?m)^version = "(.*)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))[1]
    for node in workflow["nodes"]:
        own = node["type"].startswith("KosmosG")
        if node["type"] != "MarkdownNote":
            expected = ("kosmos-g", version) if own else ("comfy-core", "0.3.75")
            assert (node["properties"]["cnr_id"], node["properties"]["ver"]) == expected
        assert (node.get("bgcolor") == "#355") == own


@each_workflow
def test_it_opens_readable_and_in_order(workflow: dict[str, Any]) -> None:
    boxes = [(*node["pos"], *node["size"]) for node in workflow["nodes"]]
    with_titles = [(left, top - 30, width, height + 30) for left, top, width, height in boxes]
    for first, second in combinations(with_titles, 2):
        assert not all(first[side] < second[side] + second[side + 2] for side in (0, 1)) or not all(
            second[side] < first[side] + first[side + 2] for side in (0, 1)
        ), (first, second)
    groups = [group["bounding"] for group in workflow["groups"]]
    for node in workflow["nodes"]:
        (left, top), (width, height) = node["pos"], node["size"]
        inside = [
            g[0] <= left and g[1] <= top and left + width <= g[0] + g[2] and top + height <= g[1] + g[3] for g in groups
        ]
        assert sum(inside) == (node["type"] != "MarkdownNote"), node["type"]
    view = workflow["extra"]["ds"]
    assert view["scale"] >= 0.6  # below, ComfyUI draws no text
    for left, top, width, height in (*boxes, *groups):
        assert (left + view["offset"][0]) * view["scale"] >= 60
        assert (left + width + view["offset"][0]) * view["scale"] <= 1600
        assert (top + view["offset"][1]) * view["scale"] >= 90
        assert (top + height + view["offset"][1]) * view["scale"] <= 900
    for node in workflow["nodes"]:
        if node["type"] in ("SaveImage", "PreviewImage"):  # what came out is not under the minimap
            right, bottom = (node["pos"][side] + node["size"][side] + view["offset"][side] for side in (0, 1))
            assert right * view["scale"] <= 1340 or bottom * view["scale"] <= 638, node["type"]
    loras = [node["size"] for node in workflow["nodes"] if node["type"] == "LoraLoader"]
    assert all(height < 150 for _, height in loras)


def test_two_subjects_is_an_app_as_well() -> None:
    workflow = json.loads((ROOT / "workflows/two_subjects.json").read_text(encoding="utf-8"))
    data, nodes = workflow["extra"]["linearData"], {node["id"]: node for node in workflow["nodes"]}
    assert workflow["extra"]["linearMode"] is False  # it opens as a graph
    names = [(nodes[node]["type"], name) for node, name in data["inputs"]]
    assert names == [
        ("KosmosGTextEncode", "text"),
        ("LoadImage", "image"),
        ("LoadImage", "image"),
        ("KSampler", "seed"),
    ]
    assert [nodes[node]["type"] for node in data["outputs"]] == ["SaveImage"]
    for node, name in data["inputs"]:
        assert any(socket["name"] == name and "widget" in socket for socket in nodes[node]["inputs"])


BLUEPRINTS = sorted((ROOT / "subgraphs").glob("*.json"))


def test_two_subgraph_blueprints_are_served_and_are_one_node_each(client: Client) -> None:
    # Newer ones serve ComfyUI's own as well.
    served = [
        entry["name"] for entry in client.get("/global_subgraphs").values() if PACK_NAME in entry["info"]["node_pack"]
    ]
    assert sorted(served) == [path.stem for path in BLUEPRINTS]
    assert len(BLUEPRINTS) == 2
    known = client.get("/object_info")
    for path in BLUEPRINTS:
        content = json.loads(path.read_text(encoding="utf-8"))
        (outside,) = content["nodes"]
        (subgraph,) = content["definitions"]["subgraphs"]
        assert outside["type"] == subgraph["id"]
        assert subgraph["name"] == path.stem
        for side in ("inputs", "outputs"):
            assert [socket["name"] for socket in outside[side]] == [socket["name"] for socket in subgraph[side]]
        nodes = {node["id"]: node for node in subgraph["nodes"]}
        assert {node["type"] for node in nodes.values()} == {"KosmosGTextEncode", "KosmosGReference"} <= set(known)
        for node, widget in outside["properties"]["proxyWidgets"]:
            assert any(socket["name"] == widget for socket in nodes[int(node)]["inputs"])
        for link in subgraph["links"]:
            if link["origin_id"] in nodes:
                assert link["id"] in nodes[link["origin_id"]]["outputs"][link["origin_slot"]]["links"]
            else:
                assert link["id"] in subgraph["inputs"][link["origin_slot"]]["linkIds"]
            if link["target_id"] in nodes:
                assert nodes[link["target_id"]]["inputs"][link["target_slot"]]["link"] == link["id"]


@each_workflow
def test_it_has_a_picture_for_the_template_browser(path: Path) -> None:
    image = Image.open(path.with_suffix(".jpg"))
    assert image.format == "JPEG"
    assert min(image.size) >= 300
    assert path.with_suffix(".jpg").stat().st_size <= 200_000


ENVIRONMENT = Path(sys.executable).parents[1]
DRAWN_BY_THE_NEWEST = ("two_subjects", "inspect_and_attention")
in_a_browser = pytest.mark.skipif(missing(ENVIRONMENT) is not None, reason=str(missing(ENVIRONMENT)))


@pytest.fixture(scope="session")
def browsed(
    server: Server, samples: None, front_end: Path | None, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """What ComfyUI's front end in a headless Chromium made of every workflow."""
    workflows = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in WORKFLOWS}
    opened = workflows.keys() - set(DRAWN_BY_THE_NEWEST) if front_end else ()
    folder = tmp_path_factory.mktemp("browser")
    return browse(ENVIRONMENT, server.address, workflows, folder, opened=opened, front_end=front_end)


@in_a_browser
@each_workflow
def test_the_front_end_opens_it_and_gives_it_back_unchanged(
    path: Path, workflow: dict[str, Any], client: Client, browsed: dict[str, dict[str, Any]]
) -> None:
    seen = browsed[path.stem]
    assert seen["missing"] == []

    def essence(graph: dict[str, Any]) -> tuple[Any, ...]:
        nodes = [(node["id"], node["type"], node.get("widgets_values") or []) for node in graph["nodes"]]
        return sorted(nodes, key=lambda node: node[0]), sorted(graph["links"])

    assert essence(seen["saved"]) == essence(workflow)
    expected = to_api(workflow, client.get("/object_info"))
    assert seen["prompt"].keys() == expected.keys()
    for name, node in expected.items():
        assert seen["prompt"][name]["class_type"] == node["class_type"]
        # The front end also sends widgets of its own, such as a preview's text, which the server ignores.
        assert {key: seen["prompt"][name]["inputs"].get(key) for key in node["inputs"]} == node["inputs"]


@in_a_browser
def test_the_front_end_runs_them_to_the_end(browsed: dict[str, dict[str, Any]], front_end: Path | None) -> None:
    ran = {name: [seen["refused"], seen["events"]] for name, seen in browsed.items() if "events" in seen}
    # The newest sends the same for all of them, which the test before has seen.
    names = DRAWN_BY_THE_NEWEST if front_end else [path.stem for path in WORKFLOWS]
    assert ran == {name: [None, [["execution_success", ""]]] for name in names}


@in_a_browser
def test_the_front_ends_own_schema_accepts_every_workflow_and_refuses_a_broken_one(tmp_path: Path) -> None:
    workflows = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in WORKFLOWS}
    broken = json.loads(json.dumps(workflows["two_subjects"]))
    del broken["nodes"][0]["type"]
    found = validate(ENVIRONMENT, workflows | {"broken": broken}, tmp_path)
    assert found.pop("broken") is not None
    assert found == dict.fromkeys(workflows)
