"""Steps of a world's training come in order, and none begins behind a gate that is shut."""

import json
from types import SimpleNamespace

import pytest
import torch

from emoji_world import train


@pytest.fixture
def begun(monkeypatch) -> list[str]:
    """The steps that were begun; each is done at once."""
    names: list[str] = []
    for name in train.STEPS:
        monkeypatch.setitem(train.STEPS, name, lambda place, more, name=name: names.append(name) or "later" not in more)
    monkeypatch.setattr(train.gates, "GATES", {"clip": lambda world, folder: (False, "too few: 0.10, at least 0.6")})
    return names


def test_next_goes_on_with_the_first_step_that_is_not_done(begun, tmp_path, capsys):
    folder = ["--folder", str(tmp_path)]
    train.main(["next", *folder, "--", "later"])
    assert "the same command goes on" in capsys.readouterr().out
    train.main(["next", *folder])
    train.main(["next", *folder])
    assert begun == ["autoencoder", "autoencoder", "clip"]
    assert capsys.readouterr().out.splitlines()[-1] == "clip: done; gate shut: too few: 0.10, at least 0.6"
    record = json.loads((tmp_path / "steps.json").read_text())
    assert record["clip"] == {"passed": False, "told": "too few: 0.10, at least 0.6"}
    train.main(["status", *folder])
    assert capsys.readouterr().out.splitlines()[1:3] == ["clip: too few: 0.10, at least 0.6", "unet: not done"]


def test_a_step_that_ended_beside_another_keeps_its_record(begun, tmp_path, monkeypatch):
    folder = ["--folder", str(tmp_path)]
    train.main(["autoencoder", *folder])
    monkeypatch.setitem(train.STEPS, "autoencoder", lambda place, more: train.main(["clip", *folder]) == "clip")
    train.main(["autoencoder", *folder])
    assert list(json.loads((tmp_path / "steps.json").read_text())) == ["autoencoder", "clip"]


def test_a_step_behind_a_shut_gate_or_out_of_turn_is_refused(begun, tmp_path):
    folder = ["--folder", str(tmp_path)]
    with pytest.raises(SystemExit, match="clip: autoencoder comes before it and is not done"):
        train.main(["clip", *folder])
    train.main(["next", *folder])
    train.main(["next", *folder])
    with pytest.raises(
        SystemExit, match=r"unet: the gate of clip is shut \(too few: 0.10, at least 0.6\); train clip on"
    ):
        train.main(["next", *folder])
    assert begun == ["autoencoder", "clip"]
    train.main(["next", *folder, "--past-gates"])
    assert begun[-1] == "unet"


def test_a_linear_probe_is_judged_by_rows_that_it_is_not_fitted_to():
    generator = torch.Generator().manual_seed(0)
    classes = torch.arange(60) % 6
    noise = torch.randn(60, 100, generator=generator)  # enough of it to learn any rows by heart
    assert train.gates.linear_probe(noise, classes, held=30) < 0.5
    told = torch.nn.functional.one_hot(classes).float() + 0.1 * noise[:, :6]
    assert train.gates.linear_probe(told, classes, held=30) > 0.9


@pytest.mark.parametrize(("value", "passed"), [(0.599, False), (0.6, True), (0.601, True)])
def test_a_gate_is_passed_at_its_goal_and_counts_seen_identities_alone(value, passed):
    assert train.gates.at_least(value, 0.6, "share")[0] == passed
    probe = SimpleNamespace(words=["a", "b", "c", "d"], groups={"seen": [True, True, False, False]})
    assert train.gates.all_words(["a", "x", "c", "d"], probe, 0.51, "")[0] is False
    assert train.gates.all_words(["a", "b", "x", "x"], probe, 1.0, "")[0] is True
