"""The tiny models, made once for all tests of evaluation."""

from pathlib import Path

import pytest

from tests.tiny.clip import save_clip, save_dino
from tests.tiny.kosmos_file import save_tiny_kosmos
from tests.tiny.stable_diffusion import save_stable_diffusion


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Kosmos-G file."""
    return save_tiny_kosmos(tmp_path_factory.mktemp("weights") / "kosmos-g.safetensors", seed=0)


@pytest.fixture(scope="session")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SD1.5 folder."""
    return save_stable_diffusion(tmp_path_factory.mktemp("sd") / "sd15")


@pytest.fixture(scope="session")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny DINO folder."""
    return save_dino(tmp_path_factory.mktemp("dino"))


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP folder."""
    return save_clip(tmp_path_factory.mktemp("clip"))
