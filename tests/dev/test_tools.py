"""The developers' tools themselves: those that no other test drives still fit the code that they measure."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dev.install import ROOT, InstallError
from dev.mutants.__main__ import ALL
from dev.overlay import requirements_of

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


def test_another_comfyui_brings_what_it_pins_and_what_is_missing_and_never_torch(tmp_path: Path) -> None:
    lines = "comfyui-frontend-package==1.49.6", "torch", "numpy>=1.25.0", "comfy-aimdo>=0.1.7", "no-such-package", "# x"
    (tmp_path / "requirements.txt").write_text("\n".join(lines), encoding="utf-8")
    assert requirements_of(tmp_path) == [lines[0], lines[3], lines[4]]
    with pytest.raises(InstallError, match="is no ComfyUI"):
        requirements_of(tmp_path / "nowhere")


def test_every_mutant_still_fits_the_code() -> None:
    """A list that has fallen behind would plant nothing."""
    for mutant in ALL:
        mutant.source()
        assert all((ROOT / test.partition("::")[0]).exists() for test in mutant.tests), mutant
    assert len({mutant.name for mutant in ALL}) == len(ALL)
