"""Every shipped workflow: well formed, known to ComfyUI's template browser, free of lint, and it runs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.comfyui.client import Client
from tests.comfyui.install import ROOT
from tests.comfyui.server import PACK_NAME, Server
from tests.comfyui.workflow import to_api

WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
assert WORKFLOWS

# Which of the tiny models stands for a file that a workflow names, by the input that names it.
STAND_INS = {
    "ckpt_name": ("models/checkpoints", "tiny.safetensors"),
    "file": ("models/kosmos_g", "kosmos.safetensors"),
    "control_net_name": ("models/controlnet", "tiny.safetensors"),
    "lora_name": ("models/loras", "tiny.safetensors"),
    "image": ("input", "dog.png"),
}

each_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


@pytest.fixture
def workflow(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture
def prompt(workflow: dict[str, Any], client: Client, server: Server) -> Iterator[dict[str, Any]]:
    """The API form, with small models and pictures under the names that the workflow uses."""
    api = to_api(workflow, client.get("/object_info"))
    made = []
    for node in api.values():
        for name, value in node["inputs"].items():
            if name in STAND_INS and isinstance(value, str):
                folder, stand_in = STAND_INS[name]
                target = server.folder / folder / value
                if not target.exists():
                    target.symlink_to(server.folder / folder / stand_in)
                    made.append(target)
    yield api
    for target in made:
        target.unlink()


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
