"""Token sequences of samples: equal to the original loaders' where those exist, and packed by the rules where not."""

import io
import itertools
import json
import random
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from kosmos_core.tokenizer import Tokenizer
from training.data.batches import lm_batch
from training.data.cookers import COOKERS, cook_compositional, cook_edit, cook_interleaved
from training.data.decoding import centred, decode, target_pixels
from training.data.lanes import Lane
from training.data.original_cookers import placed_entities
from training.data.packing import PackedRow, document_units, sentences
from training.data.sample_types import (
    BadSample,
    CaptionSample,
    CompositionalSample,
    Entity,
    Filtered,
    InterleavedSample,
    TextSample,
)
from training.data.sequences import compositional_sequence, edit_sequence
from training.data.synthetic import COLOURS, compositional_samples, edit_samples
from training.data.tasks import AlignTask, InstructTask

from ..tiny.clip import letter_tokenizer
from .data_fixtures import AlignData, InstructData

KEYS = {"__key__": "k", "__restore_key__": ("Webdataset", 0), "__subflavors__": {}}


def _colour(image):
    return [int(value) for value in np.asarray(image)[0, 0]]


@pytest.fixture(scope="module")
def original(shared):
    expected = json.loads((shared / "golden/loaders/expected.json").read_text())["docs"]
    files = (shared / "tokenizer/sentencepiece.bpe.model", shared / "tokenizer/dict.txt")
    return expected, Tokenizer.from_files(*files), shared / "golden/loaders"


def _read_all(folder, kind, encode):
    """The sequences of a tsv file's lines, skipping like the stream does."""
    made = []
    for line in (folder / f"{kind}.tsv").read_bytes().strip().split(b"\n"):
        try:
            made.append(encode(COOKERS[f"original-{kind}"](KEYS | {"tsv": line})))
        except BadSample:
            continue
    return made


@pytest.mark.parametrize("kind", ["instructpix2pix", "openimage"])
@pytest.mark.parametrize("drop", ["0.0", "0.5", "1.0"])
def test_every_line_gives_the_tokens_masks_and_pictures_of_the_original(original, kind, drop):
    expected, tokenizer, folder = original
    rng = random.Random(1234)  # the seed of the original's run

    def encode(sample):
        if kind == "openimage":
            return compositional_sequence(sample, tokenizer, rng, float(drop), 0.5, empty_start="skip")
        return edit_sequence(sample, tokenizer, rng, float(drop))

    made = _read_all(folder, kind, encode)
    wanted = expected[f"{kind}.align0.drop{drop}"]
    assert len(made) == len(wanted)
    for sequence, line in zip(made, wanted, strict=True):
        assert list(map(int, sequence.image_mask)) == line["input_mask"]
        colours = [_colour(image) for image in (*sequence.images, sequence.target)]
        assert colours == line["image_colours"]
        if line["image_colours"][0][:2] == [0, 2] and kind == "instructpix2pix":
            continue
        assert sequence.token_ids == line["tokens"]


@pytest.mark.parametrize("drop", ["0.0", "0.5", "1.0"])
def test_a_line_of_noise_gives_the_same_pieces_whatever_sentencepiece_prefers(original, drop):
    """The one line whose shifted columns make base64 its text: AAAA is A AAA or AAA A at equal cost."""
    expected, tokenizer, folder = original
    rng = random.Random(1234)
    made = _read_all(
        folder, "instructpix2pix", lambda sample: edit_sequence(sample, tokenizer, rng, float(drop)).token_ids
    )
    for tokens, line in zip(made, expected[f"instructpix2pix.align0.drop{drop}"], strict=True):
        assert sorted(tokens) == sorted(line["tokens"])


def test_captions_are_chosen_as_the_original_chose_them(original, tmp_path):
    expected, tokenizer, folder = original
    config = InstructData(min_side=384, max_tokens=128)
    task = InstructTask(config, tokenizer)
    rows = _read_all(folder, "laion", lambda sample: task._row(None, sample, random.Random(0)))
    wanted = expected["laion.align0.drop0.5"]
    assert [row.token_ids for row in rows] == [line["tokens"][:-1] for line in wanted]  # its collate drops the </s>
    colours = [row.target[:, 0, 0].tolist() for row in rows]
    assert [[colour] for colour in colours] == [line["image_colours"] for line in wanted]

    words = AlignTask(AlignData(max_clip_tokens=75), tokenizer, _WordTokenizer())
    rows = _read_all(folder, "laion", lambda sample: words._row(None, sample, random.Random(0)))
    assert [row.token_ids for row in rows] == [line["tokens"][:-1] for line in expected["laion.align1.drop0.5"]]


class _WordTokenizer:
    """White-space splitting, as in the original's run."""

    pad_token_id = 1

    def __call__(self, caption, **_):
        from types import SimpleNamespace

        return SimpleNamespace(input_ids=[0, *range(len(caption.split())), 1])


@pytest.mark.parametrize(
    ("caption", "names", "placed"),
    [
        ("a dog and a dog", ["dog"], ["dog"]),
        ("two dogs", ["dog"], []),
        ("a dog's hat", ["dog", "hat"], ["dog's", "hat"]),
        ("a red car", ["red", "car"], ["car"]),
        ("a golden dog", ["golden", "dog"], ["dog"]),
        ("a hot dog", ["hot dog", "dog"], ["hot dog"]),
        ("a cat", ["cat", "cat"], []),
        ("a cat", [""], []),
    ],
)
def test_names_are_placed_by_the_rules_of_the_original(caption, names, placed):
    assert [caption[start:end] for _, start, end in placed_entities(caption, names)] == placed


def test_a_name_that_is_no_regular_expression_makes_the_sample_bad():
    with pytest.raises(BadSample, match="bad entity name"):
        placed_entities("a *x book", ["*x", "book"])


def test_the_target_equals_the_originals_preprocessing(shared):
    from safetensors import safe_open

    with safe_open(shared / "golden/images/expected.safetensors", "pt") as file:
        wanted = file.get_tensor("wide_rgb.diff_uint8").permute(2, 0, 1)
    pixels = target_pixels(decode((shared / "golden/images/wide_rgb.png").read_bytes()), 512)
    assert torch.equal(pixels, wanted)
    pixels = centred(pixels)
    assert (pixels - (wanted.double() / 255 - 0.5) / 0.5).abs().max() < 1e-6


def _compositional(number=0):
    parts = list(compositional_samples(random.Random(5), 40, 48))[number]
    return cook_compositional(KEYS | parts)


def test_entity_words_are_dropped_and_backgrounds_kept_half_of_the_time(tiny_tokenizer):
    shapes = ("white", "circle")  # a coloured background and a circle: the corner of a crop tells what is kept
    sample = next(
        s
        for s in map(_compositional, range(40))
        if len(s.entities) == 2 and shapes[0] not in s.caption and shapes[1] in s.caption[s.entities[1].start :]
    )
    first, second = sample.entities
    image = [tiny_tokenizer.ids.image_start] * (tiny_tokenizer.latents + 1) + [tiny_tokenizer.ids.image_end]

    def laid_out(drop_first, drop_second):
        before = sample.caption[: first.start if drop_first else first.end]
        between = sample.caption[first.end : second.start if drop_second else second.end]
        tail = tiny_tokenizer.encode(sample.caption[second.end :])
        ids = [0, *tiny_tokenizer.encode(before), *image, *tiny_tokenizer.encode(between), *image, *tail, 2]
        return tuple(ids)

    choices = {laid_out(*drops): drops for drops in itertools.product((False, True), repeat=2)}
    for scope, expected in (("entity", set(choices.values())), ("sample", {(False, False), (True, True)})):
        drawn, backgrounds, draws = Counter(), 0, 600
        for seed in range(draws):
            sequence = compositional_sequence(sample, tiny_tokenizer, random.Random(seed), 0.5, 0.5, scope)
            drawn[choices[tuple(sequence.token_ids)]] += 1
            backgrounds += _colour(sequence.images[1]) != [255, 255, 255]
        assert set(drawn) == expected
        assert all(abs(count / draws - 1 / len(expected)) < 0.07 for count in drawn.values())
        assert abs(backgrounds / draws - 0.5) < 0.07


def test_an_entity_stands_on_white_exactly_outside_its_mask():
    sample = _compositional()
    entity = sample.entities[0]
    from training.data.decoding import decode_mask, on_white

    crop, mask = np.asarray(decode(entity.crop)), np.asarray(decode_mask(entity.mask))
    assert mask.any()
    assert not mask.all()
    shown = np.asarray(on_white(decode(entity.crop), decode_mask(entity.mask)))
    assert (shown[~mask] == 255).all()
    assert (shown[mask] == crop[mask]).all()


def test_masks_of_one_bit_and_of_eight_are_cut_alike():
    from training.data.decoding import decode_mask

    levels = np.random.default_rng(0).integers(0, 256, (9, 13)).astype(np.uint8)
    found = []
    for stored in (Image.fromarray(levels), Image.fromarray(levels > 127)):
        stored.save(file := io.BytesIO(), "PNG")
        found.append(np.asarray(decode_mask(file.getvalue())))
    assert found[0].dtype == bool
    assert np.array_equal(found[0], levels > 127)
    assert np.array_equal(found[0], found[1])


def test_an_edit_is_caption_picture_instruction_with_one_of_its_pairs(tiny_tokenizer):
    parts = next(parts for parts in edit_samples(random.Random(0), 20, 48) if "1_0.jpg" in parts)
    sample = cook_edit(KEYS | parts)
    instruction = tiny_tokenizer.encode(sample.instruction)
    images = [tiny_tokenizer.ids.image_start] * (tiny_tokenizer.latents + 1) + [tiny_tokenizer.ids.image_end]
    kept, dropped = 0, 0
    for seed in range(200):
        sequence = edit_sequence(sample, tiny_tokenizer, random.Random(seed), 0.5)
        without = [0, *images, *instruction, 2]
        assert sequence.token_ids in (without, [0, *tiny_tokenizer.encode(sample.caption), *without[1:]])
        dropped += sequence.token_ids == without
        pair = [decode(content) for content in sample.pairs[0]]
        first = np.array_equal(np.asarray(sequence.images[0]), np.asarray(pair[0]))
        assert first == np.array_equal(np.asarray(sequence.target), np.asarray(pair[1]))
        kept += first
    assert 70 < kept < 130
    assert 70 < dropped < 130


def test_the_pairs_of_an_edit_come_by_their_numbers_with_leading_zeros_too():
    names = ["10", "9", "007"]
    parts = {f"{name}_{moment}.jpg": f"{name}-{moment}".encode() for name in names for moment in (1, 0)}
    sample = cook_edit(KEYS | parts | {"json": b'{"edit": "make it night"}'})
    assert sample.pairs == [(f"{name}-0".encode(), f"{name}-1".encode()) for name in reversed(names)]


def _flat(colour):
    Image.new("RGB", (8, 8), colour).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def test_an_edits_caption_is_drawn_before_its_pair(tiny_tokenizer):
    sample = cook_edit(KEYS | next(parts for parts in edit_samples(random.Random(0), 20, 48) if "1_0.jpg" in parts))
    words = len(tiny_tokenizer.encode(sample.caption))
    whole = len(edit_sequence(sample, tiny_tokenizer, random.Random(0), 0.0).token_ids)
    for seed in range(12):
        draws = random.Random(seed)
        dropped, pair = draws.random() < 0.5, draws.choice(sample.pairs)
        found = edit_sequence(sample, tiny_tokenizer, random.Random(seed), 0.5, target=bytes)
        assert (len(found.token_ids), found.target) == (whole - words * dropped, pair[1])


@pytest.mark.parametrize("scope", ["sample", "entity"])
def test_an_entitys_words_are_drawn_before_its_ground_and_the_ground_from_above(tiny_tokenizer, scope):
    """As the first implementation drew them: another order, or the other end of 0 ... 1, is another data stream."""
    red, white = _flat("red"), _flat("white")
    entities = [Entity(0, 5, red, on_white=white), Entity(10, 15, red, on_white=white)]
    sample = CompositionalSample(**KEYS, caption="a dog and a hat", entities=entities, target=red)
    image = [tiny_tokenizer.ids.image_start] * (tiny_tokenizer.latents + 1) + [tiny_tokenizer.ids.image_end]
    for seed in range(12):
        draws, position, ids, grounds = random.Random(seed), 0, [0], []
        dropped = draws.random() < 0.5 if scope == "sample" else None
        for entity in entities:
            dropped = draws.random() < 0.5 if scope == "entity" else dropped
            ids += tiny_tokenizer.encode(sample.caption[position : entity.start if dropped else entity.end]) + image
            grounds.append([255, 0, 0] if draws.random() > 0.7 else [255, 255, 255])
            position = entity.end
        found = compositional_sequence(sample, tiny_tokenizer, random.Random(seed), 0.5, 0.3, scope)
        assert (found.token_ids, [*map(_colour, found.images)]) == ([*ids, 2], grounds)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("One. Two! Three?  Four", ["One.", "Two!", "Three?", "Four"]),
        ('He said "go." She went.', ['He said "go."', "She went."]),
        ("a line\nanother\n\n", ["a line", "another"]),
        ("3.14 is pi", ["3.14 is pi"]),
        ("一。二！三", ["一。", "二！", "三"]),
        ("  ", []),
    ],
)
def test_text_is_cut_at_the_ends_of_sentences(text, found):
    assert list(sentences(text)) == found


def test_sentences_have_the_tokens_of_their_text(tiny_tokenizer):
    text = "a photo of a red dog. one tiny cat on the beach! a painting"
    units = document_units(TextSample(**KEYS, text=text), tiny_tokenizer, 100)
    assert len(units) == 3
    assert [token for unit in units for token in unit.token_ids] == [0, *tiny_tokenizer.encode(text), 2]


class _Documents:
    """A source of documents that were made before."""

    name, reader = "documents", range(10**6)

    def __init__(self, documents):
        self.documents = documents

    def read(self, position):
        sample = self.documents[position % len(self.documents)]
        return {"__key__": sample.__key__, "sample": sample}, random.Random(0)

    def cook(self, crude):
        return crude["sample"]


IMAGE = io.BytesIO()
Image.new("RGB", (30, 20), COLOURS["red"]).save(IMAGE, "JPEG")
segments = st.lists(
    st.one_of(st.just(IMAGE.getvalue()), st.text("abc .!\n", min_size=1, max_size=80).filter(str.strip)),
    min_size=1,
    max_size=6,
)


@given(st.lists(segments, min_size=1, max_size=6), st.integers(14, 60))
@settings(max_examples=60, deadline=None)
def test_packing_loses_nothing_and_never_cuts_a_picture(tiny_tokenizer, documents, length):
    samples = [
        InterleavedSample(**KEYS | {"__key__": str(number)}, segments=document)
        for number, document in enumerate(documents)
    ]
    lane = Lane(_Documents(samples), 0, 1)

    def encode(sample, rng):
        units = document_units(sample, tiny_tokenizer, length)
        if not units:
            raise BadSample("empty document")
        return units

    wanted = [
        [token for unit in document_units(sample, tiny_tokenizer, length) for token in unit.token_ids]
        for sample in samples
    ]
    assume(any(wanted))
    lane.source.key = str
    rows, latents = [], tiny_tokenizer.latents
    every = sum(token not in (0, 2) for tokens in wanted for token in tokens)
    while sum(token not in (0, 2) for row in rows for token in row.token_ids) < every:
        lane_again = Lane(lane.source, 0, 1)
        lane_again.restore(lane.state())
        rows.append(lane.pack(length, encode))
        assert rows[-1].token_ids, "a unit that no row has room for would come again for ever"
        again = lane_again.pack(length, encode)
        assert (again.token_ids, lane_again.state()) == (rows[-1].token_ids, lane.state())  # a resume changes nothing
    for row in rows:
        assert len(row.token_ids) <= length
        assert row.token_ids[0] == 0
        text = "".join(
            "b" if t == tiny_tokenizer.ids.image_start else "e" if t == tiny_tokenizer.ids.image_end else "."
            for t in row.token_ids
        )
        assert text.replace("b" * (latents + 1) + "e", "").strip(".") == ""
        assert sum(row.image_mask) == latents * len(row.pixels)
        assert len(row.documents) == len(row.token_ids)
    flat = [token for row in rows for token in row.token_ids if token not in (0, 2)]
    endless = itertools.cycle([token for tokens in wanted for token in tokens if token not in (0, 2)])
    assert flat == list(itertools.islice(endless, len(flat)))


def test_a_lane_goes_back_to_another_document_and_begins_the_next_one_where_its_own_has_gone_bad(tiny_tokenizer):
    samples = [TextSample(**KEYS, text=f"a {colour} dog. a {colour} cat. a hat.") for colour in ("red", "blue")]
    lane = Lane(_Documents(samples), 0, 1)
    lane.source.key = str
    length = 2 + max(len(unit.token_ids) for sample in samples for unit in document_units(sample, tiny_tokenizer, 64))

    def encode(sample, rng):
        return document_units(sample, tiny_tokenizer, 64)

    def spoilt(sample, rng):
        if sample.text == samples[0].text:
            raise BadSample("gone")
        return encode(sample, rng)

    first = lane.pack(length, encode).token_ids
    while not (lane.position == 1 and lane.unit):
        lane.pack(length, encode)
    lane.restore((0, 0))
    assert lane.pack(length, encode).token_ids == first
    lane.restore((1, 0))
    second = lane.pack(length, encode).token_ids
    lane.restore((0, 2))
    assert lane.pack(length, spoilt).token_ids == second


def test_a_caption_stays_with_its_picture(tiny_tokenizer):
    sample = CaptionSample(**KEYS, caption="a red dog. a blue cat.", image=IMAGE.getvalue())
    assert len(document_units(sample, tiny_tokenizer, 100)) == 1


def test_the_sentence_behind_a_picture_stays_with_it_where_both_fit(tiny_tokenizer):
    document = InterleavedSample(**KEYS, segments=["one tiny cat.", IMAGE.getvalue(), "a red dog. a blue cat."])
    first, picture, last = document_units(document, tiny_tokenizer, 100)
    sentence = tiny_tokenizer.encode("a red dog.")
    assert picture.token_ids[-len(sentence) :] == sentence
    assert (len(picture.pixels), len(first.pixels), len(last.pixels)) == (1, 0, 0)
    texts = InterleavedSample(**KEYS, segments=["a red dog.", "a blue cat."])
    assert len(document_units(texts, tiny_tokenizer, 100)) == 2
    together = len(picture.token_ids)  # what packing adds to it are <s> and </s>, and one place is kept free
    for length, units in ((together + 3, 3), (together + 2, 4)):
        assert len(document_units(document, tiny_tokenizer, length)) == units


def test_documents_are_numbered_for_masking_and_padding_is_none(tiny_tokenizer):
    row = PackedRow()
    for key in ("a", "b"):
        for unit in document_units(TextSample(**KEYS, text="a dog. a cat."), tiny_tokenizer, 64):
            row.add(unit, key)
    batch = lm_batch([row], tiny_tokenizer, 64, document_mask=True)
    ids, documents = batch["token_ids"][0], batch["document_ids"][0]
    starts = (ids == 0).nonzero().flatten().tolist()
    assert len(starts) == 2
    assert documents.unique(return_counts=True)[0].tolist() == [-1, 0, 1]
    assert torch.equal(documents == 1, (torch.arange(64) >= starts[1]) & (ids != 1))
    assert torch.equal(documents == -1, ids == 1)


def test_a_text_longer_than_a_sequence_is_cut_into_pieces(tiny_tokenizer):
    text = "abc" * 200
    ids = tiny_tokenizer.encode(text)
    for length in (32, len(ids) + 2, len(ids) + 3):  # the last two: one id too many, and just fitting
        units = document_units(TextSample(**KEYS, text=text), tiny_tokenizer, length)
        assert max(len(unit.token_ids) for unit in units) <= length - 1
        assert [token for unit in units for token in unit.token_ids] == [0, *ids, 2]


@pytest.mark.parametrize(
    ("described", "reason"),
    [
        ({"caption": "a dog", "entities": [{"span": [2, 9]}]}, "bad span"),
        ({"caption": "a dog", "entities": [{"span": [2]}]}, "bad span"),
        ({"caption": "a dog", "entities": [{}]}, "bad span"),
        ({"caption": "a dog", "entities": [{"span": [0, 5]}, {"span": [2, 5]}]}, "overlapping spans"),
        ({"caption": " ", "entities": []}, "empty caption"),
        ({"entities": []}, "missing caption"),
        ({"caption": "a dog"}, "missing entities"),
        (["caption"], "bad json"),
    ],
)
def test_a_broken_description_is_a_reason(described, reason):
    parts = {"json": json.dumps(described).encode(), "jpg": b"x", "0.jpg": b"x", "1.jpg": b"x"}
    with pytest.raises(BadSample, match=f"^{reason}$"):
        cook_compositional(KEYS | parts)


def test_entities_that_touch_or_end_the_caption_are_sound_in_any_order():
    described = {"caption": "reddog", "entities": [{"span": [3, 6]}, {"span": [0, 3]}]}
    parts = {"json": json.dumps(described).encode(), "jpg": b"x", "0.jpg": b"dog", "1.jpg": b"red"}
    entities = cook_compositional(KEYS | parts).entities
    assert [(entity.start, entity.end, entity.crop) for entity in entities] == [(0, 3, b"red"), (3, 6, b"dog")]


def test_a_picture_that_a_document_names_but_lacks_makes_it_bad():
    listed = {"segments": [{"text": "see"}, {"image": "0.jpg"}]}
    with pytest.raises(BadSample, match="missing picture"):
        cook_interleaved(KEYS | {"json": json.dumps(listed).encode()})


def test_half_a_surrogate_pair_is_a_reason_and_no_crash(tiny_tokenizer, tmp_path):
    task = AlignTask(AlignData(), tiny_tokenizer, letter_tokenizer(tmp_path / "clip"))
    with pytest.raises(BadSample):
        task._row(None, TextSample(**KEYS, text="a \ud800 dog"), random.Random(0))


def test_a_caption_too_long_for_the_prompt_is_left_out(tiny_tokenizer):
    task = InstructTask(InstructData(max_tokens=3, resolution=16), tiny_tokenizer)
    sample = CaptionSample(**KEYS, caption="a photo of a red dog on the beach", image=IMAGE.getvalue())
    with pytest.raises(Filtered, match="caption too long"):
        task._row(None, sample, random.Random(0))


def test_alignment_takes_pictures_for_words_and_keeps_the_whole_caption_as_target(tiny_tokenizer, tmp_path):
    sample = cook_compositional(KEYS | next(compositional_samples(random.Random(5), 1, 48)))
    task = AlignTask(AlignData(drop_entity=1.0), tiny_tokenizer, letter_tokenizer(tmp_path / "clip"), image_size=16)
    shown = task._row(None, sample, random.Random(0))
    told = task._row(None, TextSample(**KEYS, text=sample.caption), random.Random(0))
    images = len(sample.entities)
    assert images
    assert shown.clip_ids == told.clip_ids
    assert sum(shown.image_mask) == images * tiny_tokenizer.latents
    batch = task.batch([told, shown])
    assert batch["pixels"].shape == (images, 3, 16, 16)
    assert batch["image_mask"].shape == batch["token_ids"].shape
    assert batch["image_mask"].sum(1).tolist() == [0, images * tiny_tokenizer.latents]
    assert "pixels" not in task.batch([told])


def test_empty_captions_align_the_null_condition(tiny_tokenizer, tmp_path):
    clip = letter_tokenizer(tmp_path / "clip")
    task = AlignTask(AlignData(empty_captions=1.0), tiny_tokenizer, clip, image_size=16)
    row = task._row(None, _compositional(), random.Random(0))
    assert row.token_ids == tiny_tokenizer.layout("").token_ids
    assert row.clip_ids == clip("", padding="max_length", max_length=77).input_ids
    assert not row.pixels


def test_stage_three_reads_the_caption_of_its_target_where_the_data_tells_it(tiny_tokenizer, tmp_path):
    clip = letter_tokenizer(tmp_path / "clip")
    task = InstructTask(InstructData(resolution=32), tiny_tokenizer, 16, clip)
    edit = next(edit_samples(random.Random(0), 1, 48))
    described = json.loads(edit["json"]) | {"output": "a blue square"}
    told = cook_edit(KEYS | edit | {"json": json.dumps(described).encode()})
    compositional = cook_compositional(KEYS | next(compositional_samples(random.Random(0), 1, 48)))
    samples = [cook_edit(KEYS | edit), told, compositional]
    batch = task.batch([task._row(None, sample, random.Random(0)) for sample in samples])
    captions = [told.edited, compositional.caption]
    assert batch["captioned"].tolist() == [False, True, True]
    assert [clip.decode(ids, skip_special_tokens=True) for ids in batch["clip_ids"]] == captions
    plain = InstructTask(InstructData(resolution=32), tiny_tokenizer, 16)
    assert "clip_ids" not in plain.batch([plain._row(None, sample, random.Random(0)) for sample in samples])


def test_an_output_that_is_no_caption_is_a_bad_sample():
    edit = next(edit_samples(random.Random(0), 1, 48))
    described = json.loads(edit["json"]) | {"output": 3}
    with pytest.raises(BadSample, match="bad output"):
        cook_edit(KEYS | edit | {"json": json.dumps(described).encode()})
