"""What fp8 files keep of weights: numbers of the format exactly, all others on average."""

import itertools

import torch

from training.weights.fp8 import FORMAT, unbiased_fp8

EVERY = torch.arange(256, dtype=torch.uint8).view(FORMAT)
NUMBERS = EVERY[EVERY.float().isfinite()]


def test_what_fp8_can_hold_stays_as_it_is():
    assert torch.equal(unbiased_fp8("a", NUMBERS.float()).float(), NUMBERS.float())


def test_every_number_becomes_one_of_its_neighbours_and_is_kept_on_average():
    ordered = NUMBERS.float().unique()
    for low, high in itertools.pairwise(ordered):
        found = unbiased_fp8("a", torch.full((4000,), (low + 0.2 * (high - low)).item())).float()
        assert set(found.tolist()) <= {low.item(), high.item()}
        assert abs((found == high).double().mean() - 0.2) < 0.03, low


def test_a_movement_below_half_a_step_is_kept_in_the_sum():
    before = torch.randn(512, 512, generator=torch.Generator().manual_seed(0)).mul(0.02).to(FORMAT).float()
    after = before + 2e-4  # a tenth of the step of small numbers
    nearest, kept = after.to(FORMAT).float() - before, unbiased_fp8("a", after).float() - before
    assert nearest.mean() < 0.5e-4
    assert abs(kept.mean() - 2e-4) < 0.1e-4


def test_a_file_is_the_same_each_time_and_no_two_tensors_share_draws():
    tensor = torch.full((64, 64), 0.0301)
    assert torch.equal(unbiased_fp8("a", tensor).float(), unbiased_fp8("a", tensor).float())
    assert not torch.equal(unbiased_fp8("a", tensor).float(), unbiased_fp8("b", tensor).float())


def test_numbers_beyond_the_format_become_its_largest():
    assert unbiased_fp8("a", torch.tensor([1e4, -1e4])).float().tolist() == [448.0, -448.0]
