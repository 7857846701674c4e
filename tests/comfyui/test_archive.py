"""The registry's archive: what is in it, that nothing in it is flagged, and that ComfyUI runs from it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from dev.archive import archived_files, build_archive, scan, scan_file
from dev.client import Client
from dev.install import COMFYUI_TREE, COMFYUI_VERSION, ROOT, project_requirements
from dev.registry import faults
from dev.server import prepare_folder, running_server
from dev.workflow import to_api


def test_it_holds_the_pack_with_its_sample_files_and_neither_tests_nor_training() -> None:
    names = archived_files()
    tops = {name.split("/")[0] for name in names}
    assert tops >= {"__init__.py", "nodes", "kosmos_core", "web", "locales", "workflows", "LICENSE", "pyproject.toml"}
    assert not tops & {"tests", "training", "emoji_world", "dev", ".ci", ".github", ".comfyui", "Makefile"}
    assert {"kosmos_core/convert.py", "kosmos_core/pipeline.py"} <= set(names)
    assert {page.relative_to(ROOT).as_posix() for page in (ROOT / "web/docs").rglob("*.md")} <= set(names)
    assert not [name for name in names if name.startswith("docs/")]
    assert not [name for name in names if name.startswith(("kosmos_core/original/", "kosmos_core/diffusers/"))]
    samples = {name for name in names if name.startswith("assets/")}
    assert {name.rsplit("/", 1)[0] for name in samples} == {"assets/world", "assets/world/samples"}
    assert {name.split("/")[-1] for name in samples if not name.endswith(".png")} == {
        "ATTRIBUTION.md",
        "emoji-world-kosmos-g.safetensors",
        "emoji-world-sd.safetensors",
        "kosmos-g-donut.safetensors",
    }
    weights = sum((ROOT / name).stat().st_size for name in samples)
    assert weights < 65e6
    assert sum((ROOT / name).stat().st_size for name in names) - weights < 10e6


def test_the_scanner_finds_what_it_looks_for() -> None:
    planted = "import os, pickle\nfrom urllib.request import urlopen\nos.environ.get('A'); eval('1'); os.system('x')"
    assert len(scan(planted)) == 5
    assert scan("import re\npattern = re.compile('eval')\nfrom .pickle import x") == []


def test_nothing_in_it_is_flagged() -> None:
    assert {name: found for name in archived_files() if (found := scan_file(name))} == {}


def test_the_metadata_is_what_the_registry_asks_for() -> None:
    try:
        import tomllib
    except ImportError:
        from pip._vendor import tomli as tomllib
    content = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project, comfy = content["project"], content["tool"]["comfy"]
    assert re.fullmatch(r"[a-z][a-z0-9-]*", project["name"])
    assert "comfyui" not in project["name"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
    assert comfy["DisplayName"] == "Kosmos-G"
    assert comfy["requires-comfyui"] == f">={COMFYUI_VERSION}"
    assert re.fullmatch(r"[a-z0-9-]+", comfy["PublisherId"])
    lacking = faults(content)  # the account is not known yet: nothing is published until it is
    assert [fault.split(" ")[0] for fault in lacking] == [
        "project.urls.Repository",
        "tool.comfy.Icon",
        "tool.comfy.Banner",
    ]
    named = (ROOT / "pyproject.toml").read_text(encoding="utf-8").replace("/OWNER/", "/somebody/")
    assert faults(tomllib.loads(named)) == []
    wrong = named.replace("icon.png", "banner.png").replace('Repository = "https', 'Repository = "file')
    said = [
        "project.urls.Repository in pyproject.toml is 'file:",
        "Icon is assets/banner.png, (1260, 540): expected 400 x 400",
    ]
    assert all(part in fault for part, fault in zip(said, faults(tomllib.loads(wrong)), strict=True))
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert project_requirements(())


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["-m", "kosmos_core.convert", "a.pt", "b.safetensors"], "Converting needs the folder kosmos_core/original"),
        (["-c", "import kosmos_core.pipeline"], "The pipeline needs the folder kosmos_core/diffusers"),
    ],
)
def test_what_it_leaves_out_says_where_it_is(command: list[str], said: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(build_archive(tmp_path / "pack.zip")) as archive:
        archive.extractall(tmp_path / "pack")
    ran = subprocess.run([sys.executable, *command], cwd=tmp_path / "pack", capture_output=True, text=True)
    assert ran.returncode == 1
    assert said in ran.stderr
    assert "clone the repository" in ran.stderr


@pytest.mark.usefixtures("comfyui_folder")
def test_comfyuis_own_reader_of_the_metadata_finds_it() -> None:
    read = (
        "from comfy_config.config_parser import extract_node_configuration as extract; import sys; "
        "found = extract(sys.argv[1]); print(found.project.name, found.tool_comfy.display_name, "
        "found.project.supported_os, found.project.supported_comfyui_version)"
    )
    ran = subprocess.run([sys.executable, "-c", read, ROOT], cwd=COMFYUI_TREE, capture_output=True, text=True)
    assert ran.stdout.strip() == f"kosmos-g Kosmos-G ['OS Independent'] >={COMFYUI_VERSION}", ran.stderr


def test_comfyui_runs_a_workflow_from_it(comfyui_folder: Path, tmp_path: Path) -> None:
    pack = tmp_path / "pack"
    with zipfile.ZipFile(build_archive(tmp_path / "pack.zip")) as archive:
        archive.extractall(pack)
    folder = prepare_folder(tmp_path / "comfyui", pack)
    workflow = json.loads((pack / "workflows/two_subjects.json").read_text(encoding="utf-8"))
    with running_server(folder) as server:
        client = Client(server.address)
        assert client.post("/kosmos_g/samples")["left"] == []  # out of the archive itself
        prompt = to_api(workflow, client.get("/object_info"))
        run = client.run(prompt)
        saved = next(name for name, node in prompt.items() if node["class_type"] == "SaveImage")
        assert client.pixels(run, saved).std() > 0
        client.close()


def guard(cache: Path, install: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("comfy-import-guard")
    command = [
        program,
        "--offline",
        "--cache-dir",
        cache,
        "check",
        "--comfy-dir",
        install,
        "--target",
        "HEAD",
        "--no-update",
        "--strict",
    ]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.usefixtures("comfyui_folder")
def test_every_name_that_is_used_of_comfyui_exists_in_it(tmp_path: Path) -> None:
    history = tmp_path / "cache/ComfyUI"
    history.mkdir(parents=True)
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.invalid"]
    git = ["git", "--git-dir", history / ".git", "--work-tree", COMFYUI_TREE, *identity]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "-f", "comfy", "comfy_api", "nodes.py", "folder_paths.py"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "as installed"], check=True)
    install = tmp_path / "install"
    packed = install / "custom_nodes/kosmos-g"
    with zipfile.ZipFile(build_archive(tmp_path / "pack.zip")) as archive:
        archive.extractall(packed)
    found = guard(tmp_path / "cache", install)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "kosmos-g" in found.stdout
    adapter = packed / "nodes/adapter.py"
    planted = "\nfrom comfy.model_management import a_name_that_is_gone\n"
    adapter.write_text(adapter.read_text(encoding="utf-8") + planted, encoding="utf-8")
    assert guard(tmp_path / "cache", install).returncode != 0
