"""Every configuration that ships can be read, and the official ones hold the paper's numbers."""

from pathlib import Path

import pytest
import yaml

from training.engine.run_config import parse

CONFIGS = Path(__file__).parents[2] / "training" / "configs"
STAGES = ("lm", "align", "instruct")


def _read(*files: str):
    return parse([word for file in files for word in ("--config", str(CONFIGS / file))])


@pytest.mark.parametrize("kind", ["official", "single-gpu", "smoke"])
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_its_configurations(stage, kind):
    config = _read(f"{stage}/{kind}.yaml")
    assert config.stage == stage
    assert config.data.sources
    assert (config.model.aligner is None) == (stage == "lm")


@pytest.mark.parametrize("stage", STAGES)
def test_the_plain_name_is_the_official_configuration(stage):
    assert (CONFIGS / f"{stage}.yaml").read_text() == (CONFIGS / stage / "official.yaml").read_text()


def test_official_numbers_are_the_papers():
    lm, align, instruct = (_read(f"{stage}.yaml") for stage in STAGES)
    assert [c.steps for c in (lm, align, instruct)] == [300_000, 300_000, 200_000]
    assert [c.batch.size for c in (align, instruct)] == [3584, 1024]
    assert lm.batch.size * lm.data.sequence_length == pytest.approx(1.2e6, rel=0.02)
    assert [c.optim.lr for c in (lm, align, instruct)] == [2e-4, 1e-3, 1e-3]
    for config in (lm, align, instruct):
        optim = config.optim
        assert (optim.betas, optim.weight_decay, optim.clip_norm) == ((0.9, 0.98), 0.01, 2.0)
        assert (optim.warmup_steps, optim.schedule, optim.final_lr) == (375, "linear", 0.0)
        assert config.model.decoder.dropout == 0.1
        assert (config.model.decoder.width, config.model.decoder.layers) == (2048, 24)

    def shares(config):
        return [source.weight for source in config.data.sources.values()]

    assert shares(lm) == [5, 5, 2]
    assert shares(instruct) == [2, 2, 1]
    assert align.data.max_clip_tokens == 75
    assert (instruct.data.drop_entity, instruct.data.keep_background) == (0.5, 0.5)
    assert instruct.task.null_probability == 0.1
    assert instruct.task.vision_last_block == "trained"


@pytest.mark.parametrize("layers", [12, 24])
@pytest.mark.parametrize("stage", ["align", "instruct"])
def test_ablations_of_the_aligners_depth_change_nothing_else(stage, layers):
    plain, ablated = _read(f"{stage}.yaml"), _read(f"{stage}.yaml", f"ablations/aligner-{layers}-layers.yaml")
    assert (ablated.model.aligner.encoder_layers, ablated.model.aligner.decoder_layers) == (layers, layers)
    before, after = yaml.safe_load(plain.to_yaml()), yaml.safe_load(ablated.to_yaml())
    for values in (before, after):
        del values["model"]["aligner"]["encoder_layers"], values["model"]["aligner"]["decoder_layers"]
    assert before == after


def test_end_to_end_ablation_begins_from_the_first_stage():
    ablated = _read("instruct.yaml", "ablations/end-to-end.yaml")
    assert ablated.weights == "kosmos-g-lm.safetensors"
    assert ablated.stage == "instruct"
