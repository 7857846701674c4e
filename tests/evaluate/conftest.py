"""The tiny models, made once for all tests of evaluation."""

from pathlib import Path

import pytest

from tests.tiny import evaluation as tiny


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer) -> Path:
    """A tiny Kosmos-G file."""
    return tiny.save_kosmos_g(tmp_path_factory.mktemp("weights") / "kosmos-g.safetensors", tiny_tokenizer)


@pytest.fixture(scope="session")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SD1.5 folder."""
    return tiny.save_stable_diffusion(tmp_path_factory.mktemp("sd") / "sd15")


@pytest.fixture(scope="session")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny DINO folder."""
    return tiny.save_dino(tmp_path_factory.mktemp("dino"))


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP folder."""
    return tiny.save_clip(tmp_path_factory.mktemp("clip"))
