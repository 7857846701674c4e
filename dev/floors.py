"""Run the encoder's tests on the oldest releases that pyproject.toml allows, in an environment of their own.

python3 -m dev.floors       # makes .venv-floors the first time (1.5 GB)
"""

from __future__ import annotations

import subprocess
import sys

from .install import ROOT, environment_python, make_environment, project_requirements, run_pip

FLOORS = ROOT / ".venv-floors"
TOOLS = ["hypothesis", "pytest", "pytest-timeout"]


def main() -> int:
    """Install and test; return pytest's exit status."""
    python = environment_python(FLOORS)
    if not python.exists():
        make_environment(FLOORS)
    oldest = [requirement.replace(">=", "==") for requirement in project_requirements(())]
    print(f"The oldest releases: {', '.join(oldest)}", flush=True)
    run_pip(python, [*oldest, *TOOLS], FLOORS / "install.log")
    # Some of the folder's tests compare with the training, which needs more than the encoder.
    tests = [
        path for path in sorted((ROOT / "tests/core").glob("test_*.py")) if "from training" not in path.read_text()
    ]
    return subprocess.run([str(python), "-m", "pytest", "-q", *map(str, tests)], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
