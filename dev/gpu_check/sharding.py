"""Part d: fully_shard on one GPU equals a single process; a run is stopped, saved, resumed under the other sharding."""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from .context import Context, Line, require
from .steps import CONFIGS, NEEDS, TINY_NEEDS

TOLERANCE = 1e-5  # of a loss in float32
STEPS = 4


def check(context: Context, folder: Path) -> Iterator[Line]:
    """Losses of stage 2 at smoke size: whole in one process, whole under fsdp2, and half under each."""
    require(*NEEDS, *TINY_NEEDS, "psutil")
    whole = _run(context, folder, "single")
    sharded = _run(context, folder, "fsdp2")
    _run(context, folder, "resumed", "--parallel.sharding", "fsdp2", "--steps", str(STEPS // 2))
    resumed = _run(context, folder, "resumed", "--parallel.sharding", "single", "--resume", "auto")
    for name, losses in (("fsdp2 against single", sharded), ("saved under fsdp2, resumed as single", resumed)):
        error = max(abs(a - b) / abs(b) for a, b in zip(losses, whole, strict=True))
        context.values.setdefault("sharding", {})[name] = error
        yield Line(f"{name}, {STEPS} losses", f"{error:.1e}", f"at most {TOLERANCE:g}", error <= TOLERANCE)


def _run(context: Context, folder: Path, name: str, *options: str) -> list[float]:
    from training import run

    sharding = [] if options else ["--parallel.sharding", name]
    words = ["--config", str(CONFIGS / "align" / "smoke.yaml"), "--run_folder", str(folder / name)]
    words += ["--weights", str(folder / "lm.safetensors"), "--task.stable_diffusion", str(folder / "stable-diffusion")]
    words += ["--data.sources", json.dumps({"captions": {"path": str(folder / "data" / "pairs")}})]
    words += ["--model.decoder.vocabulary", (folder / "vocabulary").read_text(), "--device", context.device.type]
    words += ["--batch.size", "4", "--batch.micro", "2", "--steps", str(STEPS), "--log.every", "1"]
    # The schedule ends where the run does: a constant one makes half a run the beginning of a whole one.
    words += ["--log.tensorboard", "false", "--optim.schedule", "constant", *sharding, *options]
    said = io.StringIO()
    with _launched(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = run.main(words)
    if code:
        raise RuntimeError(f"training.run ended with {code}: {said.getvalue().strip().splitlines()[-1:]}")
    records = (folder / name / "log.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in records]


@contextlib.contextmanager
def _launched() -> Iterator[None]:
    """The variables that torchrun sets, for one process: fsdp2 asks for a process group."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    variables = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    variables["TORCHELASTIC_RUN_ID"] = "gpu-check"
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
