"""The pages in the repository: what they point to and what they tell people to type exists."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
MODULE = re.compile(r"(?:python3?|torchrun[^\n]*?) -m ([a-z_][\w.]*)")
# Files and folders by their path from the root: `tests/golden`, training/configs/lm.yaml
PATH = re.compile(
    r"(?<![\w./-])((?:assets|dev|docs|emoji_world|kosmos_core|nodes|tests|training|web|workflows|locales)/[\w./-]*\w)"
)
MOVED = {"tests.benchmarks", "training.world", "tests/comfyui/install.py"}  # what CHANGELOG says is gone

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_readme_has_at_most_150_lines() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


@each_page
def test_every_link_leads_somewhere(page: Path) -> None:
    links = LINK.findall(page.read_text(encoding="utf-8"))
    for link in links:
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@each_page
def test_every_module_to_run_exists(page: Path) -> None:
    for name in MODULE.findall(page.read_text(encoding="utf-8")):
        if name.rstrip(".") in MOVED:
            continue
        found = find_spec(name.rstrip("."))
        assert found is not None, name
        if found.submodule_search_locations is not None and name[-1] != ".":
            assert find_spec(f"{name}.__main__") is not None, f"{name} is a package that cannot be run"


@each_page
def test_every_path_of_the_repository_exists(page: Path) -> None:
    for path in PATH.findall(page.read_text(encoding="utf-8")):
        assert path in MOVED or (ROOT / path).exists(), path


def test_every_page_can_be_reached_from_readme() -> None:
    reached, todo = set(), [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        reached.add(page)
        links = [(page.parent / link.partition("#")[0]).resolve() for link in LINK.findall(page.read_text("utf-8"))]
        todo += [link for link in links if link.suffix == ".md" and link not in reached]
    assert set(PAGES) <= reached


def test_the_files_named_in_the_drawing_exist() -> None:
    named = set(re.findall(r"\b(\w+\.py)\b", (ROOT / "docs/architecture.svg").read_text(encoding="utf-8")))
    folders = [ROOT / "kosmos_core", ROOT / "training"]
    assert named
    assert named <= {path.name for folder in folders for path in folder.rglob("*.py")}
