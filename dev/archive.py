"""The archive that ComfyUI's registry would get: the files under version control, less what .comfyignore names.

python -m dev.archive kosmos-g.zip      # writes it, and says what the registry's scanner would flag in it
"""

from __future__ import annotations

import argparse
import ast
import subprocess
import sys
import zipfile
from pathlib import Path

from .install import ROOT

# What the registry's scanner takes for a danger, whatever it is used for.
FLAGGED_MODULES = {
    "ctypes",
    "ftplib",
    "http",
    "marshal",
    "multiprocessing",
    "pickle",
    "pip",
    "pty",
    "requests",
    "shelve",
    "smtplib",
    "socket",
    "subprocess",
    "telnetlib",
    "urllib",
    "webbrowser",
    "aiohttp",
    "httpx",
    "dill",
    "cloudpickle",
}
FLAGGED_CALLS = {"eval", "exec", "compile", "__import__", "system", "popen", "getenv", "b64decode"}
FLAGGED_NAMES = {"environ"}


def _git(*arguments: str) -> set[str]:
    listed = subprocess.run(["git", *arguments, "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(filter(None, listed.stdout.split("\0")))


def archived_files() -> list[str]:
    """Paths in the archive, relative to the checkout; files that are new and not ignored count as under control."""
    present = _git("ls-files", "--cached", "--others", "--exclude-standard") - _git("ls-files", "--deleted")
    ignore = f"--exclude-from={ROOT / '.comfyignore'}"
    left_out = _git("ls-files", "-ci", ignore) | _git("ls-files", "-oi", ignore)
    return sorted(present - left_out)


def build_archive(path: Path) -> Path:
    """Write the archive to `path` and return it."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in archived_files():
            archive.write(ROOT / name, name)
    return path


def scan(source: str) -> list[str]:
    """What the registry's scanner would flag in a Python file, one phrase each."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            modules = [node.module or ""]
        else:
            modules = []
        found += [f"imports {module}" for module in modules if module.split(".")[0] in FLAGGED_MODULES]
        if isinstance(node, ast.Call):
            called = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if called in FLAGGED_CALLS and not (called == "compile" and isinstance(node.func, ast.Attribute)):
                found.append(f"calls {called}")
        if isinstance(node, ast.Attribute) and node.attr in FLAGGED_NAMES:
            found.append(f"reads {node.attr}")
    return found


def scan_file(name: str) -> list[str]:
    """The same for a file of the archive, by its path in it; nothing where it holds no Python."""
    return scan((ROOT / name).read_text(encoding="utf-8")) if name.endswith(".py") else []


def main() -> int:
    """Build and scan; returns the exit status, 1 where something would be flagged."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("path", type=Path, help="where the archive goes")
    path = build_archive(parser.parse_args().path)
    print(f"{path}: {len(archived_files())} files, {path.stat().st_size / 1e6:.1f} MB")
    flagged = {name: found for name in archived_files() if (found := scan_file(name))}
    for name, found in flagged.items():
        print(f"{name}: the registry would flag that it {', '.join(found)}")
    return 1 if flagged else 0


if __name__ == "__main__":
    sys.exit(main())
