"""What a run was made with: resolved configuration, git state and library versions, kept in the run folder."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kosmos_core import Tokenizer
from kosmos_core.atomic import write_file

from ..base.processes import ProcessGroup

TOKENIZER_FOLDER = "tokenizer"
TOKENIZER_FILES = ("sentencepiece.bpe.model", "dict.txt")
LIBRARIES = ("torch", "accelerate", "diffusers", "fairscale", "megatron-energon", "safetensors", "transformers")


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that a training depends on."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _git(*arguments: str) -> str | None:
    try:
        command = ["git", *arguments]
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def git_state() -> tuple[dict[str, Any], str]:
    """The commit of this checkout and whether files differ from it, and the difference as a patch."""
    commit, patch = _git("rev-parse", "HEAD"), _git("diff", "HEAD") or ""
    return {"commit": commit and commit.strip(), "changed": bool(patch)}, patch


def _write(path: Path, content: bytes) -> None:
    """Write a file unless it is there as it should be: a run that goes on may have no room for a second copy."""
    if not path.is_file() or path.read_bytes() != content:
        write_file(path, content)


def record_start(
    folder: Path,
    config: str,
    process_group: ProcessGroup,
    resumed: Path | None,
    tokenizer: Tokenizer | None,
    changed: Mapping[str, Any],
) -> None:
    """Write config.yaml and the tokenizer's files, and add this start to starts.jsonl, with the difference from the git
    commit beside it where files were changed.

    Args:
        folder: the run folder.
        config: the resolved configuration as YAML.
        resumed: the checkpoint that the run goes on from.
        changed: the settings that are not those of the checkpoint, each with its value before and now.
    """
    state, patch = git_state()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S")
    _write(folder / "config.yaml", config.encode())
    if tokenizer is not None:
        (folder / TOKENIZER_FOLDER).mkdir(exist_ok=True)
        for name, content in zip(TOKENIZER_FILES, tokenizer.to_bytes(), strict=True):
            _write(folder / TOKENIZER_FOLDER / name, content)
    if patch:
        state["patch"] = f"git-{stamp.replace(':', '')}.patch"
        write_file(folder / state["patch"], patch)
    start = {
        "time": stamp,
        "command": sys.argv,
        "git": state,
        "versions": versions(),
        "device": str(process_group.device),
        "processes": process_group.world_size,
        "resumed": resumed and resumed.name,
        "changed": dict(changed),
    }
    with (folder / "starts.jsonl").open("a") as handle:
        handle.write(json.dumps(start) + "\n")
