"""Reading a language model's list, and finding its items in the caption."""

from itertools import pairwise

import pytest

from training.construct.caption_spans import place
from training.construct.caption_words import word_count
from training.construct.listed_nouns import parse_list


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
        ("dog\nhat\nbeach", ["dog", "hat", "beach"]),
        ("– dog\n– hat", ["dog", "hat"]),
        ("— dog\n— red hat", ["dog", "red hat"]),
        ("• dog\n• hat", ["dog", "hat"]),
        ("* dog\n* hat", ["dog", "hat"]),
        ("+ dog\n+ hat", ["dog", "hat"]),
        ("1) dog\n2) hat", ["dog", "hat"]),
        ("(1) dog\n(2) hat", ["dog", "hat"]),
        ("1. dog 2. hat 3. beach", ["dog", "hat", "beach"]),
        ("1. dog, 2. hat", ["dog", "hat"]),
        ("1: dog\n2: hat", ["dog", "hat"]),
        ('"dog", "hat"', ["dog", "hat"]),
        ("“dog”, “hat”", ["dog", "hat"]),
        ("«dog», «hat»", ["dog", "hat"]),
        ("'dog'\n'hat'", ["dog", "hat"]),
        ("dog (animal), hat (clothing)", ["dog", "hat"]),
        ("dog (animal)", ["dog"]),
        ("dog (animal)\nhat (a thing, worn)", ["dog", "hat"]),
        ("dog [animal], hat", ["dog", "hat"]),
        ('["dog", "hat"]', ["dog", "hat"]),
        ('```json\n["dog", "hat"]\n```', ["dog", "hat"]),
        ('{"entities": ["dog", "hat"]}', ["dog", "hat"]),
        ('```json\n{"nouns": ["dog", "hat"], "background": ["beach"]}\n```', ["dog", "hat"]),
        ('[{"name": "dog", "type": "animal"}, {"name": "hat"}]', ["dog", "hat"]),
        ("['dog', 'hat']", ["dog", "hat"]),
        ('{"dog": "animal", "hat": "clothing"}', ["dog", "hat"]),
        ('{"nouns": "dog, hat"}', ["dog", "hat"]),
        ('{"1": "dog", "2": "hat"}', ["dog", "hat"]),
        ("**dog**, **hat**", ["dog", "hat"]),
        ("- **dog**: a brown animal\n- **hat**: it is red", ["dog", "hat"]),
        ("- **dog**\n- **hat**", ["dog", "hat"]),
        ("**Entities:** dog, hat", ["dog", "hat"]),
        ("## Entities\n- dog\n- hat", ["dog", "hat"]),
        ("### Entities\ndog, hat", ["dog", "hat"]),
        ("Entities: dog, hat", ["dog", "hat"]),
        ("Entities:\ndog\nhat", ["dog", "hat"]),
        ("Entities: dog\nhat", ["dog", "hat"]),
        ("Nouns: dog, hat\nBackground: beach", ["dog", "hat"]),
        ("dog, hat\nCaption: another thing\nNouns: cat", ["dog", "hat"]),
        ("dog: a brown animal\nhat: something red", ["dog", "hat"]),
        ("- dog - a brown animal\n- hat - worn", ["dog", "hat"]),
        ("dog - hat - beach", ["dog", "hat", "beach"]),
        ("dog / hat", ["dog", "hat"]),
        ("| Entity | Type |\n|---|---|\n| dog | animal |\n| hat | cloth |", ["dog", "hat"]),
        ("狗，帽子，沙滩", ["狗", "帽子", "沙滩"]),
        ("狗、帽子、沙滩。", ["狗", "帽子", "沙滩"]),
        ("实体：狗，帽子", ["狗", "帽子"]),
        ("1、狗\n2、帽子", ["狗", "帽子"]),
        ("① 狗\n② 帽子", ["狗", "帽子"]),
        ("「犬」、「帽子」", ["犬", "帽子"]),
        ("狗（动物）、帽子", ["狗", "帽子"]),
        ("dog, hat\n\nThese are the nouns in the foreground.", ["dog", "hat"]),
        ("dog, hat\nHope this helps!", ["dog", "hat"]),
        ("dog\nhat\n\nNote: I left out colors.", ["dog", "hat"]),
        ("dog, hat. I left out the beach, because it is the background.", ["dog", "hat"]),
        ("- dog\n- hat\n\nLet me know if you need more.", ["dog", "hat"]),
        ("<think>\nThe caption has a dog.\n</think>\n\ndog, hat", ["dog", "hat"]),
        ("dog & hat", ["dog", "hat"]),
        ("dog; hat; beach", ["dog", "hat", "beach"]),
        ("Here is the list of nouns:\n\n1. Dog\n2. Hat", ["Dog", "Hat"]),
        ("dog • hat", ["dog", "hat"]),
        ("\ufeffdog, hat", ["dog", "hat"]),
        ("T-shirt, hot-dog", ["T-shirt", "hot-dog"]),
        ("The nouns are dog and hat.", ["dog", "hat"]),
        ("None", ["None"]),
        ("dog_1", ["dog_1"]),
        ("[dog](http://x.invalid), hat", ["dog", "hat"]),
        ("dog\r\nhat", ["dog", "hat"]),
        ("- Foreground: dog, hat\n- Background: beach", ["dog", "hat"]),
        ("a dog, the hat", ["a dog", "the hat"]),
        ("- dog, hat", ["dog", "hat"]),
        ("-dog\n-hat", ["dog", "hat"]),
        ("{'dog', 'hat'}", ["dog", "hat"]),
        ("(dog, hat)", ["dog", "hat"]),
        ("(dog), (hat)", ["dog", "hat"]),
        ("Noun 1: dog\nNoun 2: hat", ["dog", "hat"]),
        ("名词1：狗\n名词2：帽子", ["狗", "帽子"]),
        ("a. dog\nb. T. rex", ["dog", "T. rex"]),
        ("i) dog\nii) hat", ["dog", "hat"]),
        ("T. rex, hat", ["T. rex", "hat"]),
        ("✓ dog\n✓ hat", ["dog", "hat"]),
        ("🐶 dog, 🎩 hat", ["dog", "hat"]),
        ("→ dog\n→ hat", ["dog", "hat"]),
        ("dog -> animal\nhat -> clothing", ["dog", "hat"]),
        ("dog = animal\nhat = clothing", ["dog", "hat"]),
        ("dog\\nhat", ["dog", "hat"]),
        ("“狗”“帽子”", ["狗", "帽子"]),
        ("《狗》 《帽子》", ["狗", "帽子"]),
        ("① 狗 ② 帽子", ["狗", "帽子"]),
        ('["dog", "big man in a hat", "a big man in a hat"]', ["dog", "big man in a hat"]),  # six words are a clause
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
        "<think>\nThe caption has a dog",
        "这张图片展示了一只戴着红色帽子的狗在沙滩上奔跑。",
        '{"entities": []}',
        "[" * 100_000,
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
        ("一只戴着红色帽子的狗在沙滩上", ["狗", "帽子", "猫"], ["帽子", "狗"]),
        ("一只狗和一顶帽子", ["狗和帽子"], ["狗", "帽子"]),
        ("一只狗戴着帽子", ["狗 帽子"], ["狗", "帽子"]),
        ("犬と猫", ["犬・猫"], ["犬", "猫"]),
        ("a hat", ["red hat"], []),
        ("穿和服的女人", ["和服"], ["和服"]),
        ("帽子をかぶった犬", ["犬", "帽子"], ["帽子", "犬"]),
        ("안경을 쓴 개가 모자를 쓰고", ["개", "모자"], ["개", "모자"]),
        ("หมาสวมหมวก", ["หมวก", "หมา"], ["หมา", "หมวก"]),
        ("一个穿着T恤的人", ["T恤"], ["T恤"]),
        ("un perro y una niña", ["perro", "nin\u0303a"], ["perro", "niña"]),
        ("a child\u2019s toy", ["child's toy"], ["child\u2019s toy"]),
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


@pytest.mark.parametrize(
    ("text", "count"),
    [("a dog - in the snow", 5), ("", 0), ("一只戴着红色帽子的狗", 5), ("hund", 1), ("猫", 1), ("a 猫 and 犬", 4)],
)
def test_words_are_counted_where_no_space_stands_between_them(text, count):
    assert word_count(text) == count
