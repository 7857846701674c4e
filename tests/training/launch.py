"""Real trainings for the engine's tests: processes that run `training.run.main`, killed or disturbed at will.

A forkserver that has imported everything once starts each process in a fraction of a second. Faults are injected in the
process itself, at a chosen system call, so that a kill falls exactly where a test wants it.
"""

import importlib
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.training.launch_preload"])


@dataclass
class Result:
    codes: list[int]
    output: str

    @property
    def ok(self) -> bool:
        return all(code == 0 for code in self.codes)


def _process(variables: dict[str, str], arguments: list[str], fault: Callable[[], None] | None, log: Path) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(variables)
    torch.set_num_threads(1)
    from training.run import main

    if fault is not None:
        fault()
    code = main(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Training:
    """A training in the background on `ranks` processes; `faults`: by rank, what is done in it before it starts."""

    def __init__(
        self, arguments: list[str], log: Path, ranks: int = 1, faults: dict[int, Callable[[], None]] | None = None
    ) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        self.log = log
        log.unlink(missing_ok=True)
        self.processes = []
        for rank in range(ranks):
            variables = {}
            if ranks > 1:
                variables = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
                variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            fault = (faults or {}).get(rank)
            self.processes.append(CONTEXT.Process(target=_process, args=(variables, arguments, fault, log)))
            self.processes[-1].start()

    def signal(self, number: int, rank: int = 0) -> None:
        os.kill(self.processes[rank].pid, number)

    def wait_for(self, text: str, timeout: float = 900) -> None:
        """Wait until the output holds `text`."""
        end = time.monotonic() + timeout
        while text not in self.output():
            assert time.monotonic() < end, f"{text!r} not seen:\n{self.output()}"
            assert any(p.is_alive() for p in self.processes), self.output()
            time.sleep(0.01)

    def output(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def wait(self, timeout: float = 1500) -> Result:
        """The end of all processes; when one is killed, the others are ended as torchrun would."""
        end = time.monotonic() + timeout
        while any(p.is_alive() for p in self.processes):
            if any((p.exitcode or 0) < 0 for p in self.processes):
                time.sleep(0.5)
                for process in self.processes:
                    process.kill()
            if time.monotonic() > end:
                for process in self.processes:
                    process.kill()
                raise AssertionError(f"the training did not end in {timeout} s:\n{self.output()}")
            time.sleep(0.01)
        return Result([p.exitcode for p in self.processes], self.output())


def train(
    arguments: list[str], log: Path, ranks: int = 1, faults: dict[int, Callable[[], None]] | None = None
) -> Result:
    """A whole training; see `Training`."""
    return Training(arguments, log, ranks, faults).wait()


@dataclass
class KillAtSync:
    """SIGKILL at the n-th time that something of a checkpoint is made durable (os.fsync): every step of writing it."""

    number: int

    def __call__(self) -> None:
        from training.engine.checkpoint import Checkpoints

        save, original, calls, counting = Checkpoints.save, os.fsync, 0, False

        def first_save(checkpoints, step, state):
            nonlocal counting
            counting = True  # files that a run writes at its start are synced too
            return save(checkpoints, step, state)

        def fsync(handle):
            nonlocal calls
            calls += counting
            if calls == self.number:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(handle)

        Checkpoints.save, os.fsync = first_save, fsync


@dataclass
class Impatient:
    """The process waits half a second where `module` gives the machines or the run before this one more."""

    module: str

    def __call__(self) -> None:
        importlib.import_module(self.module).PATIENCE = 0.5


@dataclass
class OnAnotherDisk:
    """The process finds another folder under the same relative name, and does not wait for what it will never see."""

    folder: Path

    def __call__(self) -> None:
        self.folder.mkdir()
        os.chdir(self.folder)
        Impatient("training.base.shared_folder")()


@dataclass
class KillAtStep:
    """SIGKILL when `step` steps are done, before the next one begins."""

    step: int

    def __call__(self) -> None:
        from training.engine.loop import Trainer

        original = Trainer._step

        def step(trainer, meter):
            if trainer.counters.step == self.step:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(trainer, meter)

        Trainer._step = step


@dataclass
class KillAfter:
    """SIGKILL `delay` seconds after this process has done `steps` steps: anywhere in a step or in a save."""

    steps: int
    delay: float

    def __call__(self) -> None:
        from training.engine.loop import Trainer

        original, done = Trainer._step, 0

        def step(trainer, meter):
            nonlocal done
            if done == self.steps:
                threading.Timer(self.delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
            done += 1
            return original(trainer, meter)

        Trainer._step = step


@dataclass
class SpoilLoss:
    """The loss of stage lm becomes NaN in the steps from `first` up to, not including, `last`."""

    first: int
    last: int

    def __call__(self) -> None:
        from training.stages.lm import LmStage

        original = LmStage.training_step

        def training_step(stage, model, batch, rng):
            losses = original(stage, model, batch, rng)
            if self.first <= rng.step < self.last:
                losses.total = losses.total * float("nan")
            return losses

        LmStage.training_step = training_step


def tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """What is trained and averaged, and the optimiser's tensors: all of a checkpoint but its bytes."""
    return {name: tensor for name, tensor in everything(checkpoint).items() if tensor.dtype != torch.uint8}


def everything(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, random states and positions included."""
    metadata = dcp.FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    sizes = {name: m for name, m in metadata.items() if hasattr(m, "size")}
    state = {name: torch.empty(m.size, dtype=m.properties.dtype) for name, m in sizes.items()}
    with warnings.catch_warnings(action="ignore"):
        dcp.load(state, checkpoint_id=checkpoint, no_dist=True)
    return state


def differences(first: Path, second: Path) -> list[str]:
    """Names of tensors that are not bit-equal in two checkpoints."""
    a, b = tensors(first), tensors(second)
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]
