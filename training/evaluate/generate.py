"""The first step: make every picture that is not there yet."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

from ..base.display import duration
from ..base.processes import ProcessGroup
from .image_generator import ImageGenerator
from .jobs import Job
from .output_folder import OutputFolder


def generate(
    jobs: Sequence[Job],
    make_generator: Callable[[], ImageGenerator],
    folder: OutputFolder,
    process_group: ProcessGroup,
    batch_size: int,
) -> int:
    """Generate the missing pictures, shared among the processes; returns how many this process generated.

    A batch is saved picture by picture and then recorded; a picture whose record was lost in a kill is recorded, not
    generated again. The model is only loaded where there is something to generate.
    """
    if process_group.rank == 0:
        folder.clear_unfinished()
    # Process 0 decides what is missing: the others would see pictures that it has made in the meantime.
    missing = set(process_group.gather([job.path for job in jobs if not (folder.path / job.path).exists()])[0])
    if process_group.rank == 0:
        recorded = folder.records("generated")
        lost = [job for job in jobs if job.path not in missing and job.path not in recorded]
        if lost:
            folder.append("generated", [job.record() for job in lost])
    batches = [jobs[start : start + batch_size] for start in range(0, len(jobs), batch_size)]
    batches = [[job for job in batch if job.path in missing] for batch in batches]
    mine = [batch for batch in batches if batch][process_group.rank :: process_group.world_size]
    total, made, generator, start = sum(map(len, mine)), 0, None, time.monotonic()
    for batch in mine:
        generator = generator or make_generator()
        for job, image in zip(batch, generator.generate(batch), strict=True):
            folder.write(job.path, image)
        folder.append("generated", [job.record() for job in batch])
        made += len(batch)
        each = (time.monotonic() - start) / made
        if process_group.rank == 0:
            left = duration(each * (total - made))
            print(f"generated {made}/{total}  {each:.2f} s a picture  {left} left", file=sys.stderr, flush=True)
    process_group.barrier()
    return made
