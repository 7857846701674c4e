"""Commands that a signal stops say in a line what is kept, and leave nothing half-written."""

import os
import signal
import subprocess
import sys

import pytest

WORK = """
import pathlib, sys, time
from kosmos_core.atomic import atomic_write
from training.base.signals import stoppable
from training.data.process_map import process_map

def long(number):
    time.sleep(0.1)
    return number

def main():
    with atomic_write(pathlib.Path(sys.argv[1])) as file:
        for number in process_map(long, range(10_000), 2):
            print(number, flush=True)
    return 0

sys.exit(stoppable(main, "nothing was changed."))
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_to_a_command_and_its_helpers_ends_it_in_a_line(tmp_path, name, request):
    run = subprocess.Popen(
        [sys.executable, "-c", WORK, tmp_path / "out"],
        cwd=request.config.rootpath,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert run.stdout.readline() == "0\n"
    number = getattr(signal, name)
    os.killpg(run.pid, number)
    _, errors = run.communicate(timeout=300)  # of the 500 s that the work would take
    assert (run.returncode, errors) == (128 + number, f"Stopped by {name}: nothing was changed.\n")
    assert list(tmp_path.iterdir()) == []
