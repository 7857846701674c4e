"""Trains twice, first with one row to load what loads lazily, and prints the bytes that the second run's peak took."""

import ctypes
import gc
import sys

import torch

from training import run
from training.engine.loop import Trainer

STATUS = "/proc/self/status"


def status(key: str) -> int:
    with open(STATUS) as file:
        return int(next(line for line in file if line.startswith(key)).split()[1]) * 1024


def main(arguments: list[str]) -> None:
    peaks = []
    Trainer._save = lambda self: peaks.append(status("VmHWM"))  # saving copies the state: not what is measured
    torch.set_num_threads(1)
    small = list(arguments)
    for key, value in (("--batch.size", "1"), ("--batch.micro", "1"), ("--run_folder", arguments[1] + "-small")):
        small[small.index(key) + 1] = value
    assert run.main(small) == 0
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = status("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak begins anew
    assert run.main(arguments) == 0
    print("PEAK", peaks[-1] - before)


if __name__ == "__main__":
    main(sys.argv[1:])
