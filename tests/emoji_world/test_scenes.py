"""The pictures of the emoji world and what is held out from what."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from emoji_world.atlas import ASSETS, Atlas
from emoji_world.scenes import (
    ALL_HUES,
    HELD_OUT_NOUNS,
    HUES,
    WORLDS,
    Background,
    EmojiScene,
    EmojiWorld,
    Identity,
    Placed,
    WorldSettings,
    rotate_hue,
)
from emoji_world.training_data import SampleMaker


@pytest.fixture(scope="module")
def world() -> EmojiWorld:
    return EmojiWorld.named("full")


def test_atlas_has_every_noun_in_four_looks_and_stays_below_three_megabytes():
    atlas = Atlas.load()
    assert len(atlas.looks) == 4
    assert len(atlas.nouns) >= 32
    assert set(atlas.sprites) == {(noun, look) for noun in atlas.nouns for look in atlas.looks}
    assert all(sprite[..., 3].max() > 200 for sprite in atlas.sprites.values())
    assert sum(path.stat().st_size for path in ASSETS.glob("at*")) < 3e6


def test_attribution_names_every_look_and_none_that_is_share_alike():
    text = (ASSETS / "ATTRIBUTION.md").read_text()
    assert all(look in text for look in Atlas.load().looks)
    assert "BY-SA" not in text
    assert "openmoji" not in Atlas.load().looks


@pytest.mark.parametrize("name", WORLDS)
def test_two_nouns_are_in_no_world(name):
    assert not set(HELD_OUT_NOUNS) & set(WORLDS[name].known)


def test_at_least_fifteen_per_cent_and_two_nouns_are_held_out_from_stage_three(world):
    held = [identity for identity in world.identities if world.held_out_of_instruct(identity)]
    assert {"donut", "turtle"} <= {x.noun for x in held}
    rest = [x for x in world.identities if x.noun not in world.settings.instruct_held_out]
    assert 0.15 * len(rest) < sum(map(world.held_out_of_instruct, rest)) < 0.3 * len(rest)


def test_stage_three_never_draws_a_held_out_identity(world):
    samples = SampleMaker(world, seed=1)
    drawn = {placed.identity for _ in range(600) for placed in samples.seen_scene().objects}
    assert len(drawn) > 80
    assert not any(world.held_out_of_instruct(identity) for identity in drawn)


def test_no_picture_of_a_zero_shot_world_and_no_replayed_caption_has_a_noun_that_is_held_out():
    world = EmojiWorld.named("zero-shot")
    names = {name: {x.noun for x in group} for name, group in world.groups.items()}
    assert {len(names[name]) for name in ("held-out nouns", "probed nouns")} == {6, 2}
    assert sum(map(len, world.groups.values())) == len(world.identities) == 34 * 8
    assert names["held-out identities"] <= names["seen"] == set(world.settings.nouns)
    samples, unseen = SampleMaker(world, seed=1), set(world.settings.unseen)
    drawn = {placed.identity for _ in range(600) for placed in samples.seen_scene().objects}
    assert drawn <= set(world.groups["seen"])
    words = {word for parts in samples.replay_captions(400) for word in parts["txt"].decode().split()}
    assert not words & unseen
    assert words > set(world.settings.nouns)
    assert unseen < {word for parts in samples.align_captions(400) for word in parts["txt"].decode().split()}


def test_the_same_seed_draws_the_same_pictures_and_captions(world):
    def draw(seed: int) -> tuple[bytes, str]:
        rng = np.random.default_rng(seed)
        scene = world.draw(rng)
        return world.render(scene)[0].tobytes(), world.caption(scene, rng)

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)


def test_masks_are_exactly_where_objects_change_the_background(world):
    rng = np.random.default_rng(0)
    identities = [Identity("apple", "noto"), Identity("car", "twemoji", 120)]
    scene = EmojiScene(world.place(identities, rng), Background("white"))
    pixels, masks = world.render(scene)
    empty, _ = world.render(EmojiScene((), Background("white")))
    changed = (pixels != empty).any(-1)
    assert not (masks[0] & masks[1]).any()
    assert changed[masks[0] | masks[1]].mean() > 0.97  # a white part of an object equals the background
    outside = changed & ~(masks[0] | masks[1])
    assert outside.sum() < 0.3 * (masks[0] | masks[1]).sum()  # edges that are more than half transparent


def test_of_two_objects_in_one_place_the_second_hides_the_first(world):
    half = world.object_size
    first = Placed(Identity("apple", "noto"), 0, 0, half)
    second = Placed(Identity("car", "twemoji"), half // 4, half // 4, half)
    masks = world.render(EmojiScene((first, second), Background("white")))[1]
    alone = [world.render(EmojiScene((placed,), Background("white")))[1][0] for placed in (first, second)]
    assert np.array_equal(masks[1], alone[1])
    assert np.array_equal(masks[0], alone[0] & ~alone[1])
    assert 0 < masks[0].sum() < alone[0].sum()


def test_sprites_are_resized_with_straight_alpha(world):
    """A white sprite on transparent black keeps white edges; premultiplied colours would darken them twice."""
    colour, alpha = world.sprite(Identity("heart", "fluent-flat"), 48)
    edge = (alpha[..., 0] > 0.3) & (alpha[..., 0] < 0.7)
    inside = colour[alpha[..., 0] > 0.99].mean(0)
    assert edge.sum() > 20
    assert np.abs((colour / np.maximum(alpha, 1e-3))[edge].mean(0) - inside).max() < 0.15


def test_turning_hues_keeps_luma_and_three_turns_come_home():
    colours = np.random.default_rng(0).uniform(0.35, 0.6, (50, 3)).astype(np.float32)
    turned = rotate_hue(colours, 120)
    luma = np.array([0.299, 0.587, 0.114], np.float32)
    assert np.allclose(turned @ luma, colours @ luma, atol=1e-4)
    assert np.abs(turned - colours).max() > 0.05
    assert np.allclose(rotate_hue(colours, None).std(1), 0, atol=1e-6)


def test_captions_name_what_is_there(world):
    scene = EmojiScene(
        world.place([Identity("octopus", "noto"), Identity("cat", "noto")], np.random.default_rng(0)),
        Background("orange", shaded=True),
    )
    assert world.caption(scene) == "an octopus and a cat on a shaded orange background"
    assert Background("orange").phrase == "on an orange background"


def test_an_unknown_noun_is_refused_with_those_that_exist():
    with pytest.raises(ValueError, match=r"no sprite of unicorn; it has apple"):
        EmojiWorld(Atlas.load(), WorldSettings(32, ("unicorn",), ()))


def test_crops_of_compositional_samples_show_their_own_words(world):
    for parts in SampleMaker(world, seed=2).compositional(20):
        described = json.loads(parts["json"])
        assert "png" in parts
        for number, entity in enumerate(described["entities"]):
            start, end = entity["span"]
            assert described["caption"][start:end] == entity["text"]
            crop = Image.open(io.BytesIO(parts[f"{number}.png"]))
            mask = Image.open(io.BytesIO(parts[f"{number}.mask.png"]))
            assert crop.size == mask.size
            assert crop.width == crop.height
            assert mask.mode == "1"


def test_stage_one_sees_more_hues_than_the_world_has_and_stage_three_does_not(world):
    samples = SampleMaker(world, seed=4)
    turned = {placed.identity.hue for _ in range(300) for placed in samples.turned_scene().objects}
    seen = {placed.identity.hue for _ in range(300) for placed in samples.seen_scene().objects}
    assert turned == set(ALL_HUES)
    assert seen == set(HUES)


def test_documents_like_prompts_tell_behind_the_colon_what_their_pictures_show(world):
    samples, shown = SampleMaker(world, seed=2), 0
    known = [Identity(x.noun, x.look, hue) for x in world.identities for hue in ALL_HUES]
    for _ in range(40):
        parts = samples.prompt_document()
        *objects, end = json.loads(parts["json"])["segments"]
        where, told = end["text"].split(": ")
        *phrases, last = told.removesuffix(f" {where}").split(" and ")
        for segment, phrase in zip([x for x in objects if x != {"text": "and"}], [*phrases, last], strict=True):
            if "text" in segment:
                assert segment["text"] == phrase
                continue
            shown += 1
            image = Image.open(io.BytesIO(parts[segment["image"]]))
            assert image.size == (world.object_size, world.object_size)
            closest = min(known, key=lambda x: distance(world, x, np.asarray(image)))
            colour = world.colour(closest)
            assert phrase.split(" ", 1)[1] == f"{world.atlas.words[closest.look]} {colour} {closest.noun}"
    assert shown > 20


def distance(world: EmojiWorld, identity: Identity, image: np.ndarray) -> float:
    """Mean squared difference to a picture on the pixels that an identity covers."""
    colour, alpha = world.sprite(identity, world.object_size)
    covered = alpha[..., 0] > 0.99
    return float(((colour * 255 - image)[covered] ** 2).mean())
