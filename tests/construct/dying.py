"""Construct in processes that are killed at random moments: each before its n-th call of any function.

    python -m tests.construct.dying INPUT OUTPUT KILLS SEED

Calls are counted, not seconds, so that a busy machine changes nothing; every moment can be hit, such as the one between
writing a file and renaming it. One undisturbed run tells how many calls there are. The others go on in one folder until
one of them reaches its end; the next ones begin in another. Prints one line of JSON for each run.
"""

import hashlib
import json
import os
import random
import signal
import sys
from pathlib import Path

from . import in_process
from .conftest import settings


def construct_until(call: int, source: Path, target: Path) -> int:
    """Construct; SIGKILL comes before function call number `call`, 0 for never. Returns how many calls there were."""
    config, made = settings(source, target), 0

    def count(_frame, event, _argument):
        nonlocal made
        if event in ("call", "c_call"):
            made += 1
            if made == call:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(count)
    try:
        in_process.construct(config)
    finally:
        sys.setprofile(None)
    return made


def in_a_process(call: int, source: Path, target: Path) -> int:
    """The same in a process of its own; 0 if it was killed."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, str(construct_until(call, source, target)).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as told:
        calls = int(told.read() or 0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1]) == (not calls)
    print(
        json.dumps(
            {
                "folder": target.name,
                "killed": not calls,
                "finished": {path.name: path.stat().st_mtime_ns for path in target.glob("*.stats.json")},
                "shards": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in target.glob("*.tar")},
            }
        )
    )
    return calls


def main() -> None:
    source, output, kills, seed = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    total, moments, number = in_a_process(0, source, output / "0"), random.Random(seed), 1
    while kills:
        if in_a_process(moments.randint(1, total), source, output / str(number)):
            number += 1
        else:
            kills -= 1
    in_a_process(0, source, output / str(number))


if __name__ == "__main__":
    main()
