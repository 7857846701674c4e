"""A copy of the checkout in which mutants are planted one after the other, and the tests are run."""

from __future__ import annotations

import ast
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..install import ROOT
from .mutant import Mutant, MutantError

LONGEST = 600  # seconds for the tests of one mutant; one that hangs is noticed
ONE_TEST = 60  # seconds for the one that noticed it before


class Workplace:
    """A copy of the checkout under the temporary folder; a context manager that removes it."""

    def __enter__(self) -> Workplace:
        self.root = Path(tempfile.mkdtemp(prefix="kosmos-g-mutants-"))
        subprocess.run(["git", "clone", "-q", "--shared", str(ROOT), str(self.root)], check=True)  # tests ask git, too
        for name in _git("ls-files", "-z", "--modified", "--others", "--exclude-standard"):
            if (source := ROOT / name).is_file():
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, self.root / name)
            else:
                (self.root / name).unlink(missing_ok=True)
        (self.root / ".comfyui").symlink_to((ROOT / ".comfyui").resolve())
        self.clock = int(time.time()) + 10
        self.sound: set[tuple[str, ...]] = set()
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.root, ignore_errors=True)

    def write(self, name: str, text: str) -> None:
        """Replace a file; its time goes on by whole seconds, because Python keeps bytecode by them and by the size."""
        path = self.root / name
        path.write_text(text, encoding="utf-8")
        self.clock += 2
        os.utime(path, (self.clock, self.clock))

    def test(self, tests: Sequence[str], seconds: float = LONGEST) -> tuple[bool, str]:
        """Whether the tests pass within so many seconds, and the first line that says why not."""
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider", *tests]
        try:
            ran = subprocess.run(command, cwd=self.root, capture_output=True, text=True, timeout=seconds)
        except subprocess.TimeoutExpired:
            return False, f"hangs for {seconds:g} s"
        summary = [line for line in ran.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        if ran.returncode not in (0, 1, 2):  # 2: a test file cannot even be imported
            return False, f"pytest ended with {ran.returncode}: {(ran.stdout + ran.stderr).strip()[-300:]}"
        return ran.returncode == 0, summary[0] if summary else ""

    def plant(self, mutant: Mutant, before: str = "") -> tuple[bool, str]:
        """Whether the tests notice a mutant, and which did: first the one that did `before`, which passes without it.

        MutantError where they fail without it, too.
        """
        text = (ROOT / mutant.file).read_text(encoding="utf-8")
        with self._planted(mutant, text):
            passed, line = self.test([before], ONE_TEST) if before else (True, "")
        if not passed:
            return True, line or f"FAILED {before}"
        tests = mutant.tests or importing(mutant.file)
        if tests not in self.sound:
            passed, line = self.test(tests)
            if not passed:
                raise MutantError(f"{mutant.name}: its tests fail without it, too: {line}")
            self.sound.add(tests)
        with self._planted(mutant, text):
            passed, line = self.test(tests)
        return not passed, line

    @contextlib.contextmanager
    def _planted(self, mutant: Mutant, text: str) -> Iterator[None]:
        self.write(mutant.file, mutant.source())
        try:
            yield
        finally:
            self.write(mutant.file, text)


def _git(*arguments: str) -> list[str]:
    listed = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    return [name for name in listed.split("\0") if name]


def importing(file: str) -> tuple[str, ...]:
    """Test files that import a module, or the folder of tests of its area where none does."""
    module = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    found = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if module in _imports(path)]
    area = {"kosmos_core": "core", "nodes": "comfyui"}.get(module.split(".")[0], module.split(".")[0])
    return tuple(str(path.relative_to(ROOT)) for path in found) or (f"tests/{area}",)


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found
