"""Chromium and Node for the tests of the workflows: where they are, and why a test without them is skipped.

`install` fetches what npm has and, where this user may, Debian's Chromium; `missing` says what still lacks.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
from collections.abc import Collection
from pathlib import Path
from typing import Any

from .install import InstallError
from .overlay import FRONT_END, overlay

HERE = Path(__file__).parent
NEWEST = "1.58.1"  # of ComfyUI's front ends that the tests run, beside the server's own
PACKAGES = ["playwright-core@1", "esbuild@0.25", "zod@3", "zod-validation-error@3"]
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


def modules_folder(environment: Path) -> Path:
    """Where npm's packages lie beside the virtual environment's own."""
    return environment / "browser/node_modules"


def has_modules(environment: Path) -> bool:
    """Whether npm's packages are there."""
    return all((modules_folder(environment) / package.split("@")[0]).is_dir() for package in PACKAGES)


def chromium() -> str | None:
    """Path of an installed Chromium."""
    return next(filter(None, map(shutil.which, CHROMIUM)), None)


def missing(environment: Path) -> str | None:
    """What a browser test lacks, in one sentence; None where everything is there."""
    lacks = [name for name, found in (("node", shutil.which("node")), ("chromium", chromium())) if not found]
    if not has_modules(environment):
        lacks.append("npm's playwright-core, esbuild and zod")
    if importlib.util.find_spec("comfyui_frontend_package") is None:
        lacks.append("ComfyUI's front end")
    if not lacks:
        return None
    return f"no {', '.join(lacks)}: install node, npm and chromium, then run `make test` again"


def newest_front_end() -> Path:
    """Folder of the newest front end that the tests run, from the package registry unless it is there; InstallError."""
    return overlay([f"{FRONT_END}=={NEWEST}"]) / "comfyui_frontend_package/static"


def install(environment: Path, log: Path) -> None:
    """Install what can be installed without asking; a failure only means that the browser tests are skipped."""
    commands = []
    if chromium() is None and hasattr(os, "geteuid") and os.geteuid() == 0 and shutil.which("apt-get"):
        wanted = ["chromium", "fonts-dejavu-core"]
        commands += [["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", *wanted]]
    folder = modules_folder(environment).parent
    if shutil.which("npm") and not has_modules(environment):
        folder.mkdir(parents=True, exist_ok=True)
        commands.append(["npm", "install", "--no-audit", "--no-fund", "--prefix", str(folder), *PACKAGES])
    with log.open("a", encoding="utf-8") as stream:
        for command in commands:
            stream.write(" ".join(command) + "\n")
            stream.flush()
            # One after the other whatever happens: without a browser the front end's own schema still wants npm's.
            subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)


def browse(
    environment: Path,
    address: str,
    workflows: dict[str, Any],
    folder: Path,
    shots: Path | None = None,
    results: Collection[str] = (),
    opened: Collection[str] = (),
    front_end: Path | None = None,
) -> dict[str, Any]:
    """Open, save, queue and wait for workflows in a headless Chromium; `shots` gets a PNG of each graph.

    Those named in `results` are drawn as they are and their shots show what came out; the others are drawn small, in
    two steps, and shown as they were opened; those in `opened` are not drawn.
    Returns for each workflow what browser.mjs describes. Raises RuntimeError with the browser's words.
    """
    chosen = {"results": list(results), "opened": list(opened)}
    job = {"shots": str(shots) if shots else None, **chosen, "workflows": workflows}
    return use(environment, address, HERE / "browser.mjs", job, folder, front_end)


def use(
    environment: Path, address: str, script: Path, job: dict[str, Any], folder: Path, front_end: Path | None = None
) -> Any:
    """What a script of its own says that it saw in a headless Chromium; it gets `job`, playwright and the address.

    A `front_end` is the folder of one that takes the place of the server's own. Raises RuntimeError with the browser's
    words.
    """
    playwright = str(modules_folder(environment) / "playwright-core/index.mjs")
    others = {"playwright": playwright, "chromium": chromium(), "address": address}
    return _node(script, {**job, **others, "frontEnd": str(front_end) if front_end else None}, folder)


def validate(environment: Path, workflows: dict[str, Any], folder: Path) -> dict[str, str | None]:
    """What the front end's own schema says against each workflow; None where it accepts it."""
    found = importlib.util.find_spec("comfyui_frontend_package")
    assets = Path(found.submodule_search_locations[0]) / "static/assets"
    job = {"modules": str(modules_folder(environment)), "assets": str(assets), "folder": str(folder)}
    return _node(HERE / "schema.mjs", job | {"workflows": workflows}, folder)


def _node(script: Path, job: dict[str, Any], folder: Path) -> Any:
    path = folder / f"{script.name}.json"
    path.write_text(json.dumps(job), encoding="utf-8")
    ran = subprocess.run(["node", script, path], capture_output=True, text=True, timeout=1800)
    if ran.returncode:
        raise RuntimeError(f"{script.name} failed:\n{ran.stderr[-3000:]}")
    return json.loads(ran.stdout)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Fetch what the tests in a browser need; dev/install.py calls it.")
    parser.add_argument("environment", type=Path, help="folder of the virtual environment")
    target = parser.parse_args().environment
    install(target, target / "kosmos-g-install.log")
    if lack := missing(target):
        print(f"The tests in a browser will be skipped: {lack}")
    else:
        try:
            newest_front_end()
        except InstallError as error:
            print(f"The tests in a browser will run with the installed front end alone: {error}")
