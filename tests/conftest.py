"""Fixtures for every part: the original's numbers where they are at hand, and a small vocabulary made on the fly."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import kosmos_file

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder beside the checkout with the original's outputs; tests that need it are skipped without it."""
    if not SHARED.is_dir():
        pytest.skip("the original implementation's outputs are not beside this checkout (../shared)")
    return SHARED


@pytest.fixture(scope="session")
def tiny_tokenizer_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(spm, dictionary) of the tiny vocabulary."""
    return kosmos_file.save_vocabulary(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """A Tokenizer over `tiny_tokenizer_files`, 4 latents per picture."""
    return kosmos_file.tiny_tokenizer()


@pytest.fixture(scope="session")
def dry_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `python -m dev.dry_run`: the whole road of docs/recipe.md walked at toy size."""
    folder = tmp_path_factory.mktemp("road") / "a run"
    command = [sys.executable, "-m", "dev.dry_run", "--folder", str(folder)]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[1], env={**os.environ, "PYTHONPATH": "."}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "output.txt").write_text(done.stdout)
    return folder
