"""Every shipped workflow: well formed, known to ComfyUI's template browser, free of lint, and it runs."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dev.browser import browse, missing, validate
from dev.client import Client
from dev.install import ROOT
from dev.server import PACK_NAME, Server
from dev.stand_ins import CHECKPOINT_WITH_CLIP, standing_in
from dev.workflow import to_api
from tests.tiny.comfyui_files import save_tiny_checkpoint

WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
assert WORKFLOWS

each_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


@pytest.fixture
def workflow(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def checkpoint_with_clip(comfyui_folder: Path) -> None:
    save_tiny_checkpoint(comfyui_folder / "models/checkpoints" / CHECKPOINT_WITH_CLIP, text_encoder=True)


@pytest.fixture
def prompt(
    workflow: dict[str, Any], client: Client, server: Server, checkpoint_with_clip: None
) -> Iterator[dict[str, Any]]:
    """The API form, with small models and pictures under the names that the workflow uses."""
    api = to_api(workflow, client.get("/object_info"))
    with standing_in(api, server.folder):
        yield api


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
def test_it_runs_and_saves_a_picture(prompt: dict[str, Any], client: Client) -> None:
    for node in prompt.values():
        if node["class_type"] == "EmptyLatentImage":
            node["inputs"] |= {"width": 64, "height": 64}
        if "steps" in node["inputs"]:
            node["inputs"]["steps"] = 2
    run = client.run(prompt)
    saved = [node for node, value in prompt.items() if value["class_type"] == "SaveImage"]
    assert saved
    assert all(client.pixels(run, node).std() > 0 for node in saved)


@each_workflow
def test_it_has_a_picture_for_the_template_browser(path: Path) -> None:
    image = Image.open(path.with_suffix(".jpg"))
    assert image.format == "JPEG"
    assert min(image.size) >= 300
    assert path.with_suffix(".jpg").stat().st_size < 250_000


ENVIRONMENT = Path(sys.executable).parents[1]
in_a_browser = pytest.mark.skipif(missing(ENVIRONMENT) is not None, reason=str(missing(ENVIRONMENT)))


@pytest.fixture(scope="session")
def browsed(
    server: Server, checkpoint_with_clip: None, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """What ComfyUI's front end in a headless Chromium made of every workflow."""
    workflows = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in WORKFLOWS}
    client = Client(server.address)
    object_info = client.get("/object_info")
    client.close()
    with contextlib.ExitStack() as stack:
        for workflow in workflows.values():
            stack.enter_context(standing_in(to_api(workflow, object_info), server.folder))
        return browse(ENVIRONMENT, server.address, workflows, tmp_path_factory.mktemp("browser"))


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
@each_workflow
def test_the_front_end_runs_it_to_the_end(path: Path, browsed: dict[str, dict[str, Any]]) -> None:
    assert browsed[path.stem]["refused"] is None
    assert browsed[path.stem]["events"] == [["execution_success", ""]]


@in_a_browser
def test_the_front_ends_own_schema_accepts_every_workflow_and_refuses_a_broken_one(tmp_path: Path) -> None:
    workflows = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in WORKFLOWS}
    broken = json.loads(json.dumps(workflows["two_subjects"]))
    del broken["nodes"][0]["type"]
    found = validate(ENVIRONMENT, workflows | {"broken": broken}, tmp_path)
    assert found.pop("broken") is not None
    assert found == dict.fromkeys(workflows)
