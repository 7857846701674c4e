"""A ComfyUI in which there is nothing yet: what the loaders say, and how the sample files get there."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dev.browser import missing, use
from dev.client import Client, PromptRefused
from dev.graph import Graph, link
from dev.install import ROOT
from dev.server import PACK_NAME, Server, prepare_folder, running_server

from .test_sentences import in_chinese

WORLD = ROOT / "assets/world"
COPIES = {
    "models/kosmos_g/emoji-world-kosmos-g.safetensors": WORLD / "emoji-world-kosmos-g.safetensors",
    "models/checkpoints/emoji-world-sd.safetensors": WORLD / "emoji-world-sd.safetensors",
    **{f"input/{path.name}": path for path in sorted((WORLD / "samples").glob("*.png"))},
    "output/kosmos_g_references/kosmos-g-donut.safetensors": WORLD / "samples/kosmos-g-donut.safetensors",
}
ENVIRONMENT = Path(sys.executable).parents[1]
REFERENCE = "output/kosmos_g_references/kosmos-g-cat.safetensors"


@pytest.fixture(scope="module")
def running(comfyui_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for all that begins with nothing."""
    with running_server(prepare_folder(tmp_path_factory.mktemp("fresh"))) as server:
        yield server


@pytest.fixture
def fresh(running: Server) -> Server:
    """A server without any model, image or reference, whatever was copied before."""
    for name in (*COPIES, REFERENCE):
        (running.folder / name).unlink(missing_ok=True)
    return running


@pytest.fixture
def client(fresh: Server) -> Iterator[Client]:
    connection = Client(fresh.address)
    yield connection
    connection.close()


def offered(client: Client, node: str) -> list[str]:
    return client.get(f"/object_info/{node}")[node]["input"]["required"]["file"][1]["options"]


def refusal(client: Client, node: str, **inputs: Any) -> str:
    graph = Graph()
    loader = graph.add(node, **inputs)
    graph.add("PreviewAny", source=link(loader))
    with pytest.raises(PromptRefused) as refused:
        client.run(graph.nodes)
    assert list(refused.value.node_errors) == [loader]
    return str(refused.value)


def loader_says(client: Client, file: str) -> str:
    return refusal(client, "KosmosGLoader", file=file, dtype="auto", device="auto")


def test_a_fresh_load_kosmos_g_says_where_it_looked_and_how_to_get_a_file(client: Client, fresh: Server) -> None:
    (only,) = offered(client, "KosmosGLoader")
    assert only == "no Kosmos-G file found"
    said = loader_says(client, only)
    assert "There is no Kosmos-G file. Searched: " in said
    for folder in ("models/kosmos_g", "models/text_encoders"):
        assert str(fresh.folder / folder) in said
    assert "They hold no .safetensors file." in said
    assert "press Get sample files on the node" in said
    # What the front end sent where a widget had nothing to choose from.
    assert "Required input is missing" in refusal(client, "KosmosGLoader", dtype="auto", device="auto")
    foreign = fresh.folder / "models/text_encoders/clip.safetensors"
    foreign.write_bytes(b"no model")
    try:
        assert "No file there is Kosmos-G's (clip.safetensors: unreadable" in loader_says(client, only)
    finally:
        foreign.unlink()


def test_a_fresh_load_reference_says_where_it_looked_and_how_to_make_one(client: Client, fresh: Server) -> None:
    (only,) = offered(client, "KosmosGLoadReference")
    said = refusal(client, "KosmosGLoadReference", file=only)
    assert "No reference is chosen. Searched: " in said
    for folder in ("output/kosmos_g_references", "models/kosmos_g_references"):
        assert str(fresh.folder / folder) in said
    assert "save one with Save Kosmos-G Reference" in said
    assert "Kosmos-G: get sample files" in said


@pytest.mark.parametrize("deleted", ["output/kosmos_g_references", "models/kosmos_g", "models/text_encoders"])
def test_a_folder_that_is_deleted_while_comfyui_runs_takes_no_node_with_it(
    client: Client, fresh: Server, deleted: str
) -> None:
    kept = fresh.folder / deleted / "some/where"
    kept.mkdir(parents=True)
    client.get("/object_info/KosmosGLoader")  # ComfyUI remembers what is in the folders
    client.get("/object_info/KosmosGLoadReference")
    shutil.rmtree(fresh.folder / deleted)
    assert offered(client, "KosmosGLoader") == ["no Kosmos-G file found"]
    assert offered(client, "KosmosGLoadReference") == ["no saved reference found"]
    (fresh.folder / deleted).mkdir()


def test_getting_sample_files_asks_copies_and_changes_nothing_that_exists(client: Client, fresh: Server) -> None:
    files = client.get("/kosmos_g/samples")["files"]
    places = {str(Path(file["folder"], file["name"]).relative_to(fresh.folder)): file for file in files}
    assert places.keys() == {*COPIES, REFERENCE}
    assert {file["state"] for file in files} == {"missing"}
    assert {places[name]["bytes"] for name in COPIES} == {path.stat().st_size for path in COPIES.values()}
    assert not any((fresh.folder / name).exists() for name in places)  # nothing is copied unasked

    other = fresh.folder / "input/kosmos-g-pizza.png"
    other.write_bytes(b"somebody's own")
    (fresh.folder / "models/checkpoints").rename(fresh.folder / "models/away")
    (fresh.folder / "models/checkpoints").write_text("a file where a folder belongs")
    done = client.post("/kosmos_g/samples")
    assert other.read_bytes() == b"somebody's own"
    told = sorted(done["left"])
    assert [sentence.split(" ")[0].split("/")[-1] for sentence in told] == [
        "kosmos-g-pizza.png",
        "emoji-world-sd.safetensors",
    ]
    assert "is another file, which was left as it is" in told[0]
    assert "cannot be written into" in told[1]

    other.unlink()
    (fresh.folder / "models/checkpoints").unlink()
    (fresh.folder / "models/away").rename(fresh.folder / "models/checkpoints")
    assert sorted(client.post("/kosmos_g/samples")["copied"]) == ["emoji-world-sd.safetensors", "kosmos-g-pizza.png"]
    for name, source in COPIES.items():
        assert (fresh.folder / name).read_bytes() == source.read_bytes()
    dates = {name: (fresh.folder / name).stat().st_mtime_ns for name in places}
    assert client.post("/kosmos_g/samples") == {"copied": [], "left": [], "remark": None}
    assert {name: (fresh.folder / name).stat().st_mtime_ns for name in places} == dates
    assert {file["state"] for file in client.get("/kosmos_g/samples")["files"]} == {"there"}
    assert not list(fresh.folder.rglob("*.tmp"))
    assert offered(client, "KosmosGLoader") == ["emoji-world-kosmos-g.safetensors"]
    assert offered(client, "KosmosGLoadReference") == ["kosmos-g-cat.safetensors", "kosmos-g-donut.safetensors"]
    assert "No Kosmos-G file is chosen" in loader_says(client, "no Kosmos-G file found")


@pytest.mark.skipif(missing(ENVIRONMENT) is not None, reason=str(missing(ENVIRONMENT)))
def test_a_newcomer_finds_the_prompt_and_has_a_picture_after_one_click(
    client: Client, fresh: Server, tmp_path: Path
) -> None:
    missed = ("KosmosGLoader", {"dtype": "auto", "device": "auto"}), ("KosmosGLoadReference", {})
    refusals = [refusal(client, node, file="mine.safetensors", **others) for node, others in missed]
    told = in_chinese([said.partition("file - ")[2] for said in refusals], tmp_path)
    assert [sentence[:2] for sentence in told] == ["没有", "没有"]
    script = Path(__file__).with_name("first_minutes.mjs")
    seen = use(ENVIRONMENT, fresh.address, script, {"pack": PACK_NAME}, tmp_path)
    assert seen["added"] == [["KosmosGTextEncode", "Kosmos-G Prompt", "#355"]]
    assert seen["found"] == {"image prompt": True, "subject": True, "reference": True}
    assert seen["button"][0] == ["file", "no Kosmos-G file found", True]
    assert seen["button"][-1] == ["Get sample files …", None, False]
    # The reference of the cat is made, in a file of its own.
    size = sum((fresh.folder / name).stat().st_size for name in (*COPIES, REFERENCE))
    assert f"These {len(COPIES) + 1} files, {size / 1e6:.1f} MB, would be copied" in seen["told"]
    assert "0.0 MB" not in seen["told"]
    assert seen["stale"] == 0
    for name in COPIES:
        assert str((fresh.folder / name).parent) in seen["told"]
    assert (seen["clicks"], seen["drawn"]) == (1, "execution_success")
    assert seen["chosen"] == ["file=emoji-world-kosmos-g.safetensors", "dtype=auto", "device=auto"]
    assert seen["view"] >= 0.65
    assert list((fresh.folder / "output/kosmos-g").glob("two_subjects_*.png"))
