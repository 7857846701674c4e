"""A few steps of each stage in a world of five nouns, by the configurations that the project ships."""

import json

import pytest
import torch
from PIL import Image

from emoji_world.scenes import Identity


def losses(chain, run: str) -> list[float]:
    records = map(json.loads, (chain.folder / run / "log.jsonl").read_text().splitlines())
    return [record["loss"] for record in records if "loss" in record]


@pytest.mark.parametrize("stage", ["lm", "align"])
def test_twenty_steps_lower_the_loss(chain, stage):
    found = losses(chain, stage)
    assert len(found) == 20
    assert sum(found[-5:]) < 0.9 * sum(found[:5])


def test_stage_three_changes_every_part_that_it_trains_and_no_other(chain):
    before, after = chain.model("align").state_dict(), chain.model("instruct").state_dict()
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert {name.split(".")[0] for name in changed} == {"vision", "resampler", "decoder", "aligner"}
    assert not any(name.startswith(("vision.blocks.0.", "vision.patch_embedding")) for name in changed)
    assert all(torch.isfinite(tensor).all() for tensor in after.values())
    assert len(losses(chain, "zero-shot")) == 8  # whose options it takes


@torch.no_grad()
def test_the_exported_model_reads_words_and_pictures(chain):
    model = chain.model("instruct")
    apple, car = (Image.fromarray(chain.world.reference(Identity(noun, "noto"))) for noun in ("apple", "car"))
    prompt = "<i> on a blue background"
    assert model.encode(prompt, [apple]).shape == (1, 77, 768)
    assert torch.equal(model.encode(prompt, [apple]), model.encode(prompt, [apple]))
    assert (model.encode(prompt, [apple]) - model.encode(prompt, [car])).abs().max() > 1e-5  # 8 steps: not more
    assert 3 not in model.tokenizer.layout("a glossy green apple on an orange background").token_ids  # nothing unknown


def test_half_m_of_a_stage_2_run_gives_the_same_conditions(chain):
    from training.export import export

    assert chain.train("align", "whole", "--steps", "1", "--model.aligner.reconstruction", "true") == 0
    export(chain.folder / "whole", chain.folder / "whole.safetensors")
    export(chain.folder / "whole", chain.folder / "half.safetensors", half="M")
    whole, half = chain.model("whole"), chain.model("half")
    assert torch.equal(whole.encode("a red heart"), half.encode("a red heart"))
    left_out = whole.state_dict().keys() - half.state_dict().keys()
    assert left_out
    assert all(name.startswith("aligner.reconstruction_") for name in left_out)


def test_a_stopped_run_that_goes_on_ends_with_the_same_weights(chain):
    from training.engine.checkpoint import latest_checkpoint
    from training.export import export

    assert chain.train("align", "again", "--steps", "4", "--checkpoint.every", "2") == 0
    latest = latest_checkpoint(chain.folder / "again" / "checkpoints")
    middle = latest.parent / "step-00000002"
    assert chain.train("align", "resumed", "--steps", "4", "--resume", str(middle)) == 0
    for run in ("again", "resumed"):
        export(chain.folder / run, chain.folder / f"{run}.safetensors")
    one, other = chain.model("again").state_dict(), chain.model("resumed").state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
