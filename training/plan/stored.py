"""Plans that were made before and lie beside their recipe: one at full size takes half a minute of a core.

A stored plan is used for the very configuration, processes and code that it was made with, else it is made anew.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import kosmos_core

from ..engine.run_config import RunConfig
from .memory import Plan, plan

STORE = "planned.json"
# What a plan's numbers follow from.
SOURCES = ("plan/*.py", "stages/*.py", "engine/operations.py", "engine/optimizer.py", "engine/sharding/*.py")
NO_NUMBERS = ("command.py", "estimate.py", "gpus.py", "measured.py", "recipe.py", "recipe_report.py", "stored.py")


@cache
def code_digest() -> str:
    """A hash of the code that a plan simulates and of the simulation itself."""
    training, core = Path(__file__).parents[1], Path(kosmos_core.__file__).parent
    files = sorted(path for pattern in SOURCES for path in training.glob(pattern))
    files = [path for path in files if path.parent.name != "plan" or path.name not in NO_NUMBERS]
    files += sorted(core.glob("*.py"))
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def question(config: RunConfig, processes: int, images: float | None) -> str:
    """A hash of what is planned; folders and rates of learning change no plan."""
    settings = json.dumps([config.to_yaml(), processes, images], sort_keys=True)
    return hashlib.sha256(settings.encode()).hexdigest()[:16]


def read_store(folder: Path) -> dict[str, Any]:
    """The stored plans of a folder by `question`, none where they were made by other code."""
    path = folder / STORE
    if not path.is_file():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    return content["plans"] if content["code"] == code_digest() else {}


def planned(folder: Path, config: RunConfig, processes: int, images: float | None) -> Plan:
    """The plan of a configuration, from the folder's store where it holds it; raises as `plan` does."""
    stored = read_store(folder).get(question(config, processes, images))
    return Plan(**stored) if stored else plan(config, processes, images=images)


def store_of(plans: dict[str, Plan]) -> str:
    """The store's text for plans by `question`."""
    content = {"code": code_digest(), "plans": {key: asdict(one) for key, one in sorted(plans.items())}}
    return json.dumps(content, indent=1) + "\n"
