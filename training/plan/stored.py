"""Plans that were made before and lie beside their recipe: one at full size takes half a minute of a core.

A stored plan is used for the configuration and processes that it was made for; any other is made anew. The code that
it was made with stands beside it: a test plans again where that has changed.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from functools import cache
from pathlib import Path

import kosmos_core

from ..base.settings import plain
from ..engine.run_config import RunConfig
from .memory import Plan, plan

STORE = "planned.json"
# What a plan's numbers follow from.
SOURCES = ("plan/*.py", "stages/*.py", "engine/sharding/*.py", "engine/adamw_8bit.py", "engine/trainable.py")
SOURCES += ("engine/operations.py", "engine/optimizer.py")
NO_NUMBERS = ("command.py", "estimate.py", "gpus.py", "measured.py", "recipe.py", "recipe_report.py", "stored.py")

DECISIVE = ("stage", "precision", "model", "batch", "parallel", "task", "trainable")
LENGTHS = ("sequence_length", "document_mask", "pad_to", "max_tokens", "resolution")  # what decides a plan of the data


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
    """A hash of what is planned: the settings that decide a plan, of how many processes and pictures."""
    settings = plain(config)
    decisive = {key: settings[key] for key in DECISIVE}
    decisive["optim"] = {key: settings["optim"][key] for key in ("name", "ema")}
    decisive["data"] = {key: value for key, value in settings["data"].items() if key in LENGTHS}
    text = json.dumps([decisive, processes, images], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_store(folder: Path) -> tuple[str, dict[str, Plan]]:
    """The `code_digest` that a folder's plans were made with, and these by `question`."""
    path = folder / STORE
    if not path.is_file():
        return "", {}
    content = json.loads(path.read_text(encoding="utf-8"))
    return content["code"], {key: Plan(**values) for key, values in content["plans"].items()}


def planned(folder: Path, config: RunConfig, processes: int, images: float | None) -> Plan:
    """The plan of a configuration, from the folder's store where it holds it; raises as `plan` does."""
    _, stored = read_store(folder)
    return stored.get(question(config, processes, images)) or plan(config, processes, images=images)


def store_of(plans: dict[str, Plan]) -> str:
    """The store's text for plans by `question`."""
    content = {"code": code_digest(), "plans": {key: asdict(one) for key, one in sorted(plans.items())}}
    return json.dumps(content, indent=1) + "\n"
