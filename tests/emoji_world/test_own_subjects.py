"""Own subjects: who is told of, what photographs they get, and what pictures are judged by."""

import json

import numpy as np
import pytest

from emoji_world.own_photographs import opened
from emoji_world.own_subject_rows import (
    GROUPS,
    ROWS,
    Row,
    compared_with,
    finished,
    kept,
    pieces,
    reported,
    subjects_of,
    table,
)
from emoji_world.own_subjects import adapter_data, background_of, photographs_of
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
    fewer = [(name, identity) for _, name, identity in pieces(world, 2)]
    assert sum(name == "tuned" for name, _ in fewer) == 20  # of both groups, all that is told of
    for name in ("adapter", "to choose/adapter"):  # the first two of each noun
        assert [x.noun for own, x in fewer if own == name] == [x for x in GROUPS["stage3"] for _ in range(2)]


def test_photographs_are_the_same_in_every_row_and_become_samples_of_stage_3(world, tmp_path):
    identity = subjects_of(world, "stage3")[0]
    five = list(opened(photographs_of(world, identity, Row(), tmp_path)))
    folder = photographs_of(world, identity, Row(photographs=3, masks=False), tmp_path)
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
    path = kept(tmp_path, "stage3", "tuned", second)
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"seconds": 1, "values": {"similarity": [1.5, 1.5]}}))
    told = []
    table(tmp_path, world, told.append)
    difference = json.loads(told[-1])
    assert (difference["row"], difference["subjects"]) == ("tuned minus before", 1)
    assert difference["similarity"][0] == 0.5  # of the subject that both have


def test_a_row_is_told_beside_what_it_changes():
    assert set().union(*map(compared_with, ROWS)) <= set(ROWS)
    assert compared_with("before, without noun") == []
    assert compared_with("others, adapter with general data") == ["others", "others, adapter"]
    assert compared_with("adapter with general data") == ["before", "tuned", "adapter"]
    assert compared_with("tuned without noun") == ["before, without noun", "tuned"]
