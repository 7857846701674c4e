"""Which test noticed which mutant, so that the next run asks that one first: seconds instead of minutes each."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path

from ..install import ROOT

FILE = Path(__file__).with_name("noticed.json")  # {test: [names of mutants]}
SAID = re.compile(r"FAILED (tests/[\w/]+\.py::\w+)")  # without parameters: a test is asked with all of them


def tests() -> dict[str, str]:
    """The test that noticed a mutant, by the mutant's name; only tests that are still there."""
    kept = json.loads(FILE.read_text(encoding="utf-8"))
    return {name: test for test, names in kept.items() if _exists(test) for name in names}


def record(lines: dict[str, str], known: set[str]) -> None:
    """Keep what a run's lines say, by the mutant's name, beside what is kept of the other `known` mutants."""
    kept = {name: test for name, test in tests().items() if name in known}
    kept |= {name: match[1] for name, line in lines.items() if (match := SAID.match(line))}
    by_test: defaultdict[str, list[str]] = defaultdict(list)
    for name, test in sorted(kept.items()):
        by_test[test].append(name)
    FILE.write_text(json.dumps(dict(sorted(by_test.items())), indent=1) + "\n", encoding="utf-8")


def _exists(test: str) -> bool:
    path, _, function = test.partition("::")
    return (ROOT / path).is_file() and f"def {function}(" in (ROOT / path).read_text(encoding="utf-8")
