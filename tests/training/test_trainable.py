"""Partial training: which weights move, and what an export makes of low-rank additions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kosmos_core import load_model
from training import export, run
from training.base.errors import ConfigError
from training.engine.run_config import parse
from training.engine.trainable import COMFYUI, comfyui_lora, merge, restrict
from training.engine.trainable_config import TrainableConfig


@pytest.fixture
def start(smoke_stages) -> Path:
    """Weights that the partial trainings begin with."""
    return smoke_stages.folder / "align.safetensors"


def trained(smoke_stages, start: Path, folder: Path, steps: int, *options: str) -> Path:
    arguments = smoke_stages.arguments("instruct", folder / "run", "--steps", str(steps), "--optim.warmup_steps", "0")
    arguments += ["--weights", str(start), "--precision", "fp32", "--optim.schedule", "constant", *options]
    assert run.main(arguments) == 0
    return folder / "run"


def changed(before: Path, after: Path) -> set[str]:
    one, other = load_model(before).state_dict(), load_model(after).state_dict()
    return {name for name in other if not torch.equal(one[name], other[name])}


def test_low_rank_additions_are_exported_merged_or_alone_and_go_on_from_a_checkpoint(
    smoke_stages, start, tmp_path, capsys
):
    folder = trained(smoke_stages, start, tmp_path, 1, "--trainable.lora", "4")
    trained(smoke_stages, start, tmp_path, 2, "--trainable.lora", "4", "--resume", "auto")
    without = smoke_stages.arguments("instruct", folder, "--steps", "3", "--resume", "auto")
    assert run.main(without) == 2
    assert "trainable.lora: 0, but" in capsys.readouterr().err
    whole, alone = tmp_path / "merged.safetensors", tmp_path / "lora.safetensors"
    assert export.main([str(folder), str(whole)]) == 0
    assert export.main([str(folder), str(alone), "--lora"]) == 0
    narrow = [str(folder), str(tmp_path / "narrow.safetensors"), "--lora", "--dtype", "float8_e4m3fn"]
    assert export.main(narrow) == 1
    assert "--dtype: float8_e4m3fn is for whole weights" in capsys.readouterr().err
    moved, lora, base = changed(start, whole), load_file(alone), load_model(start).state_dict()
    layers = {name.removesuffix(".alpha").removeprefix(COMFYUI) for name in lora if name.endswith(".alpha")}
    assert moved == {f"{layer}.weight" for layer in layers}
    assert {name.split(".")[0] for name in moved} == {"decoder", "aligner"}
    merged = load_model(whole).state_dict()
    for layer in layers:
        down, up, alpha = (lora[f"{COMFYUI}{layer}.{x}"] for x in ("lora_down.weight", "lora_up.weight", "alpha"))
        assert (len(down), float(alpha)) == (4, 4)
        assert torch.allclose(base[f"{layer}.weight"] + up @ down, merged[f"{layer}.weight"], atol=1e-7)
    assert alone.stat().st_size < whole.stat().st_size / 2


def test_alignernet_alone_trains_and_has_no_additions_to_export(smoke_stages, start, tmp_path, capsys):
    folder = trained(smoke_stages, start, tmp_path, 1, "--trainable.parts", "aligner")
    assert export.main([str(folder), str(tmp_path / "out.safetensors")]) == 0
    moved = changed(start, tmp_path / "out.safetensors")
    assert {name.split(".")[0] for name in moved} == {"aligner"}
    assert export.main([str(folder), str(tmp_path / "lora.safetensors"), "--lora"]) == 1
    assert "--lora: " in capsys.readouterr().err
    assert not (tmp_path / "lora.safetensors").exists()


def test_what_cannot_train_is_refused_by_its_key(smoke_stages, tmp_path):
    with pytest.raises(ConfigError, match=r"trainable\.lora: -1 must be a rank"):
        parse(smoke_stages.arguments("lm", tmp_path / "run", "--trainable.lora", "-1"))
    model = torch.nn.ModuleDict({"decoder": torch.nn.Linear(2, 2)})
    with pytest.raises(ConfigError, match=r"trainable\.parts: aligner, but this stage trains nothing there"):
        restrict(model, TrainableConfig("aligner"), "single", 0)
    model.requires_grad_(True)
    with pytest.raises(ConfigError, match=r"trainable\.lora: 4, but parallel\.sharding fsdp2 does not know"):
        restrict(model, TrainableConfig(lora=4), "fsdp2", 0)
    with pytest.raises(ConfigError, match=r"trainable\.lora: 4, but the largest layer to add to, decoder\.x, .* of 2,"):
        restrict(
            torch.nn.ModuleDict({"decoder": torch.nn.ModuleDict({"x": torch.nn.Linear(2, 8)})}),
            TrainableConfig(lora=4),
            "single",
            0,
        )


def test_an_addition_may_have_the_highest_rank_and_draws_nothing_from_the_run():
    def model():
        return torch.nn.ModuleDict({"decoder": torch.nn.ModuleDict({"x": torch.nn.Linear(2, 8)})})

    made = {}
    for seed in (0, 0, 1):
        torch.manual_seed(5)
        limited = model()
        before = torch.get_rng_state()
        restrict(limited, TrainableConfig(lora=2), "single", seed)
        assert torch.equal(torch.get_rng_state(), before)
        made.setdefault(seed, []).append(limited["decoder"]["x"].lora_A.weight)
    assert torch.equal(*made[0])
    assert not torch.equal(made[0][0], made[1][0])


def test_a_lora_file_adds_in_comfyui_what_merging_adds():
    """ComfyUI adds alpha / rank times up @ down."""
    additions = {"decoder.x.lora_A.weight": torch.randn(3, 5), "decoder.x.lora_B.weight": torch.randn(4, 3)}
    weights = {"decoder.x.weight": torch.zeros(4, 5)}
    merge(weights, ["decoder.x"], additions)
    stem = f"{COMFYUI}decoder.x"
    found = comfyui_lora(["decoder.x"], additions)
    assert sorted(found) == [f"{stem}.alpha", f"{stem}.lora_down.weight", f"{stem}.lora_up.weight"]
    up, down = found[f"{stem}.lora_up.weight"], found[f"{stem}.lora_down.weight"]
    added = float(found[f"{stem}.alpha"]) / len(down) * up @ down
    torch.testing.assert_close(added, weights["decoder.x.weight"])
