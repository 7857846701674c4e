"""Reading a language model's list, and finding its items in the caption."""

from itertools import pairwise

import pytest

from training.construct.caption_spans import parse_list, place


@pytest.mark.parametrize(
    ("answer", "items"),
    [
        ("dog, hat", ["dog", "hat"]),
        (" dog, hat and beach.", ["dog", "hat", "beach"]),
        ("dog, hat, and beach", ["dog", "hat", "beach"]),
        ('["dog", "red hat"]', ["dog", "red hat"]),
        ("[dog, red hat]", ["dog", "red hat"]),
        ("1. dog\n2. hat", ["dog", "hat"]),
        ("- dog\n- hat\n", ["dog", "hat"]),
        ("Sure! Here are the nouns: dog, hat", ["dog", "hat"]),
        ("The entities are:\ndog, hat", ["dog", "hat"]),
        ("'dog'; 'hat'", ["dog", "hat"]),
        ("dog\n\nThis caption describes an animal that wears something on its head.", ["dog"]),
        ("dog, hat\n### Instruction:\nNow write a poem", ["dog", "hat"]),
        ("sand", ["sand"]),
        ("dog and hat and beach", ["dog", "hat", "beach"]),
    ],
)
def test_lists_are_read_in_every_common_way_of_writing_them(answer, items):
    assert parse_list(answer) == items


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "   \n ",
        "###",
        "The caption shows a dog that is wearing a hat on the beach.",
        "I am sorry, but as a language model I cannot see the picture.",
        "[]",
        "[1, 2]",
    ],
)
def test_prose_and_empty_answers_are_no_list(answer):
    assert parse_list(answer) is None


def words(caption: str, *tags: str) -> list[str]:
    return [span.of(caption) for span in place(caption, tags)[0]]


@pytest.mark.parametrize(
    ("caption", "tags", "found"),
    [
        ("a dog and a cat", ["cat", "dog"], ["dog", "cat"]),
        ("two Dogs on grass", ["dog"], ["Dogs"]),
        ("a dog on grass", ["dogs"], ["dog"]),
        ("two foxes", ["fox"], ["foxes"]),
        ("many puppies", ["puppy"], ["puppies"]),
        ("two knives", ["knife"], ["knives"]),
        ("three cacti and a quiz", ["cactus", "quizzes"], ["cacti", "quiz"]),
        ("thieves with mangos", ["thief", "mango"], ["thieves", "mangos"]),
        ("some children and a fireman", ["child", "firemen"], ["children", "fireman"]),
        ("two men and a woman", ["man", "women"], ["men", "woman"]),
        ("a bus stop", ["bus"], ["bus"]),
        ("a carpet on the floor", ["car"], []),
        ("a hot-dog stand", ["dog"], []),
        ("a hot dog", ["dog", "hot dog"], ["hot dog"]),
        ("a hot dog beside a dog", ["dog", "hot dog"], ["hot dog", "dog"]),
        ("a red car with a Red Bull sticker", ["red", "red car", "Red"], ["red car"]),
        ("a dog and another dog", ["dog", "Dog", "dogs"], ["dog"]),
        ("a dog, a hat.", ["the dog", "hat."], ["dog", "hat"]),
        ("a fire  hydrant", ["fire hydrant"], ["fire  hydrant"]),
        ("what (a) + sign?", ["(b)", "c++", "["], []),
    ],
)
def test_tags_are_found_as_whole_words_in_the_captions_order(caption, tags, found):
    assert words(caption, *tags) == found


def test_spans_never_overlap_and_give_back_the_words():
    caption = "a brown teddy bear beside a bear and a teddy"
    spans, missing = place(caption, ["bear", "teddy bear", "brown teddy bear", "teddy", "elephant", "brown"])
    assert [span.of(caption) for span in spans] == ["brown teddy bear", "bear", "teddy"]
    assert all(a.end <= b.start for a, b in pairwise(spans))
    assert missing == 1
