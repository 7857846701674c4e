"""What becomes of a run of two processes with two data workers each, by signal, receiver and moment: a table.

python -m tests.training.signal_table [FOLDER]      # 64 runs, about a quarter of an hour on two idle cores
"""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.training.conftest import Smoke, make_smoke
from tests.training.test_engine_launch import TORCHRUN, environment

SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")
RECEIVERS = ("process", "group", "one rank", "torchrun")
MOMENTS = ("training", "indexing", "saving", "sampling")


def index_of_many(smoke: Smoke) -> Path:
    """A set of plain text that takes seconds to index: files of one byte in a tar, which is not kept indexed."""
    folder = smoke.folder / "many"
    if not folder.exists():
        folder.mkdir()
        words = folder / "words"
        words.mkdir()
        for number in range(1000):
            (words / f"{number:06}.txt").write_text("a red circle on white.")
        subprocess.run(["tar", "-cf", folder / "00000.tar", "-C", words, "."], check=True)
        shutil.rmtree(words)
        for number in range(1, 60):
            os.link(folder / "00000.tar", folder / f"{number:05}.tar")
    for index in folder.glob("*.idx"):
        index.unlink()
    shutil.rmtree(folder / ".nv-meta", ignore_errors=True)
    return folder


def wait_until(happened: Callable[[], bool], run: subprocess.Popen, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not happened():
        if run.poll() is not None or time.monotonic() > end:
            raise RuntimeError("the moment never came")
        time.sleep(0.002)


def one(smoke: Smoke, folder: Path, name: str, receiver: str, moment: str) -> str:
    """Start a run, send the signal, and say in a few words what came of it."""
    run_folder, log = folder / "run", folder / "log"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    stage = "instruct" if moment == "sampling" else "lm"
    options = ["--steps", "100000", "--data.workers", "2"]
    if moment == "indexing":
        options += ["--data.sources.text.path", str(index_of_many(smoke))]
    if moment == "saving":
        options += ["--checkpoint.every", "1"]
    if moment == "sampling":
        options += ["--log.sample_every", "1"]
    command = [sys.executable] if receiver == "process" else TORCHRUN
    arguments = [*command, "-m", "training.run", *smoke.arguments(stage, run_folder, *options)]
    with log.open("w") as output:
        run = subprocess.Popen(arguments, stdout=output, stderr=output, env=environment(), start_new_session=True)
    checkpoints = run_folder / "checkpoints"
    happened = {
        "training": lambda: "step 3/" in log.read_text(),
        "indexing": lambda: (smoke.folder / "many/.nv-meta/.lock").exists(),
        "saving": lambda: any(checkpoints.glob("step-*.tmp")) and (checkpoints / "latest").exists(),
        "sampling": lambda: any((run_folder / "samples").glob("*.png")),
    }
    try:
        wait_until(happened[moment], run)
        number = getattr(signal, name)
        processes = psutil.Process(run.pid).children(recursive=True)
        ranks = [child for child in processes if child.environ().get("RANK") == "1" and child.ppid() == run.pid]
        if receiver == "group":
            os.killpg(run.pid, number)
        elif receiver == "one rank":
            ranks[0].send_signal(number)
        else:
            os.kill(run.pid, number)
        code = run.wait(120)
        _, alive = psutil.wait_procs(processes, 60)
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
    return verdict(code, run_folder, log.read_text(), len(alive))


def verdict(code: int, run_folder: Path, output: str, alive: int) -> str:
    records = run_folder / "log.jsonl"
    done = [json.loads(line)["step"] for line in records.read_text().splitlines()] if records.is_file() else []
    latest = run_folder / "checkpoints/latest"
    saved = int(latest.read_text().split("-")[1]) if latest.is_file() else 0
    words = [
        f"rc {code}",
        f"step {done[-1]} saved" if done and saved == done[-1] else f"{len(done)} steps, saved {saved}",
    ]
    if "Stopped by a signal" not in output:
        words.append("no word")
    if "Traceback" in output.replace("SignalException", "").split("torch/distributed/elastic")[0]:
        words.append("traceback")
    if alive:
        words.append(f"{alive} processes left")
    return ", ".join(words)


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    smoke = make_smoke(folder / "smoke")
    print("| moment | receiver | " + " | ".join(SIGNALS) + " |\n|---|---|---|---|---|---|")
    for moment, receiver in itertools.product(MOMENTS, RECEIVERS):
        cells = []
        for name in SIGNALS:
            try:
                cells.append(one(smoke, folder / "one", name, receiver, moment))
            except RuntimeError as error:
                cells.append(str(error))
        print(f"| {moment} | {receiver} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
