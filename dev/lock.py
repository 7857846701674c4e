"""The versions that developers and continuous integration install: `dev/locked.txt`, for one version of Python.

python -m dev.lock      # writes what is installed in this environment, after its tests have passed
"""

from __future__ import annotations

import importlib.metadata
import re
import sys

from .install import LOCK


def installed() -> dict[str, str]:
    """Name (as the package index spells it) and version of every installed package, without a build's local mark."""
    found = {}
    for package in importlib.metadata.distributions():
        name = re.sub(r"[-_.]+", "-", package.metadata["Name"]).lower()
        if name not in ("pip", "setuptools", "wheel", "kosmos-g"):
            found[name] = package.version.partition("+")[0]
    return dict(sorted(found.items()))


def main() -> None:
    """Write the file."""
    lines = ["# Python {}.{}; written by `python -m dev.lock`".format(*sys.version_info)]
    lines += [f"{name}=={version}" for name, version in installed().items()]
    LOCK.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{LOCK}: {len(lines) - 1} packages")


if __name__ == "__main__":
    main()
