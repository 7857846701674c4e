"""Own subjects: who is told of, what photographs they get, and what pictures are judged by."""

import json

import numpy as np
import pytest

from emoji_world.own_subject_rows import GROUPS, ROWS, Row, finished, kept, pieces, reported, subjects_of
from emoji_world.own_subjects import adapter_data, background_of, opened, write_photographs
from emoji_world.scenes import BACKGROUNDS, Background, EmojiScene, EmojiWorld


@pytest.fixture(scope="module")
def world() -> EmojiWorld:
    return EmojiWorld.named("full")


def test_settings_are_chosen_by_other_subjects_than_are_told_of(world):
    for group in GROUPS:
        told, others = (set(subjects_of(world, group, reported=told)) for told in (True, False))
        assert (len(told), len(others), told & others) == (10, 6, set())
    by_kind = {
        told: {identity for _, name, identity in pieces(world) if reported(name) is told} for told in (True, False)
    }
    assert by_kind[True].isdisjoint(by_kind[False])
    assert {name for _, name, _ in pieces(world)} == set(ROWS)


def test_photographs_are_the_same_in_every_row_and_become_samples_of_stage_3(world, tmp_path):
    identity = subjects_of(world, "stage3")[0]
    five = list(opened(write_photographs(world, identity, Row(), tmp_path)))
    folder = write_photographs(world, identity, Row(photographs=3, masks=False), tmp_path)
    three = list(opened(folder))
    assert (len(five), len(three)) == (5, 3)
    assert all(np.array_equal(one[0], other[0]) and one[2] == other[2] for one, other in zip(five, three, strict=False))
    assert all(mask.all() for _, mask, _ in three)
    assert not any(mask.all() for _, mask, _ in five)
    for parts in adapter_data(folder, identity.noun):
        described = json.loads(parts["json"])
        (entity,) = described["entities"]
        begin, end = entity["span"]
        assert described["caption"][begin:end] == entity["text"] == f"a {identity.noun}"


def test_a_background_is_named_by_the_border_whatever_stands_on_it(world):
    identity = subjects_of(world, "unknown")[0]
    for colour in BACKGROUNDS:
        scene = EmojiScene(world.place([identity], np.random.default_rng(1)), Background(colour))
        assert background_of(world.render(scene)[0]) == colour


def test_a_row_is_told_as_far_as_it_is_finished(world, tmp_path):
    first, second, *_ = subjects_of(world, "stage3")
    for number, identity in enumerate((first, second)):
        path = kept(tmp_path, "stage3", "before", identity)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"seconds": 1, "values": {"similarity": [number, number]}}))
    ((place, row),) = finished(tmp_path, world).items()
    assert place == ("stage3", "before")
    assert row.subjects == [first, first, second, second]
    assert row.summary()["similarity"][0] == 0.5
