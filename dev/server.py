"""Run a real ComfyUI with this checkout as its only node pack, in a folder of its own."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .install import COMFYUI_TREE, ROOT, copy_comfyui

PACK_NAME = "kosmos-g"
MODEL_FOLDERS = ("checkpoints", "controlnet", "loras", "kosmos_g", "text_encoders")


class ServerDied(RuntimeError):
    """ComfyUI did not come up; the text ends with the last lines of its log."""


@dataclass
class Server:
    """A running ComfyUI: where it listens and the folder with its models, input, output and log."""

    address: str
    folder: Path
    process: subprocess.Popen

    @property
    def log(self) -> str:
        return (self.folder / "server.log").read_text(encoding="utf-8", errors="replace")


def prepare_folder(folder: Path, pack: Path = ROOT) -> Path:
    """Make a base directory for ComfyUI whose custom_nodes links to `pack` (this checkout) alone."""
    for name in (*(f"models/{kind}" for kind in MODEL_FOLDERS), "input", "output", "temp", "user/default"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    # Without this setting the browser opens a first-run dialog in front of the graph.
    settings = folder / "user/default/comfy.settings.json"
    settings.write_text(json.dumps({"Comfy.TutorialCompleted": True}))
    (folder / "custom_nodes").mkdir(exist_ok=True)
    link = folder / "custom_nodes" / PACK_NAME
    if not link.exists():
        link.symlink_to(pack, target_is_directory=True)
    return folder


def free_port() -> int:
    """Return a TCP port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def running_server(
    folder: Path, *flags: str, port: int | None = None, threads: int = 1, seconds: float = 540.0
) -> Iterator[Server]:
    """Start ComfyUI on `folder` (see prepare_folder), wait until it answers, and stop it at the end, whatever happens.

    One thread by default: OpenMP threads that spin while another process computes make sampling ten times slower on
    few cores, and results are compared bit by bit.

    Raises ServerDied when it ends early, does not answer within `seconds`, or could not import the node pack.
    """
    copy_comfyui(Path(sys.executable))
    port = port or free_port()
    command = [sys.executable, str(COMFYUI_TREE / "main.py"), "--cpu", "--listen", "127.0.0.1", "--port", str(port)]
    command += ["--base-directory", str(folder), "--database-url", "sqlite:///:memory:"]
    command += ["--disable-api-nodes", "--disable-auto-launch", *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    log_path = folder / "server.log"
    with log_path.open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=COMFYUI_TREE,
            env=environment,
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )
    server = Server(f"127.0.0.1:{port}", folder, process)
    try:
        wait_until_it_answers(server, seconds)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _end_with_parent() -> None:
    """Ask Linux to end this process with the one that started it: a killed test run must not leave a server behind."""
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)


def wait_until_it_answers(server: Server, seconds: float) -> None:
    """Return once the server answers and has imported the pack; raises ServerDied otherwise."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(f"http://{server.address}/system_stats", timeout=5) as answer:
                answer.read()
            break
        except OSError:
            if server.process.poll() is not None:
                reason = f"ComfyUI ended with exit status {server.process.returncode} while starting"
            elif time.monotonic() > deadline:
                reason = f"ComfyUI did not answer within {seconds:.0f} s"
            else:
                time.sleep(0.1)
                continue
        raise ServerDied(f"{reason}. Its last lines:\n" + "\n".join(server.log.splitlines()[-30:]))
    # ComfyUI goes on without a pack that fails to import: only its log tells.
    if re.search(rf"IMPORT FAILED\).*{re.escape(PACK_NAME)}", server.log):
        raise ServerDied("ComfyUI could not import the node pack:\n" + "\n".join(server.log.splitlines()[-60:]))
