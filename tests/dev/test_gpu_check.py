"""The check of a GPU runs whole on a CPU at small size, and what it cannot run it skips by name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dev.gpu_check import __main__ as gpu_check
from dev.gpu_check import context as checked
from training.base.errors import ConfigError
from training.plan.measured import measured_rates


def test_every_part_runs_on_a_cpu_and_its_numbers_are_written(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert gpu_check.main(["--device", "cpu", "--out", str(tmp_path / "check.json"), "--minutes", "60"]) == 0
    found, shown = json.loads((tmp_path / "check.json").read_text()), capsys.readouterr().out
    assert found["skipped"] == {}
    assert found["failed"] == []
    assert list(found["lines"]) == list(gpu_check.PARTS)
    for part, lines in found["lines"].items():
        assert lines, part
        assert f"\n{part}\n  {lines[0]['what']}" in shown
    assert set(found["rates"]) == {"lm", "align", "instruct"}
    assert all(rate > 0 for rate in found["rates"].values())
    assert max(found["values"]["golden"].values()) > found["values"]["golden"]["fp32"] > 0
    assert set(found["values"]["sharding"]) == {"fsdp2 against single", "saved under fsdp2, resumed as single"}
    assert "fp16, half loaded" in found["values"]["adapter"]["errors"]
    with pytest.raises(ConfigError, match="made at size 'tiny'"):
        measured_rates(tmp_path / "check.json")
    (tmp_path / "check.json").write_text(json.dumps(found | {"size": "official"}))
    assert measured_rates(tmp_path / "check.json") == ("CPU", found["rates"])


def test_a_part_whose_package_is_missing_says_which(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    here = checked.find_spec
    monkeypatch.setattr(checked, "find_spec", lambda name: None if name in ("megatron", "diffusers") else here(name))
    monkeypatch.setattr(gpu_check, "find_spec", checked.find_spec)
    words = ["--device", "cpu", "--only", "steps", "sharding", "world", "--out", str(tmp_path / "check.json")]
    assert gpu_check.main(words) == 0
    skipped = json.loads((tmp_path / "check.json").read_text())["skipped"]
    assert skipped == {
        "steps": "needs megatron.energon, diffusers",
        "sharding": "needs megatron.energon, diffusers",
        "world": "needs diffusers",
    }
    assert "skipped: steps: needs megatron.energon, diffusers" in capsys.readouterr().out


def test_steps_of_full_size_come_without_the_packages_that_read_data() -> None:
    """Stages 1 and 2, as on a machine with a GPU and little else."""
    absent = [
        "megatron",
        "diffusers",
        "webdataset",
        "psutil",
        "pyarrow",
        "tensorboard",
        "fairscale",
        "regex",
        "pandas",
        "ray",
    ]
    script = f"""
import sys
sys.modules.update(dict.fromkeys({absent}))
from training.engine.run_config import parse
from training.engine.sharding.parallelize import parallelize
from training.plan.memory import plan
from training.stages import stage_module
stage_module("lm"), stage_module("align")
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])


def test_one_part_that_fails_takes_no_other_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> list:
        raise ValueError("a kernel is missing")

    parts = {
        "golden": broken,
        "encode": lambda *_: [checked.Line("x", "1")],
        "steps": lambda *_: [checked.Line("y", "2")],
    }
    monkeypatch.setattr(gpu_check, "PARTS", parts)
    assert gpu_check.main(["--device", "cpu", "--out", str(tmp_path / "check.json")]) == 1
    found = json.loads((tmp_path / "check.json").read_text())
    assert found["failed"] == ["golden: failed"]
    assert found["lines"]["golden"][0]["value"] == "ValueError: a kernel is missing"
    assert found["lines"]["steps"][0]["value"] == "2"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--device", "cuda"], "error: --device cuda: torch sees no GPU here; --device cpu runs everything small."),
        (["--device", "cpu", "--minutes", "0"], "error: --minutes: 0 must be above 0."),
    ],
)
def test_what_cannot_be_measured_is_a_sentence(capsys: pytest.CaptureFixture, words: list[str], expected: str) -> None:
    if words[1] == "cuda" and checked.torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert gpu_check.main(words) == 2
    assert capsys.readouterr().err.strip() == expected
