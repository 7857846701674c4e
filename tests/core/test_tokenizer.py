import dataclasses
import json
import pickle
import time
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kosmos_core.config import KosmosGConfig
from kosmos_core.prompt import ImageMark, Prompt, PromptError, Text
from kosmos_core.tokenizer import MissingTokenizerError, Tokenizer, dictionary_of


@pytest.fixture(scope="module")
def official(shared):
    return Tokenizer.from_files(shared / "tokenizer/sentencepiece.bpe.model", shared / "tokenizer/dict.txt")


@pytest.fixture(scope="module")
def golden(shared):
    return json.loads((shared / "golden/tokens.json").read_text(encoding="utf-8"))


def test_token_ids_and_masks_equal_the_originals(official, golden):
    assert official.vocabulary == golden["vocab"] == 64007
    assert len(golden["cases"]) >= 41
    for case in golden["cases"]:
        layout = official.layout(case["prompt"])
        assert layout.token_ids == case["src_tokens"], case["prompt"]
        assert [int(masked) for masked in layout.image_mask] == case["img_gpt_input_mask"]
        assert layout.image_slots == list(range(case["images"]))
        assert official.negative(case["negative_prompt"]) == case["negative_tokens"]
        assert layout.key_weights is None


def test_special_ids_of_the_official_vocabulary(official):
    specials = dataclasses.astuple(official.ids)
    assert specials == tuple(range(64001, 64007))
    assert [official.piece(token) for token in (0, 1, 2, 3, *specials)] == [
        "<s>",
        "<pad>",
        "</s>",
        "<unk>",
        "<mask>",
        "</doc>",
        "<image>",
        "</image>",
        "</chunk>",
        "</line>",
    ]


def test_official_dictionary_is_the_models_own_order(official, shared):
    spm, dictionary = official.to_bytes()
    assert [line.split(b" ")[0] for line in dictionary_of(spm).splitlines()] == [
        line.split(b" ")[0] for line in dictionary.split(b"\n")
    ]


def test_official_files_load_fast(official):
    began = time.process_time()
    Tokenizer.from_bytes(*official.to_bytes())
    assert time.process_time() - began < 0.6  # about 0.2 s, half of it SentencePiece's own; 3x slack for a busy machine


def test_picture_is_its_start_latents_and_end(tiny_tokenizer):
    t = tiny_tokenizer
    layout = t.layout("a dog <i>", latents=2)
    dog = t.encode("a dog")
    start, end = t.ids.image_start, t.ids.image_end
    assert layout.token_ids == [0, *dog, start, start, start, end]
    assert layout.image_mask == [False] * (1 + len(dog)) + [False, True, True, False]
    assert t.layout("a dog <i>").token_ids.count(start) == t.latents + 1


def test_tokenizer_and_model_share_one_table_of_special_ids(official, tiny_tokenizer):
    assert official.ids == KosmosGConfig.official().ids
    assert tiny_tokenizer.ids == KosmosGConfig.tiny(vocabulary=tiny_tokenizer.vocabulary).ids


def test_text_never_yields_a_special_id(tiny_tokenizer):
    t = tiny_tokenizer
    layout = t.layout("<s> </s> <pad> <mask> <image> </image> <image2> </doc> a dog")
    assert layout.image_slots == []
    assert not {0, 1, 2, *dataclasses.astuple(t.ids)} & set(layout.token_ids[1:])


def test_unknown_characters_are_unk_and_empty_text_is_bos(tiny_tokenizer):
    assert 3 in tiny_tokenizer.encode("Ω")
    assert tiny_tokenizer.layout("").token_ids == tiny_tokenizer.layout("  ").token_ids == [0]
    assert tiny_tokenizer.negative() == [0]


WORDS = ["a", "dog", "wonderful", "red", " ", "  ", "ful", ", ", "Ω", "ﬁ", "㍿", "é", "\n", "<i>", "<image2>", ":", "¨"]


@given(st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from([0.0, 0.5, 1.0, 1.3])), max_size=12))
def test_weights_never_change_the_token_ids(tiny_tokenizer, parts):
    weighted = Prompt.parse("".join(f"({part.replace(':', chr(92) + ':')}:{weight})" for part, weight in parts))
    plain = Prompt.parse("".join(part for part, _ in parts))
    layout, expected = tiny_tokenizer.layout(weighted), tiny_tokenizer.layout(plain)
    assert layout.token_ids == expected.token_ids
    assert layout.image_mask == expected.image_mask
    assert layout.image_slots == expected.image_slots
    weights = layout.key_weights or [1.0] * len(layout.token_ids)
    assert len(weights) == len(layout.token_ids)
    assert weights[0] == 1
    given_weights = [weight for _, weight in parts]
    assert all(min(given_weights) <= weight <= max(given_weights) for weight in weights[1:])
    assert [span.segment for span in layout.spans] == list(weighted.segments)
    assert [1, *(span.stop for span in layout.spans)][-1] == len(layout.token_ids)
    assert all(before.stop == after.start for before, after in zip(layout.spans, layout.spans[1:], strict=False))


def test_weight_holds_for_every_token_of_its_segment(tiny_tokenizer):
    t = tiny_tokenizer
    prompt = Prompt.parse("a (red wooden dog <i>:1.3) wearing <i> at the (beach:0)")
    layout = t.layout(prompt)
    runs = [(weight, len(list(run))) for weight, run in groupby(layout.key_weights)]
    expected = [
        (1.0, 1 + len(t.encode("a"))),
        (1.3, len(t.encode("red wooden dog")) + t.latents + 2),
        (1.0, len(t.encode("wearing")) + t.latents + 2 + len(t.encode("at the"))),
        (0.0, len(t.encode("beach"))),
    ]
    assert runs == expected
    sums = t.layout(Prompt.parse("a (red dog on the golden beach:0.1) with"))  # 0.1 + 0.1 + 0.1 is not 0.3
    assert set(sums.key_weights) == {1.0, 0.1}


def test_weight_of_one_leaves_no_trace(tiny_tokenizer):
    plain = tiny_tokenizer.layout(Prompt.parse("a red dog <i>"))
    assert tiny_tokenizer.layout(Prompt.parse("a (red:1) (dog <i>:1.0)")) == plain
    assert plain.key_weights is None


def test_piece_across_the_edge_of_a_weight_takes_the_mean_of_its_characters(official):
    assert len(official.encode("wonderful")) == 1
    layout = official.layout(Prompt.parse("wonder(ful:2)"))
    assert layout.token_ids == official.layout("wonderful").token_ids
    assert layout.key_weights == [1.0, pytest.approx((6 * 1 + 3 * 2) / 9)]
    assert [(span.start, span.stop) for span in layout.spans] == [(1, 2), (2, 2)]


def test_spans_name_the_tokens_of_each_segment(tiny_tokenizer):
    t = tiny_tokenizer
    layout = t.layout(Prompt.parse("red (dog:2) <i2> on"))
    tokens = [layout.token_ids[span.start : span.stop] for span in layout.spans]
    assert tokens[0] == t.encode("red")
    assert tokens[1] == t.encode("dog")
    assert tokens[2] == []  # the space between "dog" and the picture
    assert tokens[3] == [t.ids.image_start] * (t.latents + 1) + [t.ids.image_end]
    assert tokens[4] == t.encode("on")
    assert layout.spans[3].segment == ImageMark(slot=2, index=1)
    assert layout.image_slots == [1]


def test_text_only_has_the_tokens_of_the_prompt_without_its_pictures(official, golden):
    for case in golden["cases"]:
        prompt = Prompt.original(case["prompt"])
        layout = official.layout(prompt)
        images = [span for span in layout.spans if isinstance(span.segment, ImageMark)]
        dropped = {number for span in images for number in range(span.start, span.stop)}
        kept = [token for number, token in enumerate(layout.token_ids) if number not in dropped]
        assert official.layout(prompt.text_only()).token_ids == kept, case["prompt"]


def test_decode_shows_text_and_marks(tiny_tokenizer):
    ids = tiny_tokenizer.layout("a red dog <i> wearing <i><i>, asleep").token_ids
    assert tiny_tokenizer.decode([*ids, 2, 1, 1]) == "a red dog <i> wearing <i> <i> , asleep"
    with pytest.raises(ValueError, match=r"Token id 100000 is outside the vocabulary: expected 0 to \d+"):
        tiny_tokenizer.piece(100000)


def test_bytes_and_pickle_give_an_equal_tokenizer(tiny_tokenizer, tiny_tokenizer_files):
    spm, dictionary = tiny_tokenizer.to_bytes()
    assert (spm, dictionary) == tuple(path.read_bytes() for path in tiny_tokenizer_files)
    for copy in (Tokenizer.from_bytes(spm, dictionary, latents=4), pickle.loads(pickle.dumps(tiny_tokenizer))):
        assert copy.layout("a dog <i>") == tiny_tokenizer.layout("a dog <i>")
        assert copy.vocabulary == tiny_tokenizer.vocabulary


def test_dictionary_is_made_from_the_model_when_none_is_given(tiny_tokenizer, tiny_tokenizer_files):
    made = Tokenizer.from_files(tiny_tokenizer_files[0])
    assert made.to_bytes() == tiny_tokenizer.to_bytes()
    assert 3 not in made.encode("a wonderful dog on the beach")


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (b"a 1\nb\nc 1\n", "line 2: 'b' is not a piece, a space and a count"),
        (b"a 1\n\nc 1\n", "line 2: '' is not a piece"),
        (b"a 1\nb x\n", "line 2: 'b x' is not a piece"),
        (b"a 1\nb 1\nb 1\n", "line 3: the piece 'b' stands in line 2 already"),
        (b"a 1\n<image> 1\n", "line 2: the piece '<image>' is a name of the model's own"),
        (b"a 1\n\xff\xfe 1\n", "line 2: not UTF-8"),
        (b"a 1\nb 1 #fairseq:overwrite\n", "line 2"),
        (b"", "do not belong together"),
        ("".join(f"▁w{n} 1\n" for n in range(40)).encode(), "do not belong together"),
    ],
)
def test_broken_dictionary_is_refused_with_its_line(tiny_tokenizer_files, tmp_path, lines, sentence):
    path = tmp_path / "dict.txt"
    path.write_bytes(lines)
    with pytest.raises(ValueError, match=sentence) as caught:
        Tokenizer.from_files(tiny_tokenizer_files[0], path)
    assert str(path) in str(caught.value)


def test_a_dictionary_belongs_to_a_model_of_which_it_has_at_least_half_the_pieces(tiny_tokenizer):
    spm, dictionary = tiny_tokenizer.to_bytes()
    lines, half = dictionary.splitlines(keepends=True), -(-tiny_tokenizer._spm.get_piece_size() // 2)
    assert Tokenizer.from_bytes(spm, b"".join(lines[:half])).vocabulary == half + 10
    with pytest.raises(ValueError, match="do not belong together"):
        Tokenizer.from_bytes(spm, b"".join(lines[: half - 1]))


def test_a_file_that_is_not_there_is_named_with_what_was_expected(tiny_tokenizer_files, tmp_path):
    missing = tmp_path / "missing"
    with pytest.raises(ValueError, match=r"missing cannot be read \(No such file.*\); give a SentencePiece model"):
        Tokenizer.from_files(missing)
    with pytest.raises(ValueError, match=r"missing cannot be read \(No such file.*\); give its dict\.txt"):
        Tokenizer.from_files(tiny_tokenizer_files[0], missing)


def test_dictionary_with_windows_line_ends_is_read(tiny_tokenizer):
    spm, dictionary = tiny_tokenizer.to_bytes()
    copy = Tokenizer.from_bytes(spm, b"\xef\xbb\xbf" + dictionary.replace(b"\n", b"\r\n"))
    assert [copy.piece(token) for token in range(4, 20)] == [tiny_tokenizer.piece(token) for token in range(4, 20)]
    assert copy.vocabulary == tiny_tokenizer.vocabulary


@pytest.mark.parametrize("spm", [b"", b"not a model", b"\x00" * 1000])
def test_broken_sentencepiece_model_is_refused(tiny_tokenizer, spm):
    with pytest.raises(ValueError, match="are not a SentencePiece model"):
        Tokenizer.from_bytes(spm, tiny_tokenizer.to_bytes()[1])


def test_half_a_surrogate_pair_is_refused(tiny_tokenizer):
    for call in (tiny_tokenizer.encode, tiny_tokenizer.negative, tiny_tokenizer.layout):
        with pytest.raises(PromptError, match=r"surrogate pair \(U\+D83D\)"):
            call("a dog \ud83d")


@given(st.text(max_size=60))
def test_any_text_can_be_laid_out(tiny_tokenizer, text):
    layout = tiny_tokenizer.layout(text)
    assert len(layout.token_ids) == len(layout.image_mask)
    assert all(0 <= token < tiny_tokenizer.vocabulary for token in layout.token_ids)
    weighted = Prompt((Text(text, 1.5), Text(" dog", 0.5)))
    assert tiny_tokenizer.layout(weighted).token_ids == tiny_tokenizer.layout(Prompt((Text(text + " dog"),))).token_ids


def test_missing_tokenizer_says_how_to_get_one():
    with pytest.raises(ValueError, match=r"--spm sentencepiece\.bpe\.model"):
        raise MissingTokenizerError
