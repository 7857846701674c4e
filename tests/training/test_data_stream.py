"""Streams of micro-batches: what they hold, and that neither processes nor workers nor a restart change them."""

import io
import json
import logging
import pickle
import random
import re
from collections import Counter

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from training.base.rng import seed_of
from training.data import data_stream
from training.data.batch_stream import Stream
from training.data.data_config import SourceConfig
from training.data.index import DataError
from training.data.lanes import Skip
from training.data.order import Order
from training.data.skips import SkipCounts, TooManyBad
from training.data.synthetic import pair_samples, write_tars

from ..tiny.clip import letter_tokenizer
from .data_fixtures import config_for, one_stream, open_stage, same, write_sources

STAGES = ("lm", "align", "instruct")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return letter_tokenizer(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def open_(folder, clip, tiny_tokenizer):
    opened = []

    def open_(stage, stream=None, **options):
        config = config_for(stage, folder, **options)
        opened.append(open_stage(stage, config, stream or one_stream(), tiny_tokenizer, clip))
        return opened[-1]

    yield open_
    for stream in opened:
        stream.close()


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_is_the_same_rows_on_any_number_of_processes(open_, stage):
    """One process that owns four streams, and four processes that own one each, micro-batch by micro-batch."""
    alone = [open_(stage, Stream(7, index, 4, 3, 8), lanes=1) for index in range(4)]
    together = [open_(stage, Stream(7, index, 4, 3, 8), lanes=1) for index in range(4)]
    read = {}
    for index, stream in enumerate(alone):
        for turn in range(6):
            read[turn, index] = next(stream)
    for turn in range(6):
        for index, stream in enumerate(together):
            assert same(next(stream), read[turn, index])
    rows = Counter(
        key + source for batch in read.values() for key, source in zip(batch["keys"], batch["sources"], strict=True)
    )
    # 72 rows of 29 or 14 out of 40 samples: no stream reads what another has read.
    assert stage != "instruct" or max(rows.values()) == 1


@pytest.mark.parametrize("stage", STAGES)
def test_workers_change_nothing(open_, stage):
    streams = [open_(stage, workers=workers) for workers in (0, 1, 3)]
    assert [stream.workers for stream in streams] == [0, 1, 3]
    for _ in range(8):
        first, *others = [next(stream) for stream in streams]
        assert all(same(first, other) for other in others)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("before", "after"), [(2, 2), (3, 0), (0, 2)])
def test_a_resume_in_mid_epoch_is_exact_with_any_workers(open_, stage, before, after):
    stream = open_(stage, workers=before)
    for _ in range(9):
        next(stream)
    state = pickle.loads(pickle.dumps(stream.state_dict()))
    wanted = [next(stream) for _ in range(7)]
    resumed = open_(stage, workers=after)
    next(resumed)  # what it read before does not matter
    resumed.load_state_dict(state)
    for batch in wanted:
        assert same(next(resumed), batch)
    if stage != "lm":
        assert resumed.report() == stream.report()
    assert resumed.state_dict()["lanes"] == stream.state_dict()["lanes"]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_stopped_anywhere_and_as_often_as_one_likes_a_stream_goes_on_with_the_same_batches(open_, data):
    stage = data.draw(st.sampled_from(STAGES))
    cuts = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=5))
    whole, stopped = open_(stage), open_(stage)
    for batches in cuts:
        assert all(same(next(stopped), next(whole)) for _ in range(batches))
        state = pickle.loads(pickle.dumps(stopped.state_dict()))
        stopped = open_(stage)
        stopped.load_state_dict(state)
        assert same(next(stopped), next(whole))


def test_the_drawn_example_is_what_is_read(tmp_path, open_):
    """Rows, worker and state of `data_stream`'s drawing: 2 sources 2 : 1, 2 streams, 4 lanes, 2 workers, 3 rows."""
    size = 200
    for name in "AB":
        lines = (json.dumps({"caption": f"{name} {number}"}) for number in range(size))
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    sources = {
        name: SourceConfig(str(tmp_path / f"{name}.jsonl"), weight=weight) for name, weight in (("A", 2), ("B", 1))
    }
    orders = {name: Order(seed_of("order", 5, name), size, 4, 4) for name in "AB"}
    position = {name: {order[place]: place for place in range(size)} for name, order in orders.items()}
    drawn = re.findall(
        r"step (\d) +lane (\d) +(\w+) +(\w+) +(\w+) +lane (\d) +(\w+) +(\w+) +(\w+)", data_stream.__doc__
    )
    assert [line[0] for line in drawn] == list("01234")

    def read(batch):
        numbers = [int(key.rpartition("/")[2]) for key in batch["keys"]]
        return [f"{name}{position[name][number]}" for name, number in zip(batch["sources"], numbers, strict=True)]

    streams = [open_("align", Stream(5, index, 2, 3, 2), sources=sources, lanes=4, workers=2) for index in (0, 1)]
    for step, (_, lane, *rows) in enumerate(drawn):
        assert int(lane) == step % 4
        assert [read(next(stream)) for stream in streams] == [rows[:3], rows[4:]]
    state = streams[0].state_dict()
    assert state["number"] == 5
    assert {name: state["lanes"][name] for name in ("0/A", "0/B", "1/A")} == {
        "0/A": (4, 0),
        "0/B": (2, 0),
        "1/A": (2, 0),
    }
    resumed = open_("align", Stream(5, 0, 2, 3, 2), sources=sources, lanes=4, workers=0)
    resumed.load_state_dict(state)
    assert read(next(resumed)) == ["A17", "B9", "A25"]


def test_a_state_is_small_and_plain(open_):
    stream = open_("instruct")
    next(stream)
    state = stream.state_dict()

    def check(value):
        if isinstance(value, dict):
            assert all(isinstance(key, str) for key in value)
            value = list(value.values())
        if isinstance(value, list | tuple):
            return all(check(item) for item in value)
        return isinstance(value, int | float | str)

    assert check(state)
    assert len(pickle.dumps(state)) < 10_000


def test_a_state_of_another_layout_is_refused_with_the_way_out(open_):
    state = open_("align", lanes=6).state_dict()
    with pytest.raises(DataError, match=r"for 1 streams of 6 lanes, this run has 1 of 12.*Set both as they were"):
        open_("align").load_state_dict(state)


def test_a_source_that_has_changed_since_the_state_was_taken_is_named(tmp_path, open_, caplog):
    path = _with_bad(tmp_path / "pairs", {})
    stream = open_("instruct", sources={"web": SourceConfig(path)})
    next(stream)
    state = stream.state_dict()
    (tmp_path / "pairs").rename(tmp_path / "moved")
    path = str(tmp_path / "moved")
    open_("instruct", sources={"web": SourceConfig(path)}).load_state_dict(state)
    assert not caplog.text
    (tmp_path / "moved" / "00001.tar").rename(tmp_path / "moved" / "z.tar")
    open_("instruct", sources={"web": SourceConfig(path)}).load_state_dict(state)
    assert "Source web has other files than before, by name or size: it is read in a new order" in caplog.text
    (tmp_path / "moved" / "00003.tar").unlink()
    open_("instruct", sources={"web": SourceConfig(path)}).load_state_dict(state)
    assert "Source web had 100 samples and has 90 now" in caplog.text


def test_captions_without_pictures_are_enough_for_align(tmp_path, open_):
    (tmp_path / "c.jsonl").write_text('{"caption": "a dog"}\n{"caption": ""}\n{"caption": "a cat"}\n')
    stream = open_("align", one_stream(2), sources={"web": SourceConfig(str(tmp_path / "c.jsonl"))}, max_bad=90)
    assert {key for _ in range(6) for key in next(stream)["keys"]} == {"c.jsonl/0", "c.jsonl/2"}
    assert stream.report()["web/bad/empty caption"] > 0


def test_every_sample_is_read_once_per_epoch(open_, folder):
    stream = open_("instruct", sources={"pairs": SourceConfig(str(folder / "pairs"))}, lanes=4)
    keys = [key for _ in range(20) for key in next(stream)["keys"]]  # ten of 40 samples per lane, twice
    assert sorted(Counter(keys).values()) == [2] * 40
    assert keys[:40] != keys[40:]


def test_augmentations_are_drawn_anew_in_every_epoch(open_):
    streams = open_("instruct", one_stream(5))
    drawn: dict[str, set] = {}
    for _ in range(100):
        batch = next(streams)
        for row, (key, source) in enumerate(zip(batch["keys"], batch["sources"], strict=True)):
            if source == "compositional":
                drawn.setdefault(key, set()).add(tuple(batch["token_ids"][row].tolist()[:12]))
    assert sum(len(variants) > 1 for variants in drawn.values()) > len(drawn) / 2


def test_the_sources_of_instruct_are_mixed_2_2_1(open_):
    stream = open_("instruct", one_stream(5, 2))
    counted = [Counter(next(stream)["sources"]) for _ in range(8)]
    assert all(count == {"compositional": 2, "edit": 2, "pairs": 1} for count in counted)


def test_the_token_quotas_of_lm_hold_over_steps(open_):
    stream = open_("lm", one_stream(6))
    total = sum((Counter(next(stream)["sources"]) for _ in range(20)), Counter())
    assert total == {"text": 50, "pairs": 50, "interleaved": 20}


@pytest.mark.parametrize("stage", STAGES)
def test_a_batch_is_what_its_stage_reads(open_, stage, tiny_tokenizer):
    batch = next(open_(stage, one_stream(6)))
    rows = len(batch["token_ids"])
    assert batch["token_ids"].dtype == torch.int64
    assert rows == 6 == len(batch["keys"]) == len(batch["sources"])
    assert (batch["token_ids"][:, 0] == 0).all()
    if stage == "align":
        assert set(batch) == {"token_ids", "clip_ids", "keys", "sources"}
        assert batch["clip_ids"].shape == (6, 77)
        return
    images = batch["image_mask"].sum().item() // tiny_tokenizer.latents
    assert batch["pixels"].shape == (images, 3, 224, 224)
    assert batch["pixels"].dtype == torch.float32
    assert (batch["token_ids"][batch["image_mask"]] == tiny_tokenizer.ids.image_start).all()
    if stage == "lm":
        assert batch["token_ids"].shape == batch["loss_mask"].shape == (6, 128)
        targets = batch["token_ids"][batch["loss_mask"]]
        assert not set(targets.tolist()) & {0, 1, tiny_tokenizer.ids.image_start, tiny_tokenizer.ids.image_end}
        others = batch["token_ids"][~batch["loss_mask"]]
        assert set(others.tolist()) <= {0, 1, tiny_tokenizer.ids.image_start, tiny_tokenizer.ids.image_end}
        assert (targets == 2).any()
    else:
        assert batch["target"].shape == (6, 3, 32, 32)
        assert -1 <= batch["target"].min() < batch["target"].max() <= 1
        assert 2 not in batch["token_ids"]  # no </s>


def test_a_batch_without_pictures_has_none(open_, folder):
    sources = {"text": SourceConfig(str(folder / "text"))}
    batch = next(open_("lm", sources=sources))
    assert batch["pixels"] is None
    assert not batch["image_mask"].any()


def _with_bad(folder, bad, samples=100):
    """Pairs of which some are spoilt: {number: function of the parts}."""
    parts = list(pair_samples(random.Random(0), samples, 32))
    for number, spoil in bad.items():
        parts[number] = spoil(dict(parts[number]))
    write_tars(folder, parts, 30)
    return str(folder)


def _without(name):
    return lambda parts: {part: content for part, content in parts.items() if part != name}


def _changed(name, content):
    return lambda parts: parts | {name: content(parts[name]) if callable(content) else content}


def _png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


SPOILT = {
    3: (_changed("jpg", lambda content: content[:200]), "corrupt picture"),
    20: (_changed("jpg", b"GIF89a"), "corrupt picture"),
    33: (_without("jpg"), "missing picture"),
    50: (_changed("txt", b"  \n"), "empty caption"),
    51: (_changed("txt", "\u00e9t\u00e9".encode("latin-1")), "caption is not UTF-8"),
    52: (lambda parts: {"jpg": parts["jpg"]}, "missing caption"),
    90: (_changed("json", b"{"), "bad json"),
}


@pytest.mark.parametrize("workers", [0, 2])
def test_unusable_samples_are_passed_over_and_counted_by_reason(tmp_path, open_, workers):
    path = _with_bad(tmp_path / "pairs", {number: spoil for number, (spoil, _) in SPOILT.items()})
    stream = open_("instruct", one_stream(10), sources={"web": SourceConfig(path)}, workers=workers, max_bad=10)
    keys = [key for _ in range(14) for key in next(stream)["keys"]]
    bad = {f"{number:09d}" for number in SPOILT}
    assert not bad & {key.rpartition("/")[2] for key in keys}
    assert len(set(keys)) == 93
    reasons = Counter(reason for _, reason in SPOILT.values())
    counted = {name.rpartition("/")[2]: count for name, count in stream.report().items() if "/bad/" in name}
    assert all(counted[reason] >= count for reason, count in reasons.items())
    assert stream.report()["web/seen"] >= 140
    assert stream.report()["web/size"] == 100


def test_too_many_unusable_samples_stop_the_run_with_their_list(tmp_path, open_):
    spoilt = {number: _changed("jpg", b"no picture") for number in range(0, 100, 10)}
    path = _with_bad(tmp_path / "pairs", spoilt)
    stream = open_("instruct", one_stream(10), sources={"web": SourceConfig(path)}, workers=1)
    with pytest.raises(TooManyBad, match="more than max_bad = 5 %") as caught:
        [next(stream) for _ in range(20)]
    assert 8 <= len(caught.value.listing) <= 20
    assert all("corrupt picture" in line for line in caught.value.listing)
    assert "lint" in str(caught.value)


def test_just_max_bad_per_cent_are_allowed_and_no_source_is_judged_early():
    counts = SkipCounts(max_bad=5)
    bad = [Skip("web", str(number), "corrupt picture", False) for number in range(11)]
    counts.add({"web": 199}, bad)  # more than 5 %, of too few
    counts.add({"web": 21}, [])  # 11 of 220 are just 5 %
    with pytest.raises(TooManyBad, match=r"12 of 221 samples read are unusable \(5\.4 %\)"):
        counts.add({"web": 1}, bad[:1])


def test_a_source_is_judged_as_soon_as_enough_of_it_is_read():
    counts = SkipCounts(max_bad=5)
    with pytest.raises(TooManyBad):
        counts.add({"web": 200}, [Skip("web", str(number), "corrupt picture", False) for number in range(11)])


def test_a_source_too_small_to_be_judged_is_judged_at_the_end_of_its_epoch(tmp_path, open_):
    path = _with_bad(tmp_path / "pairs", {number: _changed("jpg", b"no picture") for number in (3, 7)}, samples=20)
    stream = open_("instruct", one_stream(3), sources={"web": SourceConfig(path)})
    with pytest.raises(TooManyBad, match="of 2"):
        [next(stream) for _ in range(7)]


def test_a_lane_stays_with_one_worker(open_):
    wanted = {(6, 4): 3, (6, 6): 6, (6, 9): 6, (7, 3): 1, (6, 0): 0}
    assert {(lanes, n): open_("align", lanes=lanes, workers=n).workers for lanes, n in wanted} == wanted


def test_workers_that_were_killed_long_ago_are_forgiven(open_):
    stream = open_("align")
    for number in (0, 1000, 2000, 2001, 3002):  # each within 1,000 micro-batches of the one before, but the last
        stream._number = number
        stream._note_loss("DataLoader worker (pid 1) is killed")
        lost = stream._lost
        assert lost == {0: 1, 1000: 2, 2000: 3, 2001: 4, 3002: 1}[number]


def test_a_source_of_nothing_but_bad_samples_stops_at_once(tmp_path, open_):
    path = _with_bad(tmp_path / "pairs", {number: _without("jpg") for number in range(100)})
    source = SourceConfig(path, kind="captions")
    with pytest.raises(DataError, match=r"200 samples in a row are unusable \(missing picture\)"):
        next(open_("instruct", sources={"web": source}, workers=2))


def test_samples_left_out_on_purpose_are_counted_but_are_no_fault(tmp_path, open_, folder):
    stream = open_("align", one_stream(4), max_clip_tokens=40, max_bad=0)
    for _ in range(20):
        next(stream)
    report = stream.report()
    assert report["pairs/filtered/caption too long for CLIP"] > 10
    assert not any("/bad/" in name for name in report)
    everything = open_("instruct", sources={"pairs": SourceConfig(str(folder / "pairs"))}, min_side=49)
    with pytest.raises(DataError, match="left out, the last one because of: picture too small"):
        next(everything)


@pytest.mark.parametrize("most", [75, 1000])
def test_captions_end_where_clip_would_cut_them(tmp_path, open_, most):
    letters = {"exact": "a" * 75, "longer": "a" * 76}
    write_tars(tmp_path / "captions", [{"txt": letters["exact"].encode()}, {"txt": letters["longer"].encode()}], 10)
    sources = {"captions": SourceConfig(str(tmp_path / "captions"))}
    stream = open_("align", one_stream(1), sources=sources, max_tokens=1000, max_clip_tokens=most, max_bad=0)
    for _ in range(6):
        batch = next(stream)
        assert batch["keys"] == ["00000.tar/000000000"]
        assert (batch["clip_ids"][0] == 64).sum() == 74  # "a" inside the word; its last letter is a piece of its own
    assert stream.report()["captions/filtered/caption too long for CLIP"] > 0


def test_a_kind_that_the_stage_cannot_use_is_a_sentence(open_, folder):
    with pytest.raises(DataError, match=r"is of kind edit; stage lm reads captions, interleaved, original-laion, text"):
        open_("lm", sources={"edits": SourceConfig(str(folder / "edit"))})
    with pytest.raises(DataError, match="no data"):
        open_("lm", sources={})


def test_a_source_that_is_not_there_is_named(open_, tmp_path):
    missing = tmp_path / "missing"
    with pytest.raises(DataError, match=rf"^data\.sources\.words: The data folder {missing} does not exist"):
        open_("lm", sources={"words": SourceConfig(str(missing))})


def test_a_truncated_tar_is_read_up_to_its_break(tmp_path, open_, caplog):
    path = _with_bad(tmp_path / "pairs", {})
    broken = tmp_path / "pairs" / "00001.tar"
    broken.write_bytes(broken.read_bytes()[:20_000])
    with caplog.at_level(logging.WARNING):
        stream = open_("align", one_stream(10), sources={"web": SourceConfig(path)})
    assert "00001.tar: truncated tar" in caplog.text
    keys = {key for _ in range(12) for key in next(stream)["keys"]}
    assert {key.partition("/")[0] for key in keys} == {f"0000{number}.tar" for number in range(4)}
    counts = {name: count for name, count in stream.report().items() if "/bad/" in name}
    assert counts == {"web/bad/truncated tar": 1}
    other = open_("align", Stream(0, 1, 2, 10, 1), sources={"web": SourceConfig(path)})
    assert other.report() == {"web/size": stream.report()["web/size"]}  # told once, by the first stream


@pytest.mark.parametrize(
    ("mode", "kind"), [("CMYK", "JPEG"), ("L", "JPEG"), ("RGBA", "PNG"), ("P", "PNG"), ("I;16", "PNG"), ("1", "PNG")]
)
def test_pictures_of_every_mode_become_rgb(tmp_path, open_, mode, kind):
    file = io.BytesIO()
    image = Image.new("L", (40, 50), 200)
    Image.new("I;16", (40, 50), 51400).save(file, kind) if mode == "I;16" else image.convert(mode, dither=0).save(
        file, kind
    )
    write_tars(tmp_path / "pairs", [{("jpg" if kind == "JPEG" else "png"): file.getvalue(), "txt": b"grey"}], 10)
    stream = open_("instruct", one_stream(1), sources={"web": SourceConfig(str(tmp_path / "pairs"))}, max_bad=0)
    target = next(stream)["target"]
    level = 255 if mode == "1" else 200
    assert (target - (level / 127.5 - 1)).abs().max() < 0.02
