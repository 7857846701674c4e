"""The open world: what relations look like, what is held out, and that no reference can be copied."""

import itertools
import json
import sys
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from emoji_world import atlas, open_atlas
from emoji_world.atlas import Atlas
from emoji_world.autoencoder import crowd, full_autoencoder, object_error, slim_autoencoder
from emoji_world.open_atlas import HELD_OUT_LOOK, concrete_nouns, other_pose
from emoji_world.open_scenes import PLACES, RELATIONS, OpenWorld, Place, settings_of
from emoji_world.scenes import EmojiScene, Identity
from emoji_world.training_data import SampleMaker

NOUNS = [f"thing {chr(97 + n // 26)}{chr(97 + n % 26)}" for n in range(100)]


def wedge(shade: int) -> np.ndarray:
    """A sprite that is not its own mirror image: full height, the right half twice as opaque."""
    sprite = np.zeros((64, 64, 4), np.uint8)
    sprite[..., :3] = (shade, 90, 255 - shade)
    sprite[:, 8:] = (shade, 200, 40, 255)
    return sprite


@pytest.fixture(scope="module")
def world() -> OpenWorld:
    looks = ("noto", "twemoji", HELD_OUT_LOOK)
    sprites = {(noun, look): wedge(n * 2) for n, noun in enumerate(NOUNS) for look in looks[: 2 + n % 2]}
    poses = {(NOUNS[0], "noto"): wedge(250)}
    atlas = Atlas(sprites, {"noto": "painted", "twemoji": "sticker", HELD_OUT_LOOK: "vintage"}, poses)
    return OpenWorld(atlas, settings_of(NOUNS, 80)[0])


def test_nouns_are_split_once_and_for_all():
    settings, held_out = settings_of(NOUNS, 100)
    groups = (settings.nouns, settings.instruct_held_out, settings.probed, held_out)
    assert [len(group) for group in groups] == [78, 12, 4, 6]
    assert sorted(noun for group in groups for noun in group) == sorted(NOUNS)
    assert settings_of(NOUNS[::-1], 100) == (settings, held_out)
    assert held_out == tuple(
        f"thing {two}" for two in ("be", "bs", "bv", "bx", "cf", "cw")
    )  # by a hash that is the same on every machine, and not by the alphabet
    fewer = settings_of(NOUNS, 50)[0].known
    assert set(fewer) < set(NOUNS)


def test_the_held_out_look_is_never_drawn(world):
    rng = np.random.default_rng(0)
    drawn = {placed.identity.look for _ in range(200) for placed in world.draw(rng).objects}
    assert drawn == {"noto", "twemoji"} == {identity.look for identity in world.identities}


def test_relations_are_where_their_words_say(world):
    rng, identities = np.random.default_rng(1), [Identity(noun, "noto") for noun in world.nouns[:3]]
    seen = set()
    for number in range(300):
        scene = world.arranged(identities[: 2 + number % 2], rng)
        seen.add((scene.relation, len(scene.objects)))
        boxes = [(x.left, x.top, x.left + x.size, x.top + x.size) for x in scene.objects]
        assert all(0 <= value <= world.size for box in boxes for value in box)
        first, second = boxes[:2]
        masks = world.render(scene)[1]
        assert not np.logical_and.reduce([masks[0], masks[1]]).any()
        if scene.relation == "on":
            assert first[3] - 2 == second[1]  # its feet two pixels inside what it stands on
            assert abs((first[0] + first[2]) - (second[0] + second[2])) <= 10
        elif scene.relation == "behind":
            hidden = EmojiScene(scene.objects[:1], scene.background)
            whole = world.render(hidden)[1][0].sum()
            assert 0.4 * whole < masks[0].sum() < whole
        else:
            assert all(left[2] <= right[0] for left, right in itertools.pairwise(boxes))
    assert seen == {(relation, 2) for relation in RELATIONS} | {("and", 3)}


def test_what_lies_on_top_stays_inside_where_it_would_stand_out_on_the_left(world):
    drawn = iter((27, 28, 2, 1, -3))  # sides of both, the lower one's place, and how far the upper one is moved aside
    (left, _, side), (_, _, lower) = world.stacked(SimpleNamespace(integers=lambda *_: next(drawn)))
    assert (left, side, lower) == (0, 27, 28)


@pytest.mark.parametrize("name", PLACES)
def test_a_place_has_its_sky_above_its_ground(world, name):
    canvas, (sky, ground) = world.canvas(Place(name)), PLACES[name]
    rows = [tuple(np.rint(row[0] * 255).astype(int)) for row in canvas]
    assert rows == [sky] * 39 + [ground] * 25
    assert (canvas == canvas[:, :1]).all()


def test_captions_say_relation_and_place(world):
    rng = np.random.default_rng(2)
    placed = world.place([Identity(NOUNS[0], "noto"), Identity(NOUNS[1], "noto")], rng, "behind")
    scene = EmojiScene(placed, Place("by the sea"), "behind")
    assert world.caption(scene) == f"a {NOUNS[0]} behind a {NOUNS[1]} by the sea"


def test_what_a_sample_shows_beside_its_scene_is_another_pose(world):
    rng = np.random.default_rng(3)
    for _ in range(20):
        scene = world.draw(rng)
        pixels, masks = world.render(scene)
        for placed, mask, (crop, other) in zip(scene.objects, masks, world.crops(scene), strict=True):
            assert crop.shape == (placed.size, placed.size, 3)
            assert not np.array_equal(crop, pixels[placed.box])
            assert other.shape == mask[placed.box].shape
    maker = SampleMaker(world, 0)
    parts = next(sample for sample in maker.compositional(50) if len(json.loads(sample["json"])["entities"]) == 3)
    described = json.loads(parts["json"])
    texts = [described["caption"][slice(*entity["span"])] for entity in described["entities"]]
    assert texts == [entity["text"] for entity in described["entities"]]


def test_a_pose_of_the_atlas_is_taken_before_the_mirror_image(world):
    drawn = [world.sprite(Identity(noun, "noto"), 64, 1)[0] for noun in NOUNS[:2]]
    still = world.sprite(Identity(NOUNS[1], "noto"), 64)[0]
    assert np.array_equal(drawn[1], still[:, ::-1])
    assert drawn[0][0, 0, 0] == pytest.approx(0, abs=1e-6)  # transparent there, as drawn and not mirrored
    assert drawn[0][0, -1, 0] == pytest.approx(250 / 255, abs=1e-3)


def test_the_autoencoder_learns_from_objects_of_every_size_wherever_they_stand(world):
    rng = np.random.default_rng(0)
    drawn = [world.spots(rng) for _ in range(300)]
    assert {len(spots) for spots in drawn} == {1, 4, 9, 16}
    assert {side for spots in drawn for _, _, side in spots} == set(range(16, 44))
    assert {(left % 8, top % 8) for spots in drawn for left, top, _ in spots} == set(
        itertools.product(range(8), repeat=2)
    )
    assert all(min(left, top) >= 0 and max(left, top) + side <= 64 for spots in drawn for left, top, side in spots)
    assert len(crowd(world, rng).objects) in {1, 4, 9, 16}


def test_the_gate_of_the_autoencoder_looks_at_scenes_as_the_other_steps_draw_them(world):
    rng = np.random.default_rng(7)
    scenes = [world.render(world.draw(rng))[0] for _ in range(64)]
    shown = object_error(full_autoencoder(slim_autoencoder()), world)[2][:8]  # a row, above what becomes of it
    assert np.array_equal(((shown + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy(), scenes[:8])


def test_backgrounds_are_of_every_kind(world):
    rng = np.random.default_rng(4)
    phrases = {world.draw_background(rng).phrase.split()[0] for _ in range(300)}
    assert phrases == {"on", "in", "by", "at"}
    shown = {world.canvas(background).tobytes() for background in (world.draw_background(rng) for _ in range(40))}
    assert len(shown) > 20


def test_nouns_of_the_atlas_are_things_in_one_or_two_words(tmp_path):
    (tmp_path / "en").mkdir()
    messages = {
        "groups": [{"order": 3, "message": "animals & nature"}, {"order": 9, "message": "flags"}],
        "subgroups": [{"order": 1, "message": "mammals"}, {"order": 2, "message": "time"}],
    }
    (tmp_path / "en/messages.json").write_text(json.dumps(messages))
    rows = [("Dog", 3, 1), ("T-Rex", 3, 1), ("lady beetle", 3, 1), ("one two three", 3, 1), ("alarm clock", 3, 2)]
    rows += [("Chad", 9, 1), ("sunrise", 3, 1), ("woman’s hat", 3, 1), ("regional indicator", None, None)]
    data = [{"label": label, "group": group, "subgroup": subgroup, "hexcode": "1"} for label, group, subgroup in rows]
    (tmp_path / "en/data.json").write_text(json.dumps(data))
    assert list(concrete_nouns(tmp_path)) == ["dog", "lady beetle", "t-rex"]


@pytest.mark.parametrize(("turned", "found"), [(0, False), (25, True)])
def test_another_pose_is_a_frame_that_differs_and_shows_as_much(tmp_path, turned, found):
    still = Image.fromarray(np.pad(wedge(120)[20:44], ((20, 20), (0, 0), (0, 0))))
    empty, speck = Image.new("RGBA", (64, 64)), still.resize((64, 64)).crop((0, 0, 64, 64))
    speck.putalpha(speck.getchannel("A").point(lambda a: a // 9))
    frames = [still, empty, speck] + [still.rotate(turned * n / 9) for n in range(10)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True, duration=40)
    pose = other_pose(tmp_path / "a.webp", still)
    assert (pose is not None) == found
    if pose:
        assert np.asarray(pose)[..., 3].mean() == pytest.approx(np.asarray(still)[..., 3].mean(), rel=0.35)


def test_a_frame_of_the_same_shape_in_another_light_is_no_pose(tmp_path):
    still = Image.new("RGBA", (64, 64), "red")
    flashes = [Image.new("RGBA", (64, 64), (level, 255, 255)) for level in range(200, 206)]
    still.save(tmp_path / "a.webp", save_all=True, append_images=flashes, lossless=True, duration=40)
    assert other_pose(tmp_path / "a.webp", still) is None


@pytest.mark.parametrize(("module", "words"), [(open_atlas, ["--output"]), (atlas, ["--openmoji"])])
def test_what_sprites_need_is_asked_for_before_a_gigabyte_is_fetched(module, words, tmp_path, monkeypatch):
    folder = tmp_path / "sprites"
    monkeypatch.setattr("sys.argv", ["atlas", *words, str(folder)])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match=r"no npm on this machine: install Node\.js"):
        module.main()
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(SystemExit, match=r"needs resvg-py: pip install -e"):
        module.main()
    assert not folder.exists()


def test_what_the_box_holds_of_the_open_world():
    table = json.loads((open_atlas.ASSETS / "atlas.json").read_text())
    looks = Counter((entry["noun"], entry["look"]) for entry in table["sprites"] if "pose" not in entry)
    per_noun = Counter(noun for noun, _ in looks)
    assert len(per_noun) >= 600
    assert min(per_noun.values()) >= 4
    assert set(looks.values()) == {1}
    assert all(len(noun.split()) <= 2 for noun in per_noun)
    assert not any("SA" in look["license"] for look in table["looks"].values())
    assert sum(path.stat().st_size for path in open_atlas.ASSETS.iterdir()) < 15e6
    credits = (open_atlas.ASSETS / "ATTRIBUTION.md").read_text()
    assert all(look["credit"] in credits and look["license"] in credits for look in table["looks"].values())


def test_the_open_world_holds_out_nouns_from_everything_and_from_stage_3():
    world = OpenWorld.named("open")
    settings, held_out = settings_of(world.atlas.nouns, 1000)
    assert len(settings.nouns) >= 400
    assert len(settings.instruct_held_out) >= 60
    assert len(held_out) >= 30
    assert not set(world.nouns) & set(held_out)
    assert HELD_OUT_LOOK in world.atlas.looks
    assert HELD_OUT_LOOK not in {x.look for x in world.identities}
    assert all(pose.shape == (64, 64, 4) for pose in world.atlas.poses.values())
    assert len(world.atlas.poses) >= 100
    assert 120 <= len(OpenWorld.named("middle").nouns) <= 200
