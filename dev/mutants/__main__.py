"""Plant small mistakes in the product, one at a time, and see whether the tests notice.

python -m dev.mutants                   # all: hours
python -m dev.mutants core              # one area
python -m dev.mutants --list            # one a line
python -m dev.mutants core-1a2b3c       # one, by its name
python -m dev.mutants --sample 20 --minutes 2     # another choice for each commit, as continuous integration does

Which test noticed which is kept in noticed.json and asked first the next time; --record brings that file up to date.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from queue import SimpleQueue

from ..install import ROOT
from . import construct, core, evaluate, nodes, noticed, outside, training
from .mutant import Mutant, MutantError
from .workplace import Workplace

ALL: tuple[Mutant, ...] = (
    *core.MUTANTS,
    *nodes.MUTANTS,
    *training.MUTANTS,
    *construct.MUTANTS,
    *evaluate.MUTANTS,
    *outside.MUTANTS,
)


def chosen(words: list[str]) -> list[Mutant]:
    """The mutants of the named areas, or with the names given; all without any."""
    known = {word for mutant in ALL for word in (mutant.area, mutant.name)}
    for word in words:
        if word not in known:
            areas = ", ".join(sorted({mutant.area for mutant in ALL}))
            raise MutantError(f"there is no area or mutant {word!r}; areas are {areas}, and --list names the mutants")
    return [mutant for mutant in ALL if not words or {mutant.area, mutant.name} & set(words)]


def sample(mutants: list[Mutant], count: int) -> list[Mutant]:
    """A choice of `count` that changes with the commit."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    able = [mutant for mutant in mutants if not mutant.equivalent]
    return random.Random(commit).sample(able, min(count, len(able)))


def run(mutants: list[Mutant], *, jobs: int, minutes: float | None, record: bool) -> int:
    """Plant them, print a line for each and a table of the areas; the exit status is 1 where one survived.

    record: keep which test noticed which. Raises MutantError where a test fails without any mutant.
    """
    able = [mutant for mutant in mutants if not mutant.equivalent]
    outcome: Counter[tuple[str, str]] = Counter((m.area, "equivalent") for m in mutants if m.equivalent)
    deadline = time.monotonic() + 60 * minutes if minutes else float("inf")
    places: SimpleQueue[Workplace] = SimpleQueue()
    before, found = noticed.tests(), {}

    def plant(mutant: Mutant) -> tuple[Mutant, str, str, float]:
        started = time.monotonic()
        if started > deadline:
            return mutant, "not run", "", 0.0
        place = places.get()
        try:
            seen, line = place.plant(mutant, before.get(mutant.name, ""))
        finally:
            places.put(place)
        return mutant, "noticed" if seen else "SURVIVED", line, time.monotonic() - started

    def check() -> tuple[bool, str]:
        asked, place = sorted({before[mutant.name] for mutant in able if mutant.name in before}), places.get()
        try:
            return place.test(asked) if asked else (True, "")
        finally:
            places.put(place)

    with ExitStack() as opened, ThreadPoolExecutor(jobs) as pool:
        for _ in range(jobs):
            places.put(opened.enter_context(Workplace()))
        checked = pool.submit(check)  # while the first mutants are planted
        for mutant, result, line, seconds in pool.map(plant, able):
            outcome[mutant.area, result] += 1
            found[mutant.name] = line
            print(f"{result:<9} {mutant.name:<18} {seconds:>5.0f} s  {mutant.promise}  {line}".rstrip(), flush=True)
        sound, line = checked.result()
        if not sound:
            raise MutantError(f"a test fails without any mutant: {line}")
    print(f"\n{'area':<12} {'noticed':>8} {'survived':>9} {'share':>6} {'equivalent':>11} {'not run':>8}")
    for area in (*sorted({area for area, _ in outcome}), "all"):
        seen, survived, equivalent, left = (
            sum(count for (where, what), count in outcome.items() if what == kind and area in (where, "all"))
            for kind in ("noticed", "SURVIVED", "equivalent", "not run")
        )
        share = f"{seen / (seen + survived):.0%}" if seen + survived else "-"
        print(f"{area:<12} {seen:>8} {survived:>9} {share:>6} {equivalent:>11} {left:>8}")
    if record:
        noticed.record(found, {mutant.name for mutant in ALL})
    return int(any(what == "SURVIVED" for _, what in outcome))


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m dev.mutants", description=__doc__.split("\n")[0])
    parser.add_argument("what", nargs="*", help="areas or names of mutants; all without any")
    parser.add_argument("--list", action="store_true", help="print the mutants, one a line, and run nothing")
    parser.add_argument("--outside", action="store_true", help="only those by somebody who did not write the tests")
    parser.add_argument("--sample", type=int, metavar="N", help="N of them, chosen by the commit")
    parser.add_argument("--minutes", type=float, help="start none after this time")
    parser.add_argument("--jobs", type=int, default=1, help="how many at a time (default 1)")
    parser.add_argument("--record", action="store_true", help="keep which test noticed which")
    options = parser.parse_args()
    try:
        mutants = [m for m in chosen(options.what) if m.author == "outside" or not options.outside]
        for mutant in mutants:
            mutant.source()
        if options.sample:
            mutants = sample(mutants, options.sample)
        if options.list:
            for mutant in mutants:
                note = f"  (equivalent: {mutant.equivalent})" if mutant.equivalent else ""
                print(f"{mutant.name:<18} {mutant.file}: {mutant.promise}{note}")
            return 0
        return run(mutants, jobs=options.jobs, minutes=options.minutes, record=options.record)
    except MutantError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
