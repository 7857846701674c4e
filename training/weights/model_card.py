"""The card of exported weights, Markdown as hubs read it: what they are, what trained them, how far they came."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kosmos_core.safetensors_file import WeightsError
from kosmos_core.weights import read_config

from ..base.errors import CheckpointError

MARK = "<!-- written by training.export -->"
WHAT = {
    "lm": "The language model of Kosmos-G after stage 1. It has no AlignerNet and cannot condition an image model yet.",
    "align": "Kosmos-G after stage 2: AlignerNet speaks CLIP's text space. It reads text; pictures are untrained.",
    "instruct": "Kosmos-G: text and pictures in one prompt, as the conditioning of any Stable Diffusion 1.5.",
}


def refuse_other_file(path: Path, weights: str | Path) -> None:
    """CheckpointError where `path` is the weights' own, or a file that is no card of ours: nobody's README is lost."""
    if path.resolve() == Path(weights).resolve():
        raise CheckpointError(
            f"--model-card: {path} is the file of weights itself; choose another name, such as card.md."
        )
    if not path.parent.is_dir():
        raise CheckpointError(f"--model-card: there is no folder {path.parent}; make it, or choose another.")
    if path.is_dir() or (path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace")):
        kind = "folder" if path.is_dir() else "file that is no model card"
        raise CheckpointError(f"--model-card: {path} is a {kind}; choose another name, such as {path.stem}-card.md.")


def model_card(weights: Path, run_folder: Path, provenance: Mapping[str, Any]) -> str:
    """The card of `weights`, which were exported from a run with this provenance."""
    config, stage, step = provenance["config"], provenance["stage"], provenance["step"]
    record = last_record(run_folder, step)
    lines = [
        "---",
        "license: other",
        "pipeline_tag: text-to-image",
        "tags: [kosmos-g, comfyui, stable-diffusion]",
        "---",
        MARK,
        "",
        f"# {weights.stem}",
        "",
        WHAT[stage],
        "",
        "To be completed by you: the licence (above too), who made it, what it must not be used for.",
        "",
        "## Use",
        "",
        f"ComfyUI: put `{weights.name}` into `models/kosmos_g` and choose it in Load Kosmos-G. Python:",
        "",
        "    from kosmos_core import load_model",
        f'    condition = load_model("{weights.name}").encode("a dog <i> at the beach", [picture])',
        "",
        "## Training",
        "",
        *_table(("", ""), _training(config, provenance)),
        "",
        *_earlier(config.get("weights")),
        "## Data",
        "",
        *_table(("source", "folder", "layout", "weight", "samples read", "left out"), _data(config, record)),
        "",
        "## Figures",
        "",
        *_figures(record, step),
        "",
    ]
    return "\n".join(lines)


def last_record(run_folder: Path, step: int) -> dict[str, Any]:
    """What the log has on the exported step or the last one before, later records of a metric over earlier ones."""
    found: dict[str, Any] = {}
    path = run_folder / "log.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
        except ValueError:  # cut off by a kill
            continue
        if isinstance(record, dict) and record.get("step", step + 1) <= step:
            found |= record
    return found


def _training(config: Mapping[str, Any], provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    optim, batch = config["optim"], config["batch"]
    git, versions = provenance["git"], provenance["versions"]
    changed = ", with changed files" if git.get("changed") else ""
    return [
        ("stage", provenance["stage"]),
        ("step", f"{provenance['step']:,} of {config['steps']:,}, {provenance['weights']} weights"),
        ("batch", f"{batch['size']:,} rows; {provenance['step'] * batch['size']:,} rows in all"),
        ("learning rate", f"{optim['lr']:g}, {optim['warmup_steps']:,} steps of warm-up, {optim['schedule']}"),
        ("optimiser", f"{optim['name']}, betas {optim['betas']}, weight decay {optim['weight_decay']:g}"),
        ("trains", _trained(config.get("trainable") or {})),
        ("number format", config["precision"]),
        ("began from", Path(config["weights"]).name if config.get("weights") else "random weights"),
        ("starts", f"{provenance['starts']}"),
        ("code", f"{git.get('commit') or 'no git commit'}{changed}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))),
    ]


def _trained(settings: Mapping[str, Any]) -> str:
    if settings.get("lora"):
        return f"low-rank additions of rank {settings['lora']}, merged"
    return "AlignerNet alone" if settings.get("parts") == "aligner" else "all that the stage trains"


def _earlier(weights: str | None) -> list[str]:
    """What the file that a run began with says of its own training, and the one before that; no lines for others."""
    lines: list[str] = []
    while weights and Path(weights).is_file() and len(lines) < 9:
        try:
            before = read_config(weights)[1]["provenance"]
            lines.append(f"- before that {before['stage']}, {before['step']:,} steps, on {', '.join(before['data'])}")
            weights = before["config"].get("weights")
        except (WeightsError, OSError, KeyError, TypeError, AttributeError):
            break
    return [*lines, ""] if lines else []


def _data(config: Mapping[str, Any], record: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows = []
    for name, source in ((config.get("data") or {}).get("sources") or {}).items():
        skipped = [
            f"{value:,} {key.removeprefix(f'data/{name}/')}"
            for key, value in record.items()
            if key.startswith(f"data/{name}/") and key != f"data/{name}/seen" and value
        ]
        read = record.get(f"data/{name}/seen")
        shown = "" if read is None else f"{read:,}"
        rows.append(
            (name, f"`{Path(source['path']).name}`", source["kind"], f"{source['weight']:g}", shown, ", ".join(skipped))
        )
    return rows


def _figures(record: Mapping[str, Any], step: int) -> list[str]:
    figures = [(key, value) for key, value in record.items() if key == "loss" or key.startswith(("loss/", "validate/"))]
    if not figures:
        return ["The run's log is not at hand."]
    note = (
        "Those under `validate/` are of data that was held out, the others of training."
        if any(key.startswith("validate/") for key, _ in figures)
        else "Losses are of training data: nothing was held out (`validate.sources`)."
    )
    rows = [(key, f"{value:.4g}" if isinstance(value, float) else f"{value}") for key, value in figures]
    return [f"At step {record['step']:,} of the log. {note}", "", *_table(("figure", "value"), rows)]


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (head, ("---",) * len(head), *rows)]
