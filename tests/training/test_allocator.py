"""Freed memory stays with a training process, unless its user has set the allocator."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import resource, torch
from training.base.allocator import keep_memory
print(keep_memory())
for _ in range(40):  # up to nine come first that find no freed memory of their size and alignment
    torch.ones(9 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(9 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
@pytest.mark.parametrize("variables", [{}, {"MALLOC_ARENA_MAX": "2"}])
def test_tensors_of_one_size_are_made_in_memory_that_was_freed(request, variables):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "LD_PRELOAD"))}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        cwd=request.config.rootpath,
        env=clean | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    kept, pages = done.stdout.split()
    assert kept == str(not variables)
    assert (int(pages) < 100) == (not variables)  # ten times 9,216 pages otherwise
