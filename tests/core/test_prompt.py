import pickle
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kosmos_core.near_marks import near_marks
from kosmos_core.prompt import MAX_CHARACTERS, MAX_WEIGHT, ImageMark, Prompt, PromptError, Text
from kosmos_core.prompt_remarks import remarks

ROOT = Path(__file__).resolve().parents[2]


def slots_of(text, **given_images):
    return [image.slot for image in Prompt.parse(text, **given_images).images]


def quoted(error):
    """What the error quotes from the fault on; nothing where something is missing."""
    found = re.search("at “(.*?)”", str(error))
    return found[1] if found else ""


@pytest.mark.parametrize(
    ("text", "images", "slots"),
    [
        ("a dog <i> wearing <i> at the beach", 2, [1, 2]),
        ("<image> and <i>", 2, [1, 2]),
        ("<i2> and <i1>", 2, [2, 1]),
        ("<i2> <image2> <image_2> <i_2> <i02> <i1>", 2, [2, 2, 2, 2, 2, 1]),
        ("<i2> and <i>", 2, [2, 1]),
        ("<i> beside the same <i1>", 1, [1, 1]),
        ("<i> <i1> <i> <i3> <i>", 4, [1, 1, 2, 3, 4]),
        ("x<i>y<i>", None, [1, 2]),
        ("<i3> <i> <i> <i>", None, [3, 1, 2, 4]),
        ("", 0, []),
        ("no pictures", None, []),
    ],
)
def test_marks_take_their_pictures(text, images, slots):
    assert slots_of(text, images=images) == slots
    assert [image.index for image in Prompt.parse(text, images=images).images] == [slot - 1 for slot in slots]


def test_empty_slots_keep_their_numbers():
    prompt = Prompt.parse("<i> on <image_3>, <i6> and <i>", slots=[1, 3, 4, 6])
    assert [(image.slot, image.index) for image in prompt.images] == [(1, 0), (3, 1), (6, 3), (4, 2)]


@pytest.mark.parametrize(
    "text", ["<I>", "< i >", "<i", "i>", "<ii>", "<images>", "<i-1>", "<i1.5>", "<>", "{i}", r"\<i>", r"\<image_2>"]
)
def test_everything_else_is_text(text):
    assert Prompt.parse(text).segments == (Text(text.replace("\\", "")),)


@pytest.mark.parametrize(
    ("text", "literal"),
    [
        (r"\<i> \( \) \: \\", r"<i> ( ) : \ "[:-1]),
        (r"a\b C:\new \n", r"a\b C:\new \n"),
        (r"\\<3", r"\<3"),
        ("(red) dog ((big))", "(red) dog ((big))"),
        ("ratio 16:9, note: this", "ratio 16:9, note: this"),
        (r"(ratio 16\:9)", "(ratio 16:9)"),
        ("line\nbreak\ttab", "line\nbreak\ttab"),
    ],
)
def test_escapes_and_plain_parentheses_are_text(text, literal):
    assert Prompt.parse(text).segments == (Text(literal),)


def test_escaped_backslash_before_a_mark_leaves_the_mark():
    assert Prompt.parse(r"\\<i>").segments == (Text("\\"), ImageMark(1, 0))


def test_weights_hold_for_text_and_marks_and_multiply():
    assert Prompt.parse("a (dog <i>:1.3) (wearing (a (plain) hat:1.5): 1.2 ) <i>").segments == (
        Text("a "),
        Text("dog ", 1.3),
        ImageMark(1, 0, 1.3),
        Text(" "),
        Text("wearing ", 1.2),
        Text("a (plain) hat", 1.8),
        Text(" "),
        ImageMark(2, 1),
    )


@pytest.mark.parametrize(
    ("spelled", "weight"),
    [("0", 0), ("-0", 0), ("+.5", 0.5), ("2.", 2), ("1e-3", 0.001), (" 1.3\n", 1.3), ("1e2", 100)],
)
def test_weight_spellings(spelled, weight):
    prompt = Prompt.parse(f"(a:{spelled})")
    assert prompt == Prompt((Text("a", weight),))
    assert "-0" not in str(prompt)


def test_weight_of_one_leaves_no_trace():
    assert Prompt.parse("(a (red:1.0) dog:1) (<i>:1e0)") == Prompt.parse("a red dog <i>")


def test_last_colon_begins_the_weight():
    assert Prompt.parse("(12:30 at night:1.2)").segments == (Text("12:30 at night", 1.2),)


@pytest.mark.parametrize(
    ("text", "images", "sentence", "at"),
    [
        ("a <i> b <i> c", {"images": 1}, "More marks than pictures: picture 1 is taken", "<i> c"),
        ("a <i> b <i> c", {"slots": [4]}, "picture 4 is taken by earlier marks; name one again as <i4>", "<i> c"),
        ("a <i>", {"images": 0}, "no picture|none is given", "<i>"),
        ("a <i> b", {"images": 2}, "Picture 2 is not used in the prompt: write <i2>", ""),
        ("a <i> b", {"images": 4}, "Pictures 2, 3 and 4 are not used", ""),
        ("a <i> b", {"slots": [1, 3]}, "Picture 3 is not used in the prompt: write <i3>", ""),
        ("a <I> b", {"images": 1}, r"\(<I> is not a mark: a mark is <i> or <i1>.\)", "<I> b"),
        ("a < image 2 > b <i>", {"images": 2}, "is not a mark", "< image 2 > b <i>"),
        ("", {"images": 1}, "Picture 1 is not used", ""),
        ("a <i3> b", {"images": 2}, "There is no picture 3: pictures 1 and 2 are given", "<i3> b"),
        ("a <i2> b", {"slots": [1, 3]}, "There is no picture 2: pictures 1 and 3 are given", "<i2> b"),
        ("a <i1> b", {"images": 0}, "There is no picture 1: none is given", "<i1> b"),
        ("a <i0> b", {}, "There is no picture 0: pictures are counted from 1", "<i0> b"),
        ("<i" + "9" * 5000 + ">", {}, "There is no picture 999999999…", None),
        ("a (dog:1.3", {}, r"This \( is never closed", "(dog:1.3"),
        ("a (dog:", {}, r"This \( is never closed", "(dog:"),
        ("((a dog:1.3) b", {}, r"This \( is never closed", "((a dog:1.3) b"),
        ("a dog:1.3) b", {}, r"This \) closes nothing", ") b"),
        ("a smile :)", {}, r"write \\\) for a plain one", ")"),
        ("a (dog:big) b", {}, "The weight 'big' is not a number", "big) b"),
        ("a (dog:) b", {}, "The weight '' is not a number", ") b"),
        ("a (dog:1,3) b", {}, "The weight '1,3' is not a number", "1,3) b"),
        ("a (dog:1_0) b", {}, "The weight '1_0' is not a number", "1_0) b"),
        ("a (dog:٣) b", {}, "The weight '٣' is not a number", "٣) b"),
        ("a (dog:<i>) b", {"images": 1}, "The weight '<i>' is not a number", "<i>) b"),
        ("a (dog:nan) b", {}, "The weight 'nan' is not a number", "nan) b"),
        ("a (dog:inf) b", {}, "The weight 'inf' is not a number", "inf) b"),
        ("a (dog:-1) b", {}, "The weight '-1' must lie between 0 and 100: 0 hides", "-1) b"),
        ("a (dog:1e999) b", {}, "The weight '1e999' must lie between", "1e999) b"),
        ("((a:50):50)", {}, "multiply to 2500: their product must lie between 0 and 100", ":50):50)"),
        ("a \udc00 b", {}, r"surrogate pair \(U\+DC00\)", "� b"),
    ],
)
def test_errors_quote_the_place_and_say_what_to_do(text, images, sentence, at):
    with pytest.raises(PromptError, match=sentence) as caught:
        Prompt.parse(text, **images)
    if at is not None:
        assert quoted(caught.value) == at
        assert "\n" not in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


# fmt: off
NEARLY = [
    "<I>", "<İ>", "<í>", "<і>", "<l>", "<ｉ１>", "<i²>", "<1>", "<#1>", "<|image_1|>", "<|image|>", "<img>", "</i>",
    "<i/>", "<images>", "<pic2>", "<ref1>", "<图片1>", "<i-1>", "<i=1>", "<<i>>", "<i:1.3>", "<i1,i2>", "<i1-3>",
    "＜i＞", "〈i〉", "⟨i⟩", "《i》", "«i»", "&lt;i&gt;", "&#60;i1&#x3e;", "&amp;lt;i&amp;gt;", "%3Ci%3E",
    "\\u003ci\\u003e", "[i]", "[image1]", "[[img2]]", "{{image}}", "{i1}", "【图片1】", "i>", "<\u200bi>",
    "<i\ufeff1>", "<i\u00ad>",
]
# fmt: on


@pytest.mark.parametrize("spelled", [*NEARLY, "< i >", "<image 1>", "<i\n>", "<i1 i2>", "<i and", "<i2, a cat"])
def test_what_is_nearly_a_mark_is_named_where_an_image_is_left_over_and_remarked_on_otherwise(spelled):
    assert [found.slot for found in near_marks(spelled)] != []
    (near,) = near_marks(f"a dog {spelled} here")
    assert f"a dog {spelled} here"[near.start : near.end] == re.sub("(?<=.)( and|, a cat)$", "", spelled)
    with pytest.raises(PromptError, match=rf"is not a mark.*: a mark is <i> or <i{near.slot or 3}>\.\) \(at") as caught:
        Prompt.parse(f"a dog {spelled} here <i1> <i2>", images=3)
    assert caught.value.position == len("a dog ")
    (remark,) = remarks(f"a dog {spelled} here <i1>")
    assert f"write <i{near.slot or ''}>" in remark
    assert Prompt.parse(f"a dog {spelled} here").segments[0].text.startswith("a dog ")


@pytest.mark.parametrize(
    "text",
    [
        "<i> <i2> <image_3>",
        r"\<I> \<1>",
        "I <3 dogs",
        "a < b > c",
        "x<y",
        "<b>bold</b>",
        "<imagine>",
        "a -> i",
        "is i> 3",
    ][:-1],
)
def test_what_is_not_nearly_a_mark_is_left_alone(text):
    assert list(near_marks(text)) == []


@pytest.mark.parametrize(
    ("spelled", "slot"), [("<i 0>", None), ("<i 2>", 2), ("<i²>", 2), ("<І>", None), ("<Ι 3>", 3), ("ＩＭＧ1>", 1)]
)
def test_the_slot_of_what_is_nearly_a_mark_is_its_number_from_1_on_in_any_letters(spelled, slot):
    assert [near.slot for near in near_marks(f"a dog {spelled} here")] == [slot]


def test_a_mark_behind_two_backslashes_is_told_of_where_an_image_is_left_over():
    (near,) = near_marks(r"a dog \\<i>", faint=True)
    assert (near.start, near.fault) == (7, r", its \ makes it text")


@pytest.mark.parametrize("faint", [r"\<i>", "[1]", "{1}", "{}", "(image 1)", "@image1", "#img1", "image_1", "img"])
def test_what_may_well_be_text_is_named_only_where_an_image_is_left_over(faint):
    with pytest.raises(PromptError, match=rf"\({re.escape(faint)} is not a mark"):
        Prompt.parse(f"a dog {faint}", images=1)
    assert not any("is not a mark" in remark for remark in remarks(f"a dog {faint}"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("((dog))", "“((dog))” weighs nothing here, its parentheses are read as text: write (dog:1.1)"),
        ("a (red) dog", "“(red)” weighs nothing here"),
        ("((dog:1.2)) x", "The outer parentheses of “((dog:1.2))” weigh nothing"),
        ("[dog]", "“[dog]” weighs nothing here, its brackets are read as text: write (dog:0.9)"),
        ("{{dog}}", "“{{dog}}” weighs nothing here, its braces are read as text: write (dog:1.1)"),
        ("[a dog:a cat:0.5]", "“[a dog:a cat:0.5]” is read as text, the prompt stays the same for all steps"),
        ("[dog::10] [:cat:.3]", "“[dog::10]” is read as text, the prompt stays"),
        ("{dog|cat}", "“{dog|cat}” chooses nothing here"),
        ("[dog|cat]", "“[dog|cat]” chooses nothing here"),
        ("{2$$a|b|c}", "“{2$$a|b|c}” chooses nothing here"),
        ("embedding:bad-hands", "“embedding:bad-hands” is read as text: textual inversions"),
        ("(embedding:bad:1.2)", "textual inversions"),
        ("<embedding:bad>", "textual inversions"),
        ("<lora:paint:0.8>", "“<lora:paint:0.8>” loads nothing here and is read as text: put a Load LoRA node"),
        ("<hypernet:x:1>", "loads nothing here"),
        ("a dog BREAK a cat", "“BREAK” is read as a word"),
        ("a dog AND a cat", "“AND” is read as a word"),
        ("a ADDCOMM b", "“ADDCOMM” is read as a word"),
        ("（dog：1.3）", "“（dog：1.3）” is written with another keyboard's brackets"),
        ("(dog：1.3)", "“(dog：1.3)” is written with another keyboard's brackets"),
        ("【dog】", "another keyboard's brackets"),
        ("a __animal__", "“__animal__” is replaced by nothing here"),
        ("${animal} %date%", "“${animal}” is replaced by nothing here"),
        ("a dog:1.3", "“dog:1.3” weighs nothing here: a weight wants parentheses, as in (dog:1.3)"),
        ("dog::2 cat", "“dog::2” weighs nothing here"),
        ("dog++ cat", "“++” weighs nothing here"),
        ("a dog --no cars", "“--no” sets nothing here"),
        ("AREA(0 0.5, 1) dog", "“AREA(0 0.5, 1)” is read as text: areas"),
        ("// a note\ndog", "“// a note” is read as text like the rest"),
        ("(dog:4)", "The weight 4 of “dog” is above 3: little of the rest is left"),
        ("((<i>:2):2)", "The weight 4 of <i1> is above 3"),
    ],
)
def test_a_habit_of_another_tool_is_remarked_on_in_one_sentence_and_stays_text(text, said):
    (remark,) = remarks(text, Prompt.parse(text))
    assert said in remark
    doubled = f"{text}\n{text}"
    (again,) = remarks(doubled, Prompt.parse(doubled))
    assert again.startswith(remark[:20])
    assert re.search(r"\(\d places\)$", again)


@pytest.mark.parametrize(
    "text",
    [
        "a dog <i> wearing <i2> at the beach",
        "a (dog <i>:1.3), (a hat:0.5) and (both:3)",
        r"a \(red\) dog, 16:9, f/1.8, 12:30, note: this",
        "SALT AND PEPPER, salt and pepper, C++, 50% or 30%, $100, snake_case, a -- b, https://a.b, #1",
        "一只狗，在海滩上：黄昏",
    ],
)
def test_plain_prompts_have_no_remarks(text):
    assert remarks(text, Prompt.parse(text)) == []


def test_errors_show_a_window_of_a_long_prompt_in_one_line():
    with pytest.raises(PromptError) as caught:
        Prompt.parse("x" * 9000 + "\n<i>" + "y" * 9000, images=0)
    sentence = str(caught.value)
    assert f"(at “<i>{'y' * 33}…” after “…{'x' * 27}⏎”, character 9002)" in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"images": -1}, "images is -1"),
        ({"slots": [1, 1]}, "different slot numbers"),
        ({"slots": [0]}, "different slot numbers from 1"),
        ({"images": 1, "slots": [1, 2]}, "images is 1 but slots lists 2"),
    ],
)
def test_impossible_pictures_are_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        Prompt.parse("a", **arguments)


def test_prompt_must_be_a_string():
    with pytest.raises(TypeError, match="A prompt is a string, not NoneType"):
        Prompt.parse(None)


def test_original_grammar_knows_only_the_exact_mark():
    text = r"<i> (a:2) <i2> <image> \<i>("
    assert Prompt.original(text, images=2).segments == (
        ImageMark(1, 0),
        Text(r" (a:2) <i2> <image> " + "\\"),
        ImageMark(2, 1),
        Text("("),
    )


@pytest.mark.parametrize(("images", "at"), [(0, "<i> b <i> c"), (1, "<i> c"), (3, "")])
def test_original_grammar_needs_one_picture_per_mark(images, at):
    with pytest.raises(PromptError, match=f"marks are 2, its pictures {images}: give one") as caught:
        Prompt.original("a <i> b <i> c", images=images)
    assert quoted(caught.value) == at


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("a dog <i> wearing <i> at the beach", "a dog wearing at the beach"),
        ("<i> swimming", "swimming"),
        ("<i><i>", ""),
        ("x<i>y", "x y"),
        ("a <i> <i> b", "a b"),
        ("(a dog <i>:1.3) on <i>", "(a dog:1.3) on "),
        ("(a:1.3)<i>(b:0.5)", "(a:1.3)( b:0.5)"),
        ("plain  text ", "plain  text "),
    ],
)
def test_text_only_drops_pictures_and_keeps_weights(text, kept):
    assert Prompt.parse(text).text_only() == Prompt.parse(kept)


def test_normalised_form():
    text = r"<image> (red) \<i> a\b (<i3> x\:y:1.50)"
    assert str(Prompt.parse(text)) == r"<i1> \(red\) \<i> a\\b (<i3> x\:y:1.5)"


def test_neighbouring_texts_of_equal_weight_are_one_segment():
    assert Prompt((Text("a"), Text(""), Text("b"), Text("c", 2))) == Prompt((Text("ab"), Text("c", 2)))
    with pytest.raises(ValueError, match="must lie between 0"):
        Prompt((Text("a", float("nan")),))


GRAMMAR = ["<i>", "<i1>", "\\", "(", ")", ":1.3)", ":0)", ":1)", ":", "<", ">", "a", " ", "dog", "犬", "\n"]
ANY_PROMPT = st.one_of(st.text(), st.lists(st.sampled_from(GRAMMAR), max_size=40).map("".join))
WEIGHTS = st.floats(0, MAX_WEIGHT)
TEXTS = st.builds(Text, ANY_PROMPT, WEIGHTS)
IMAGES = st.builds(lambda slot, weight: ImageMark(slot, slot - 1, weight), st.integers(1, 999), WEIGHTS)


@given(st.lists(st.one_of(TEXTS, IMAGES), max_size=8))
@example([Text("<i"), ImageMark(1, 0), Text(">", 0.5), Text("\\"), Text(":", 2.0), Text("\\", 1 / 3)])
def test_normalised_form_reads_back_as_the_same_prompt(segments):
    prompt = Prompt(tuple(segments))
    assert Prompt.parse(prompt.normalised()) == prompt
    assert str(Prompt.parse(str(prompt))) == str(prompt)


def read_or_error(text, images):
    try:
        return Prompt.parse(text, images=images), None
    except PromptError as error:
        return None, error


@given(ANY_PROMPT, st.one_of(st.none(), st.integers(0, 3)))
def test_any_string_is_read_or_refused_in_one_line(text, images):
    prompt, error = read_or_error(text, images)
    if error:
        assert len(str(error).split("\n")) == 1
        assert 0 <= error.position <= len(text)
        assert (error.position == len(text)) != str(error).endswith(f"character {error.position + 1})")
    else:
        assert Prompt.parse(str(prompt), images=images) == prompt
        assert images is None or {image.slot for image in prompt.images} == set(range(1, images + 1))


@given(st.text(st.characters(exclude_categories=[])))  # lone surrogates included: JSON can carry them
def test_lone_surrogates_never_get_through(text):
    prompt, error = read_or_error(text, None)
    str(error or prompt).encode()


@given(st.text(st.characters(exclude_characters="\\():<", exclude_categories=["Cs"])))
def test_text_without_grammar_characters_is_kept_as_it_is(text):
    assert Prompt.parse(text) == Prompt((Text(text),))
    assert str(Prompt.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "(" * 10000 + ")" * 10000,
        "(" * 20000,
        "(" * 4000 + "a:1)" * 4000,
        "(a:1.1)" * 2857,
        "(" + ":" * 19998 + ")",
        "<i>" * 6666,
        "<" * 20000,
        "\\" * 20000,
        ("<i" + " " * 98) * 200,
        "[ i" * 6666,
        "<" + " " * 20000,
        "犬" * 20000,
    ],
)
def test_twenty_thousand_characters_are_read_in_a_moment(text):
    began = time.process_time()
    for images in (None, 3):
        prompt, error = read_or_error(text, images)
        if error:
            assert len(str(error)) < 500
        else:
            assert Prompt.parse(str(prompt), images=images) == prompt
    remarks(text)
    assert time.process_time() - began < 3  # about 0.2 s; a quadratic reader would need minutes


def test_a_prompt_of_just_the_most_characters_is_read():
    assert Prompt.parse("a" * MAX_CHARACTERS).segments == (Text("a" * MAX_CHARACTERS),)
    with pytest.raises(PromptError, match=f"has {MAX_CHARACTERS + 1:,} characters"):
        Prompt.parse("a" * (MAX_CHARACTERS + 1))


def test_grammar_works_without_torch():
    program = """
import sys
sys.modules["torch"] = sys.modules["sentencepiece"] = sys.modules["numpy"] = None  # importing any of them now fails
from kosmos_core import Prompt
print(Prompt.parse("a (dog <i>:1.3)", images=1))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False, cwd=ROOT
    )
    assert done.stdout == "a (dog <i1>:1.3)\n", done.stderr
