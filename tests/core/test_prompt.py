import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kosmos_core.prompt import MAX_CHARACTERS, MAX_WEIGHT, ImageMark, Prompt, PromptError, Text

ROOT = Path(__file__).resolve().parents[2]


def slots_of(text, **given_images):
    return [image.slot for image in Prompt.parse(text, **given_images).images]


def caret(error):
    """The part of the quoted line from the caret on."""
    _, quoted, pointer = str(error).split("\n")
    return quoted[pointer.index("^") :]


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
    [("0", 0), ("-0", 0), ("+.5", 0.5), ("2.", 2), ("1e-3", 0.001), (" 1.3\n", 1.3), ("1e6", 1e6)],
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
        ("a (dog:-1) b", {}, "The weight '-1' must lie between 0 and 1,000,000", "-1) b"),
        ("a (dog:1e999) b", {}, "The weight '1e999' must lie between", "1e999) b"),
        ("((a:1e4):1e4)", {}, r"multiply to 1e\+08", ":1e4):1e4)"),
        ("a \udc00 b", {}, r"surrogate pair \(U\+DC00\)", "� b"),
    ],
)
def test_errors_point_at_the_place_and_say_what_to_do(text, images, sentence, at):
    with pytest.raises(PromptError, match=sentence) as caught:
        Prompt.parse(text, **images)
    if at is not None:
        assert caret(caught.value) == at
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_errors_show_a_window_of_a_long_prompt():
    with pytest.raises(PromptError) as caught:
        Prompt.parse("x" * 9000 + "\n<i>" + "y" * 9000, images=0)
    _, quoted, pointer = str(caught.value).split("\n")
    assert len(quoted) < 100
    assert quoted.strip().startswith("…xxx")
    assert quoted[pointer.index("^") :].startswith("<i>yyy")
    assert quoted.endswith("y…")
    assert "⏎" in quoted
    assert pointer.endswith("(character 9002)")


def test_caret_stands_under_the_place_after_wide_and_combining_characters():
    with pytest.raises(PromptError) as caught:
        Prompt.parse("犬e\u0301 <i>", images=0)
    quoted, pointer = str(caught.value).split("\n")[1:]
    columns = 4 + 2 + 1 + 0 + 1  # indent, the wide 犬, e, its accent, the space
    assert quoted.endswith("犬e\u0301 <i>")
    assert pointer.index("^") == columns


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
    assert caret(caught.value) == at


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
def test_any_string_is_read_or_refused_with_a_caret(text, images):
    prompt, error = read_or_error(text, images)
    if error:
        lines = str(error).split("\n")
        assert len(lines) == 3
        assert 0 <= error.position <= len(text)
        assert lines[2].endswith(f"^ (character {error.position + 1})")
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
            assert len(str(error)) < 400
        else:
            assert Prompt.parse(str(prompt), images=images) == prompt
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
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False, cwd=ROOT
    )
    assert done.stdout == "a (dog <i1>:1.3)\n", done.stderr
