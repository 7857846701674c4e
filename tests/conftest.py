"""Fixtures for every part: the original's numbers where they are at hand, and a small vocabulary made on the fly."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece

SHARED = Path(__file__).resolve().parents[2] / "shared"

CAPTIONS = [
    f"{opening} {look} {noun} {doing} the {place}"
    for opening in ("a photo of a", "a painting of the", "one tiny")
    for look in ("red", "blue", "golden", "wooden", "wonderful", "striped glass")
    for noun in ("dog", "cat", "horse", "ship", "kettle", "apple tree", "robot wearing a hat", "child with sunglasses")
    for doing in ("on", "swimming in", "asleep beside", "standing near")
    for place in ("beach.", "forest, highly detailed", "old street!", "kitchen table", "mountain")
]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder beside the checkout with the original's outputs; tests that need it are skipped without it."""
    if not SHARED.is_dir():
        pytest.skip("the original implementation's outputs are not beside this checkout (../shared)")
    return SHARED


@pytest.fixture(scope="session")
def tiny_tokenizer_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(spm, dictionary) of a unigram model with about 250 pieces, trained like the original's on made-up captions."""
    folder = tmp_path_factory.mktemp("tokenizer")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*CAPTIONS, "0123456789 ()<>:/\\-_'\""]),
        model_prefix=str(folder / "tiny"),
        model_type="unigram",
        vocab_size=250,
        character_coverage=1.0,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    from kosmos_core.tokenizer import dictionary_of

    spm, dictionary = folder / "tiny.model", folder / "dict.txt"
    dictionary.write_bytes(dictionary_of(spm.read_bytes()))
    return spm, dictionary


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_tokenizer_files: tuple[Path, Path]):
    """A Tokenizer over `tiny_tokenizer_files`, 4 latents per picture."""
    from kosmos_core.tokenizer import Tokenizer

    return Tokenizer.from_files(*tiny_tokenizer_files, latents=4)


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `python -m training.smoke`: all three stages trained at smoke size."""
    folder = tmp_path_factory.mktemp("smoke") / "a run"
    command = [sys.executable, "-m", "training.smoke", "--folder", str(folder)]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[1], env={**os.environ, "PYTHONPATH": "."}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "output.txt").write_text(done.stdout)
    return folder
