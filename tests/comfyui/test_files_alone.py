"""The nodes' files and what they know of their graph, called with values: at their limits, and after a change."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kosmos_core.safetensors_file import write
from tests.comfyui.in_process import Pack
from tests.tiny.kosmos_file import save_tiny_kosmos

Folders = Callable[..., Path]


@pytest.fixture
def model_folders(pack: Pack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folders:
    """Makes the named folders the only ones of a kind of model, and returns the first."""
    folder_paths = importlib.import_module("folder_paths")
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "text_encoders", ([], {".safetensors"}))

    def make(kind: str, *names: str) -> Path:
        paths = [tmp_path / name for name in names or (kind,)]
        for path in paths:
            path.mkdir(parents=True)
        monkeypatch.setitem(
            folder_paths.folder_names_and_paths, kind, ([str(path) for path in paths], {".safetensors"})
        )
        return paths[0]

    return make


def question(pack: Pack, text: str, negative: str = "", **other: Any) -> Any:
    return pack("nodes.prompt_box").Question(text, negative, **{"nouns": {}, "file": "", "checkpoint": ""} | other)


@pytest.mark.parametrize("name", ["text", "negative", "file", "checkpoint"])
def test_a_question_is_read_up_to_a_text_of_just_the_most_characters(pack: Pack, name: str):
    box = pack("nodes.prompt_box")
    assert len(getattr(box.read_question({name: "x" * box.LONGEST_TEXT}), name)) == box.LONGEST_TEXT
    with pytest.raises(box.QuestionError, match=f"{name} is no text of at most 20,000 characters"):
        box.read_question({name: "x" * (box.LONGEST_TEXT + 1)})


@pytest.mark.parametrize(
    ("text", "negative", "box"),
    [("(a", "(a", "text"), ("a", "(a", "negative"), ("(a", "a", "text"), ("(a", "(b", "text"), ("<i>", "<i>", "text")],
)
def test_a_mistake_that_stands_in_both_boxes_is_shown_in_the_first(pack: Pack, text: str, negative: str, box: str):
    assert pack("nodes.prompt_box").answer(question(pack, text, negative))["error"]["box"] == box


def test_a_file_that_was_replaced_is_asked_anew_for_its_tokenizer_and_what_it_is(pack: Pack, model_folders: Folders):
    path = save_tiny_kosmos(model_folders("kosmos_g") / "k.safetensors")
    box, loader = pack("nodes.prompt_box"), pack("nodes.loader")
    assert box.tokenizer_of(path.name).vocabulary > 10
    content = path.read_bytes()
    length = 8 + int.from_bytes(content[:8], "little")
    path.write_bytes(content[:length] + bytes(len(content) - length))  # of the same size, its tokenizer broken
    with pytest.raises(box.WeightsError, match="carries a broken tokenizer"):
        box.tokenizer_of(path.name)
    assert loader.rejection(str(path)) is None
    path.write_bytes(content.replace(b'"format":"kosmos-g"', b'"format":"cosmos-h"', 1))
    assert loader.rejection(str(path)) is not None
    path.write_bytes(content)
    assert loader.rejection(str(path)) is None


@pytest.mark.parametrize(
    ("name", "shape", "width"),
    [
        ("model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", (4, 1024), 1024),
        ("model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", (1024,), None),
        ("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight", (4, 1024), None),
        ("model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_k.weight", (4, 320), None),
    ],
)
def test_the_width_of_a_checkpoint_is_that_of_its_own_u_net(
    pack: Pack, model_folders: Folders, name: str, shape: tuple[int, ...], width: int | None
):
    path = model_folders("checkpoints") / "c.safetensors"
    write(path, [(name, torch.zeros(shape), torch.float16)], {})
    assert pack("nodes.prompt_box").condition_width(path.name) == width
    assert pack("nodes.prompt_box").condition_width("none.safetensors") is None


@pytest.fixture
def run(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Calls a function while ComfyUI runs node 2 of prompt `own`, beside another prompt that runs as well."""
    context = importlib.import_module("comfy_execution.utils").CurrentNodeContext

    def call(function: Callable[[], Any], links: Any, kind: str = "Own") -> Any:
        nodes = {"2": {"class_type": kind, "inputs": {}}, "3": {"class_type": "Other", "inputs": {"a": 1, "b": links}}}
        other = {"2": {"class_type": "Own", "inputs": {}}, "3": {"class_type": "Other", "inputs": {"b": ["2", 5]}}}
        items = [(0, "other", other), (1, "own", nodes)]
        queue = SimpleNamespace(get_current_queue_volatile=lambda: (items, []))
        server = SimpleNamespace(PromptServer=SimpleNamespace(instance=SimpleNamespace(prompt_queue=queue)))
        monkeypatch.setitem(sys.modules, "server", server)
        with context("own", "2"):
            return function()

    return call


@pytest.mark.parametrize(
    ("links", "kind", "read"),
    [
        (["2", 1], "Own", True),
        (["2", 0], "Own", False),  # another output of the same node
        (["1", 1], "Own", False),  # the same output of another node
        ("text", "Own", False),
        (["2", 0], "Another pack's", True),  # which calls the node itself: what it reads, nobody knows
    ],
)
def test_an_output_is_read_where_the_running_prompt_links_it(
    pack: Pack, run: Callable[..., Any], links: Any, kind: str, read: bool
):
    assert run(lambda: pack("nodes.connections").is_read(1, "Own"), links, kind) == read


def test_of_the_prompts_that_run_a_node_knows_its_own(pack: Pack, run: Callable[..., Any]):
    found = run(pack("nodes.connections").running_node, ["2", 1])
    assert (found.prompt_id, found.node_id, found.prompt["3"]["inputs"]["b"]) == ("own", "2", ["2", 1])
    assert not run(lambda: pack("nodes.connections").is_read(5, "Own"), ["2", 1])


def test_a_name_may_be_given_with_its_ending_and_be_taken_by_another_server_just_now(pack: Pack):
    tried = []

    def save(path: Path) -> None:
        tried.append(path.name)
        if len(tried) < 3:
            raise FileExistsError
        path.write_text("")

    made = pack("nodes.reference_files").save_new("own.safetensors", save)
    assert tried == ["own.safetensors", "own_2.safetensors", "own_3.safetensors"]
    assert made.name == tried[-1]


@pytest.mark.parametrize("changed", [0, 100_000, -1])
def test_a_files_hash_covers_its_first_and_last_byte(pack: Pack, tmp_path: Path, changed: int):
    content = bytearray(200_000)
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.write_bytes(content)
        content[changed] ^= 1
    one, other = (pack("nodes.loader")._sampled_hash(str(path), 0, 200_000) for path in paths)
    assert one != other


def test_a_model_is_loaded_again_once_it_lies_elsewhere(pack: Pack, model_folders: Folders):
    first = model_folders("kosmos_g", "one", "two")
    node = pack("nodes.loader").KosmosGLoader
    path = save_tiny_kosmos(first / "k.safetensors")
    before = node.fingerprint_inputs(path.name)
    assert before == node.fingerprint_inputs(path.name)
    shutil.move(path, first.parent / "two" / path.name)
    importlib.import_module("folder_paths").filename_list_cache.clear()
    assert node.fingerprint_inputs(path.name) not in (before, "missing")


def test_of_two_model_folders_the_other_is_listed_once_one_has_gone(pack: Pack, model_folders: Folders):
    first = model_folders("kosmos_g", "one/inner", "two")
    for folder in (first, first.parents[1] / "two"):
        (folder / f"{folder.name}.safetensors").touch()
    listed = pack("nodes.file_lists").listed_files
    assert sorted(listed("kosmos_g")) == ["inner.safetensors", "two.safetensors"]
    shutil.rmtree(first)
    assert listed("kosmos_g") == ["two.safetensors"]


def test_a_link_to_nowhere_is_in_the_way_of_a_sample(pack: Pack, tmp_path: Path):
    (tmp_path / "sample.png").write_bytes(b"one")
    (tmp_path / "link.png").symlink_to(tmp_path / "gone.png")
    sample = pack("nodes.sample_files").Sample(tmp_path / "sample.png", tmp_path / "link.png")
    assert sample.state() == "taken"
    with pytest.raises(FileExistsError):
        sample.put()
    assert os.readlink(tmp_path / "link.png") == str(tmp_path / "gone.png")
