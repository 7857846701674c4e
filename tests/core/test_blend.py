"""Blending: exact at its ends, and what each mode promises in between."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kosmos_core.blend import MODES, blend, likeness

MIXING = [mode for mode in MODES if mode != "hand-off at percent"]


def condition(seed: int, slots: int = 77, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, slots, 16, generator=torch.Generator().manual_seed(seed))


@given(st.sampled_from(MODES), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2**31))
def test_0_and_1_are_the_inputs_themselves(mode, length, other_length, seed):
    first, second = condition(seed, 77 * length), condition(seed + 1, 77 * other_length)
    assert blend(first, second, 0.0, mode) is first
    assert blend(first, second, 1.0, mode) is second


@pytest.mark.parametrize("mode", MIXING)
def test_inputs_are_left_as_they_were(mode):
    first, second = condition(1), condition(2)
    before = first.clone(), second.clone()
    blend(first, second, 0.4, mode)
    assert torch.equal(first, before[0])
    assert torch.equal(second, before[1])


@pytest.mark.parametrize("mode", MIXING)
def test_conditions_in_half_precision_are_mixed_as_what_they_are_in_float32(mode):
    first, second = condition(1).half(), condition(2).half()
    mixed = blend(first, second, 0.4, mode)
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, blend(first.float(), second.float(), 0.4, mode))


@pytest.mark.parametrize("amount", [float("nan"), float("inf")])
def test_a_likeness_that_is_no_number_is_refused(amount):
    with pytest.raises(ValueError, match=r"likeness is (nan|inf); expected a number"):
        likeness(condition(1), condition(2), amount)


def test_lerp_is_the_straight_line_and_keep_slot_0_keeps_it():
    first, second = condition(1), condition(2)
    line = blend(first, second, 0.25, "lerp")
    assert torch.allclose(line, 0.75 * first + 0.25 * second, atol=1e-6)
    kept = blend(first, second, 0.25, "keep slot 0")
    assert torch.equal(kept[:, 0], first[:, 0])
    assert torch.equal(kept[:, 1:], line[:, 1:])


def test_slerp_keeps_the_norm_on_a_line_and_the_angle_in_proportion():
    first, second = condition(1), 3 * condition(2)
    mixed = blend(first, second, 0.3, "slerp per slot")
    norms = [x.norm(dim=-1) for x in (first, second, mixed)]
    assert torch.allclose(norms[2], torch.lerp(norms[0], norms[1], 0.3), rtol=1e-4)

    def angle(one, other):
        return torch.acos(torch.nn.functional.cosine_similarity(one.double(), other.double(), dim=-1))

    assert torch.allclose(angle(first, mixed), 0.3 * angle(first, second), atol=1e-4)


def test_slerp_of_equal_and_of_opposite_slots_is_finite():
    first = condition(1)
    assert torch.allclose(blend(first, first.clone(), 0.5, "slerp per slot"), first, atol=1e-5)
    assert torch.isfinite(blend(first, -first, 0.5, "slerp per slot")).all()


def test_concat_holds_all_of_both_in_the_middle_and_dwindles_to_either_side():
    first, second = condition(1), condition(2)
    assert torch.equal(blend(first, second, 0.5, "concat"), torch.cat([first, second], dim=1))
    assert blend(first, second, 0.25, "concat").shape[1] == 77 + 38
    assert blend(first, second, 0.75, "concat").shape[1] == 38 + 77


def test_different_lengths_are_repeated_which_changes_nothing_for_attention():
    first, second = condition(1), condition(2, 154)
    assert torch.allclose(blend(first, second, 0.5, "lerp"), (first.repeat(1, 2, 1) + second) / 2, atol=1e-6)
    assert blend(condition(1, 4 * 77), condition(2, 5 * 77), 0.5, "lerp").shape[1] == 4 * 5 * 77  # four times, no more


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="16 and 8 wide"):
        blend(condition(1), condition(2)[..., :8], 0.5, "lerp")
    with pytest.raises(ValueError, match="batches of 2 and 3"):
        blend(condition(1, batch=2), condition(2, batch=3), 0.5, "lerp")
    with pytest.raises(ValueError, match="no common multiple"):
        blend(condition(1), condition(2, 80), 0.5, "lerp")
    with pytest.raises(ValueError, match="amount is 2"):
        blend(condition(1), condition(2), 2, "lerp")


def test_likeness_1_is_the_full_encoding_and_2_as_far_again():
    text, full = condition(1), condition(2)
    assert likeness(text, full, 1.0) is full
    assert likeness(text, full, 0.0) is text
    assert torch.allclose(likeness(text, full, 2.0), 2 * full - text, atol=1e-5)
