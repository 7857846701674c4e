"""The developers' tools themselves: those that no other test drives still fit the code that they measure."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from dev.install import ROOT
from dev.mutants.__main__ import ALL

IMPORT_ALL = """
import importlib, pkgutil, dev
for module in pkgutil.walk_packages(dev.__path__, "dev."):
    importlib.import_module(module.name)
"""


def test_every_module_of_dev_can_be_imported() -> None:
    """In a process of its own, because benchmarks set variables of the environment when they are imported."""
    root = Path(__file__).resolve().parents[2]
    ran = subprocess.run([sys.executable, "-c", IMPORT_ALL], cwd=root, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_every_mutant_still_fits_the_code() -> None:
    """A list that has fallen behind would plant nothing."""
    for mutant in ALL:
        mutant.source()
        assert all((ROOT / test.partition("::")[0]).exists() for test in mutant.tests), mutant
    assert len({mutant.name for mutant in ALL}) == len(ALL)
