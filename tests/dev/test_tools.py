"""The developers' tools themselves: those that no other test drives still fit the code that they measure."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from dev.install import LOCK, ROOT, InstallError, requirements_for
from dev.mutants import noticed
from dev.mutants.__main__ import ALL
from dev.overlay import requirements_of
from tests import shared_out

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


def test_every_requirement_is_locked_at_a_version_that_fits() -> None:
    """The requirements of the environment that is installed for the tests, those of every extra among them."""
    locked = dict(line.split("==") for line in LOCK.read_text(encoding="utf-8").splitlines()[1:])
    wanted = [Requirement(entry) for call in requirements_for("test") for entry in call if not entry.startswith("--")]
    assert len(wanted) > 40
    for requirement in wanted:
        assert locked.get(canonicalize_name(requirement.name), "") in requirement.specifier, requirement


def test_every_action_is_named_by_its_commit() -> None:
    """A tag can be moved, and one of the workflows holds the registry's token."""
    root = Path(__file__).resolve().parents[2]
    used = [line for path in (root / ".github/workflows").glob("*.yml") for line in path.read_text().splitlines()]
    used = [line.split("uses:")[1].strip() for line in used if "uses:" in line]
    assert len(used) > 3
    for action in used:
        assert action.startswith("./") or re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v[\d.]+", action), action


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


def test_every_test_that_noticed_a_mutant_is_still_there() -> None:
    """One that is not would be left out, and a sample take minutes; `--record` writes the file again."""
    kept = json.loads(noticed.FILE.read_text(encoding="utf-8"))
    assert noticed.tests().keys() == {name for names in kept.values() for name in names}
    assert noticed.tests().keys() <= {mutant.name for mutant in ALL}


def test_what_noticed_a_mutant_is_kept_beside_what_was_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = "tests/dev/test_tools.py::test_every_mutant_still_fits_the_code"
    (tmp_path / "noticed.json").write_text(
        json.dumps({here: ["core-1", "gone-2"], "tests/core/gone.py::test_x": ["a"]})
    )
    monkeypatch.setattr(noticed, "FILE", tmp_path / "noticed.json")
    assert noticed.tests() == {"core-1": here, "gone-2": here}
    lines = {"core-3": f"FAILED {here}[a-1] - assert 0", "core-4": "hangs for 600 s", "core-1": ""}
    noticed.record(lines, {"core-1", "core-3", "core-4"})
    assert json.loads((tmp_path / "noticed.json").read_text()) == {here: ["core-1", "core-3"]}


@pytest.mark.parametrize(
    ("fixture", "together"),
    [("comfyui_folder", "comfyui"), ("dry_run", "comfyui"), ("ray_instance", "construct"), ("chain", "emoji_world")],
)
def test_what_the_whole_session_wants_once_is_made_by_one_process(fixture: str, together: str) -> None:
    wanting = re.compile(rf"^ *(async )?def \w+\([^)]*\b{fixture}\b|usefixtures\([^)]*\b{fixture}\b", re.MULTILINE)
    files = [path for path in (ROOT / "tests").rglob("test_*.py") if wanting.search(path.read_text(encoding="utf-8"))]
    assert files
    assert {shared_out.group(f"{path.relative_to(ROOT).as_posix()}::test_x") for path in files} == {together}


def test_what_comes_first_is_there() -> None:
    for path in shared_out.TOGETHER:
        assert (ROOT / path).exists(), path
    assert set(shared_out.FIRST) >= set(shared_out.TOGETHER.values())
    for name in set(shared_out.FIRST) - set(shared_out.TOGETHER.values()):
        assert (ROOT / name).is_file(), name
