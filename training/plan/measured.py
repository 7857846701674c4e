"""Rates of a real run for a plan: from `make gpu-check`'s JSON file, or from a run folder of a training."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median

import yaml

from ..base.errors import ConfigError
from ..stages import STAGES

CHECK = "kosmos-g gpu-check"


def measured_rates(path: str | Path) -> tuple[str, dict[str, float]]:
    """The device's name, and the operations that one GPU did in a second, by stage.

    Raises:
        ConfigError: the file is none of the two, or holds no rate.
    """
    path = Path(path)
    try:
        found = _of_run(path) if path.is_dir() else _of_check(path)
    except OSError as error:
        raise ConfigError(f"--measured: {path} cannot be read ({error.strerror}); {_EXPECTED}.") from None
    except (ValueError, KeyError, TypeError, AttributeError, LookupError, yaml.YAMLError) as error:
        raise ConfigError(
            f"--measured: {path} holds no rates ({type(error).__name__}: {' '.join(str(error).split())}); {_EXPECTED}."
        ) from None
    device, rates = found
    if bad := [stage for stage, rate in rates.items() if not 0 < rate < float("inf")]:
        raise ConfigError(f"--measured: {path} has {rates[bad[0]]} operations a second for {bad[0]}; {_EXPECTED}.")
    return device, rates


_EXPECTED = "give the JSON file that `make gpu-check` writes, or the run folder of a training"


def _of_check(path: Path) -> tuple[str, dict[str, float]]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if content["kind"] != CHECK:
        raise ValueError(f"kind is {content['kind']!r}, not {CHECK!r}")
    if content["size"] != "official":
        raise ValueError(f"it was made at size {content['size']!r}, and small products say nothing of large ones")
    rates = {stage: float(content["rates"][stage]) for stage in STAGES if stage in content["rates"]}
    if not rates:
        raise ValueError("its part c, the stages' steps, was skipped")
    return str(content["device"]), rates


def _of_run(path: Path) -> tuple[str, dict[str, float]]:
    config = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
    records = [json.loads(line) for line in (path / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    starts = [json.loads(line) for line in (path / "starts.jsonl").read_text(encoding="utf-8").splitlines()]
    # The first record holds the start: indexes, warm-up of kernels, compilation.
    rates = [float(record["flops_per_second"]) for record in records[1:]]
    if not rates:
        raise ValueError("log.jsonl has fewer than two records")
    return str(starts[-1]["device"]), {str(config["stage"]): median(rates) / int(starts[-1]["processes"])}
