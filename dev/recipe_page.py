"""Figures of the recipe from the plan: headers of its configurations, tables of docs/recipe.md, stored plans.

    python -m dev.recipe_page           # plans what is not stored yet (half a minute each), writes all three
    python -m dev.recipe_page --check   # writes nothing; 1 where a file would change

A test runs the check. After a change of a configuration, or of code that a plan simulates, run it without --check.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from kosmos_core.atomic import write_file
from training.engine.run_config import RunConfig, parse
from training.plan.command import default_rates
from training.plan.gpus import GPUS, Gpu
from training.plan.memory import Plan, plan
from training.plan.recipe import Recipe, read_recipe
from training.plan.recipe_report import HEADINGS, RecipeReport, report, rows
from training.plan.stored import STORE, code_digest, question, read_store, store_of

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "training" / "configs"
RECIPE, PAGE = CONFIGS / "kosmos2", ROOT / "docs" / "recipe.md"
PROBES = ("align-1x24gb.yaml", "picture-text-1x80gb.yaml")
SINGLE_GPU = ("lm", "align", "instruct")
MACHINES = {"RTX 4090": ("4090", 1), "one H100": ("h100", 1), "eight H100": ("h100", 8)}
BLOCK = re.compile(r"(<!-- plan: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
HEADER = re.compile(r"^# plan:.*$", re.MULTILINE)


def fitted(recipe: Recipe) -> Iterator[tuple[Path, RunConfig, int, float, Gpu]]:
    """Every file that fits something to a machine: the configuration with it, GPUs, pictures of a row, kind of GPU."""
    for name in recipe.steps:
        for gpus, memory, path in recipe.machines(name):
            gpu = GPUS["4090" if memory <= 24 else "h100"]
            yield path, recipe.step(name, gpus, gpu.memory).config, gpus, recipe.images[name], gpu
    for stage in SINGLE_GPU:
        path = CONFIGS / stage / "single-gpu.yaml"
        config = _parsed(path)
        yield path, config, 1, 0.0 if stage == "align" else 1.0, GPUS["4090" if stage == "align" else "h100"]


@cache
def _parsed(path: Path) -> RunConfig:
    return parse(["--config", str(path)])


def plans(recipe: Recipe, check: bool) -> dict[str, Plan]:
    """The plan of every fitted file, by its `question`; those that are not stored are made, and stored at once."""
    code, stored = read_store(RECIPE)
    if code != code_digest() and not check and not _unchanged(recipe, stored):
        stored = {}
    found: dict[str, Plan] = {}
    for path, config, gpus, images, _ in fitted(recipe):
        key = question(config, gpus, images)
        if key not in stored:
            if check:
                raise LookupError(f"{path.relative_to(ROOT)} has no stored plan; run python -m dev.recipe_page")
            print(f"planning {path.relative_to(ROOT)} on {gpus} ...", flush=True)
            stored[key] = plan(config, gpus, images=images)
            write_file(RECIPE / STORE, store_of(stored))
        found[key] = stored[key]
    return found


def _unchanged(recipe: Recipe, stored: dict[str, Plan]) -> bool:
    """Whether two files are planned as before, though code has changed: then so are the others."""
    probes = [one for one in fitted(recipe) if one[0].name in PROBES and question(*one[1:4]) in stored]
    for path, config, gpus, images, _ in probes:
        print(f"planning {path.relative_to(ROOT)} again ...", flush=True)
        if plan(config, gpus, images=images) != stored[question(config, gpus, images)]:
            return False
    return bool(probes)


def header(found: Plan, gpu: Gpu) -> str:
    """The line of a configuration that says what it needs."""
    seconds = found.operations / default_rates(gpu, found.processes)["lm"].operations
    work = found.operations * found.processes / 1e12
    return (
        f"# plan: {found.peak / 1e9:.1f} GB of each GPU; {work:,.0f} TFLOP a step, {seconds:.1f} s on "
        f"{found.processes} x {gpu.name} at 40 % of the peak (arithmetic)."
    )


def tables() -> dict[str, str]:
    """The generated blocks of the page by their names."""
    recipe = read_recipe(RECIPE)
    reports = {
        title: report(recipe, GPUS[name], gpus, default_rates(GPUS[name], gpus))
        for title, (name, gpus) in MACHINES.items()
    }
    blocks = {"hours": _hours(reports), "disk": _disk(reports["one H100"])}
    for title, one in reports.items():
        blocks["machine_" + MACHINES[title][0] + f"_{MACHINES[title][1]}"] = _machine(one)
    return blocks


def _markdown(lines: list[tuple[str, ...]]) -> str:
    head, *body = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([head, "|" + "---|" * len(lines[0]), *body]) + "\n"


def _machine(found: RecipeReport) -> str:
    return _markdown([HEADINGS, *rows(found)])


def _hours(reports: dict[str, RecipeReport]) -> str:
    lines = [("step", *reports)]
    by_step = [{row[0]: row for row in rows(one)} for one in reports.values()]
    for name in by_step[-1]:
        # Hours and dollars, and the reason where there are none or they are not the whole sum's.
        said = (row[name][4:6] + ((row[name][6],) if name == "sum" or not row[name][4] else ()) for row in by_step)
        cells = [", ".join(word for word in words if word) for words in said]
        lines.append((name, *cells))
    return _markdown(lines)


def _disk(found: RecipeReport) -> str:
    lines = [("what", "samples", "bytes on disk")]
    lines += [(f"`{name}`", f"{one.samples:,.0f}", f"{one.disk / 1e9:,.0f} GB") for name, one in found.data.items()]
    for one in found.steps:
        lines.append((f"checkpoints and weights of {one.step.name}", "", f"{one.checkpoints / 1e9:,.0f} GB"))
    return _markdown([*lines, ("sum", "", f"{found.disk / 1e12:.2f} TB")])


def contents(check: bool) -> dict[Path, str]:
    """What each generated file has to hold."""
    recipe = read_recipe(RECIPE)
    found = plans(recipe, check)
    made = {}
    if not check:  # the tables read the store
        write_file(RECIPE / STORE, store_of(found))
    for path, config, gpus, images, gpu in fitted(recipe):
        line = header(found[question(config, gpus, images)], gpu)
        made[path] = HEADER.sub(line, path.read_text(encoding="utf-8"), count=1)
    blocks = tables()
    made[PAGE] = BLOCK.sub(lambda m: f"{m[1]}\n{blocks[m[2]]}\n{m[3]}", PAGE.read_text(encoding="utf-8"))
    return made


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser("python -m dev.recipe_page", description=__doc__.split("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; 1 where a file would change")
    check = parser.parse_args(arguments).check
    stale = [(path, text) for path, text in contents(check).items() if path.read_text(encoding="utf-8") != text]
    for path, text in stale:
        if not check:
            write_file(path, text)
        print(f"{path.relative_to(ROOT)}: {'stale' if check else 'written'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
