"""Packages that another ComfyUI, or another of its front ends, wants in place of the environment's own.

    python -m dev.overlay TREE FRONTEND     # either may be empty; prints the folders for PYTHONPATH

They are installed from the package registry into folders of `.cache/`, which come before the environment's packages:
the environment itself stays as it is. A folder that is there already is used as it is.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from .install import ROOT, InstallError

CACHE = ROOT / ".cache/overlays"
FRONT_END = "comfyui-frontend-package"
# The environment's own stay (torch is the CPU's), and what only adds templates and help pages is left out.
KEPT = ("torch", "torchvision", "comfyui-workflow-templates", "comfyui-embedded-docs")


def requirements_of(tree: Path) -> list[str]:
    """What a ComfyUI tree wants at a fixed version, and its packages that the environment may not have."""
    try:
        lines = (tree / "requirements.txt").read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InstallError(
            f"{tree} is no ComfyUI: it has no requirements.txt. Give the folder of a ComfyUI."
        ) from error
    wanted = []
    for line in (line.split("#")[0].strip() for line in lines):
        name = re.split(r"[=<>~!\[ ]", line)[0].lower()
        if name and name not in KEPT and ("==" in line or name.startswith("comfy") or not _installed(name)):
            wanted.append(line)
    return wanted


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def overlay(requirements: list[str]) -> Path:
    """A folder with these packages, without what they require in turn."""
    digest = hashlib.sha256("\n".join(sorted(requirements)).encode()).hexdigest()[:12]
    folder = CACHE / digest
    if folder.is_dir():
        return folder
    unfinished = folder.with_name(f"{digest}.{os.getpid()}.unfinished")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-input", "--no-deps", "--target", str(unfinished)]
    ran = subprocess.run([*command, *requirements], capture_output=True, text=True)
    if ran.returncode:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise InstallError(f"pip could not install {', '.join(requirements)}:\n{ran.stderr.strip()[-2000:]}")
    # Newer ComfyUI imports torchaudio; what of it is compiled wants a torch for graphics cards.
    for compiled in (unfinished / "torchaudio/lib").glob("*.so"):
        compiled.unlink()
    unfinished.rename(folder)
    return folder


def main() -> int:
    """Install for the tree and front end on the command line and print their folders; return the exit status."""
    tree, front_end = sys.argv[1:3]
    try:
        folders = [overlay([f"{FRONT_END}=={front_end}"])] if front_end else []
        if tree:
            folders.append(overlay(requirements_of(Path(tree))))
    except InstallError as error:
        print(error, file=sys.stderr)
        return 1
    print(os.pathsep.join(map(str, folders)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
