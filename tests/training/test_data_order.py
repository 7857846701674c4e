"""The order of samples and the shares of sources."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data.mixture import Mixture
from training.data.order import Order


@given(st.integers(1, 400), st.integers(1, 9), st.integers(1, 9), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_every_epoch_holds_every_sample_once(size, block, window, epoch):
    order = Order("seed", size, block, window)
    assert sorted(order[epoch * size + place] for place in range(size)) == list(range(size))


def test_epochs_and_seeds_have_orders_of_their_own():
    order, other = Order(1, 500, 4, 8), Order(2, 500, 4, 8)
    first, second = ([order[start + place] for place in range(500)] for start in (0, 500))
    assert first != second != sorted(second)
    assert first != [other[place] for place in range(500)]
    assert first == [Order(1, 500, 4, 8)[place] for place in range(500)]


def test_neighbours_on_disk_are_read_close_to_each_other():
    order = Order(0, 64 * 64 * 10, block=64, window=4)
    touched = {order[place] // 64 for place in range(256)}
    assert len(touched) == 4


def test_a_batch_of_1024_is_mixed_2_2_1_by_largest_remainder():
    mixture = Mixture({"constructed": 2, "edits": 2, "captions": 1}, 1024, seed=0)
    total = Counter()
    for step in range(1, 101):
        counts = mixture.counts()
        assert sum(counts.values()) == 1024
        assert all(abs(counts[name] - share) < 2 for name, share in mixture.shares.items())
        total += Counter(counts)
        assert all(abs(total[name] - share * step) < 1 for name, share in mixture.shares.items())
        mixture.advance()
    assert total == {"constructed": 40960, "edits": 40960, "captions": 20480}


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=6), st.integers(1, 40), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_no_source_drifts_from_its_share(weights, rows, seed):
    mixture = Mixture({str(number): weight for number, weight in enumerate(weights)}, rows, seed)
    total = Counter()
    for step in range(1, 60):
        counts = mixture.counts()
        assert sum(counts.values()) == rows
        assert min(counts.values()) >= 0
        total += Counter(counts)
        assert all(abs(total[name] - share * step) < len(weights) for name, share in mixture.shares.items())
        mixture.advance()


def test_a_batch_of_one_still_visits_the_smallest_source():
    mixture = Mixture({"a": 2, "b": 2, "c": 1}, 1, seed=3)
    drawn = []
    for _ in range(10):
        drawn += mixture.rows_of_step()
        mixture.advance()
    assert Counter(drawn) == {"a": 4, "b": 4, "c": 2}


def test_every_part_of_a_batch_has_the_shares_of_the_whole():
    rows = Mixture({"a": 2, "b": 2, "c": 1}, 100, seed=0).rows_of_step()
    for start in range(0, 100, 10):
        assert Counter(rows[start : start + 10]) == {"a": 4, "b": 4, "c": 2}


def test_a_mixture_continues_where_its_state_was_taken():
    mixture, other = (Mixture({"a": 1, "b": 1, "c": 1.5}, 7, seed=1) for _ in range(2))
    for _ in range(5):
        mixture.advance()
    other.load_state_dict(mixture.state_dict())
    for _ in range(5):
        assert mixture.rows_of_step() == other.rows_of_step()
        mixture.advance()
        other.advance()


def test_a_weight_of_zero_is_refused():
    with pytest.raises(ValueError, match="above 0"):
        Mixture({"a": 1, "b": 0}, 4, seed=0)


@pytest.mark.parametrize("block", [1, 64])
def test_every_epoch_has_an_order_of_its_own_between_blocks_and_within(block):
    order = Order(0, size=64, block=block, window=1)
    first, second = ([order[epoch * 64 + place] for place in range(64)] for epoch in range(2))
    assert sorted(first) == sorted(second) == list(range(64))
    assert first != second


def test_which_of_two_equal_sources_is_first_is_drawn():
    assert {
        max(counts, key=counts.get) for counts in (Mixture({"a": 1, "b": 1}, 1, n).counts() for n in range(20))
    } == {"a", "b"}


def test_a_resumed_mixture_goes_on_with_its_step():
    for seed in range(8):
        mixture, resumed = (Mixture({"a": 1, "b": 1, "c": 1}, 4, seed) for _ in range(2))
        mixture.advance_to(3)  # nothing is owed: only the step decides
        resumed.load_state_dict(mixture.state_dict())
        assert resumed.step == 3
        assert resumed.rows_of_step() == mixture.rows_of_step()
