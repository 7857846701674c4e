"""The attention recorder and what it holds, called with values: where, when and of which sampling it records."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.comfyui.in_process import Pack


class CrossAttention(nn.Module):
    """What the recorder reads of a U-Net's."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k, self.heads = nn.Linear(8, 8), nn.Linear(16, 8), 2


@pytest.mark.parametrize(("first", "last"), [(0, 2), (1, 3), (3, 10)])
def test_of_a_sampling_the_steps_from_the_first_to_before_the_end_are_recorded(pack: Pack, first: int, last: int):
    attention = pack("nodes.attention")
    sampling = attention.SamplingModel(("input",))
    sampling.modules = {("input", 1, 0): CrossAttention()}
    look = attention.recorder(sampling, first, last)
    sigmas, recorded = torch.tensor([8.0, 4.0, 2.0, 1.0, 0.0]), []
    for step, sigma in enumerate(sigmas[:-1]):
        sampling.trace = pack("kosmos_core.attention_maps").Trace()
        options = {"block": ("input", 1), "cond_or_uncond": [0], "activations_shape": (1, 8, 2, 2)}
        options |= {"sigmas": sigma[None], "sample_sigmas": sigmas}
        with torch.no_grad():
            look(torch.ones(1, 4, 8), torch.ones(1, 77, 16), torch.ones(1, 77, 16), options)
        recorded += [step] * bool(sampling.trace.sums)
    assert recorded == [step for step in range(4) if first <= step < last]


def test_a_condition_acts_in_its_area_inside_its_mask_of_the_image_and_nowhere_at_strength_0(pack: Pack):
    place_of, masks = pack("nodes.attention").place_of, torch.zeros(2, 4, 6)
    masks[0, :, 0] = masks[1, :, 5] = 1
    for image in range(3):  # the masks take turns
        assert torch.equal(place_of({"mask": masks}, (4, 6), image).opacity, masks[image % 2])
    place = place_of({"area": (2, 3, 1, 2), "strength": 0.5}, (4, 6), 0)
    assert place.box == (1, 2, 2, 3)
    assert place.opacity.nonzero().tolist() == [[y, x] for y in (1, 2) for x in (2, 3, 4)]
    assert place_of({"strength": 0.5}, (4, 6), 0) is None
    assert place_of({"area": (3, 4, 2, 5)}, (4, 6), 0).box == (2, 5, 2, 1)  # what sticks out is not there
    assert place_of({"area": (9, 9, 0, 0)}, (4, 6), 0) is None
    for nowhere in ({"strength": 0.0}, {"mask": masks, "mask_strength": 0.0}):
        assert not place_of(nowhere, (4, 6), 0).opacity.any()


@pytest.mark.parametrize(("first", "end"), [(3, 3), (3, 2)])
def test_a_recorder_of_no_step_is_refused_with_both_numbers(pack: Pack, first: int, end: int):
    with pytest.raises(ValueError, match=f"end_step is {end}, but has to be above first_step, which is {first}"):
        pack("nodes.attention").KosmosGAttentionRecorder.execute(None, first, end, "up")


@pytest.mark.parametrize(
    ("size", "shown"), [((300, 512), (300, 512)), ((300, 1024), (150, 512)), ((1025, 1), (512, 1)), ((1, 1), (1, 1))]
)
def test_an_overlays_image_is_made_smaller_and_never_larger(pack: Pack, size: tuple, shown: tuple):
    image = torch.randint(0, 256, (*size, 3), dtype=torch.uint8)
    found = pack("nodes.attention").shrunk(image)
    assert tuple(found.shape) == (*shown, 3)
    assert size != shown or torch.equal(found, image)


@pytest.fixture
def running(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a sampler of a seed as the prompt `run`; its recording and how to begin a sampling in it."""
    recording = pack("nodes.recording")
    held = recording.Recording()

    def begin(seed: int, run: str = "first", swapped: bool = False) -> Any:
        inputs = {"seed": seed, "model": ["1", 0], "cfg": 4.0}
        inputs = dict(reversed(inputs.items())) if swapped else inputs
        nodes = {"1": {"class_type": "Loader", "inputs": {}}, "2": {"class_type": "KSampler", "inputs": inputs}}
        now = pack("nodes.connections").RunningNode("2", nodes, run, None)
        monkeypatch.setattr(recording, "running_node", lambda: now)
        held.begin()
        return next(reversed(held.samplings.values()))

    return held, begin


def test_a_samplings_passes_are_those_of_one_run(running: Any):
    _, begin = running
    assert [begin(1).passes, begin(1).passes, begin(2).passes, begin(1).passes] == [1, 2, 1, 3]
    assert begin(1, run="second").passes == 1


def test_eight_samplings_are_held_the_latest_of_each_and_the_oldest_goes(running: Any):
    held, begin = running
    for seed in range(8):
        begin(seed)
    begin(0)
    assert len(held.samplings) == 8
    assert not held.forgotten
    begin(8)
    assert len(held.samplings) == 8
    assert held.forgotten
    assert begin(0).passes == 3, "it was the latest but one"
    assert begin(1).passes == 1, "the oldest"


def test_all_samplings_together_hold_at_most_512_mb_when_one_begins(running: Any):
    held, begin = running
    for seed in range(4):
        begin(seed).trace.bytes_recorded = 170 * 2**20
    assert (len(held.samplings), held.forgotten) == (4, False)  # three held 510 MB when the fourth began
    begin(4).trace.bytes_recorded = 600 * 2**20
    assert (len(held.samplings), held.forgotten) == (4, True)
    begin(5)
    assert [sampling.trace.bytes_recorded for sampling in held.samplings.values()] == [0]


def test_a_sampling_is_known_by_what_its_inputs_are_and_not_by_their_order(running: Any):
    held, begin = running
    begin(1)
    assert begin(1, swapped=True).passes == 2
    assert len(held.samplings) == 1
    assert begin(2).passes == 1
    assert len(held.samplings) == 2


@pytest.mark.parametrize("far", [0, 1])
def test_a_map_says_how_far_the_farthest_condition_of_a_batch_is_from_the_prompt(pack: Pack, clip: Any, far: int):
    attention, recording = pack("nodes.attention"), pack("nodes.recording").Recording()
    written = pack("nodes.image_inputs").WrittenPrompt("a boat at night")
    _, _, condition, _ = pack("nodes.analysis").prompt_attention(clip, written, written.gather())
    trace = recording.begin()
    for image in range(2):
        own = 1.5 * condition if image == far else condition
        trace.add(torch.randn(1, 4, 8), torch.randn(1, len(own), 8), 2, own[None], (2, 2), image)
    *_, report = attention.KosmosGAttentionMap.execute(recording, torch.zeros(2, 16, 16, 3), clip, written.text).args
    assert "nearest conditioning differs from this prompt by 50%" in report


def test_the_heat_of_a_map_has_its_range_from_where_the_prompt_acts(pack: Pack):
    overlay, image, amounts = pack("nodes.charts").overlay, torch.zeros(16, 256, 3).byte(), torch.rand(16, 256)
    opacity, outside = torch.zeros(16, 256), amounts.clone()
    opacity[:, :128], outside[:, 128:] = 1, 50
    assert torch.equal(overlay(image, outside, "a 1%", opacity), overlay(image, amounts, "a 1%", opacity))
    assert not torch.equal(overlay(image, outside, "a 1%"), overlay(image, amounts, "a 1%"))
