"""Data as it comes from outside: every ending, nothing left out in silence, one broken sample is one counted sample."""

import io
import json
import os
import random
import tarfile

import pytest

from training.base.errors import TrainingStopped
from training.data import lint
from training.data.convert import __main__ as convert
from training.data.cookers import cook, kind_of
from training.data.data_config import DataConfig
from training.data.index import RECORD, DataError, index_dataset
from training.data.original_cookers import placed_entities
from training.data.reader import Reader, detect_kind
from training.data.sample_types import BadSample
from training.data.synthetic import encoded, random_scene

IMAGE = encoded(random_scene(random.Random(0), 32, 1).image())
PIXELS = int(DataConfig.max_megapixels * 1e6)


def tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def read(path, kind="auto", number=0):
    dataset = index_dataset(path)
    kind = detect_kind(dataset) if kind == "auto" else kind
    return kind, cook(kind, Reader(dataset, kind)[number], PIXELS)


@pytest.mark.parametrize("ending", ["JPG", "Jpeg", "PNG", "webp", "BMP", "gif", "tif", "TIFF", "avif", "jfif"])
@pytest.mark.parametrize("text", ["TXT", "caption"])
def test_endings_count_in_any_case(tmp_path, ending, text):
    kind, sample = read(tar(tmp_path / "SET.TAR", [(f"000.{ending}", IMAGE), (f"000.{text}", b"a dog")]))
    assert (kind, sample.caption, sample.image) == ("captions", "a dog", IMAGE)


def test_a_format_that_is_not_read_is_named_and_its_caption_is_no_document(tmp_path, capsys):
    path = tar(tmp_path / "set.tar", [("000.heic", b"..."), ("000.txt", b"a dog")])
    with pytest.raises(BadSample, match=r"none of the known layouts \(nothing reads files that end in heic\)"):
        read(path)
    assert lint.main([str(path)]) == 2
    assert "heic" in capsys.readouterr().err


def test_lint_counts_samples_without_a_picture_and_names_parts_that_are_not_read(tmp_path):
    members = [("0.jpg", IMAGE), ("0.txt", b"a dog"), ("1.txt", b"a cat"), ("1.seg0.heic", b"x")]
    lint.main([str(tar(tmp_path / "set" / "a.tar", members).parent), "--json", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["kind"] == "captions"
    assert found["without_picture"] == 1
    assert found["odd"] == {"part not read: .heic": ["a.tar/1"]}


@pytest.mark.parametrize("beside", ["b.jsonl", "b.tsv", "b.tar.gz", "b.TGZ", "b.tar.zst", "b.jsonl.gz"])
def test_half_a_data_set_is_refused_by_name(tmp_path, beside):
    tar(tmp_path / "a.tar", [("0.txt", b"a dog")])
    (tmp_path / beside).write_bytes(b'{"text": "a dog"}\n')
    with pytest.raises(DataError, match=beside.replace(".", r"\.")):
        index_dataset(tmp_path)


def test_linked_folders_are_read_and_loops_end(tmp_path):
    tar(tmp_path / "set" / "real" / "a.tar", [("0.txt", b"a dog")])
    tar(tmp_path / "elsewhere" / "b.tar", [("0.txt", b"a cat")])
    os.symlink(tmp_path / "elsewhere", tmp_path / "set" / "linked")
    os.symlink(tmp_path / "set", tmp_path / "set" / "real" / "loop")
    dataset = index_dataset(tmp_path / "set")
    assert [shard.name for shard in dataset.shards] == ["linked/b.tar", "real/a.tar"]
    os.symlink(tmp_path / "gone.tar", tmp_path / "set" / "c.tar")
    with pytest.raises(DataError, match=r"c\.tar is a link to a file that is not there"):
        index_dataset(tmp_path / "set")


def test_a_file_that_comes_twice_in_a_sample_is_counted(tmp_path):
    path = tar(tmp_path / "a.tar", [("0.txt", b"a dog"), ("0.txt", b"a cat"), ("1.jpg", IMAGE), ("1.JPG", IMAGE)])
    for number in (0, 1):
        with pytest.raises(BadSample, match="the same file twice"):
            read(path, "captions", number)


def test_what_macos_puts_beside_every_file_is_no_sample(tmp_path):
    names = [f"cats/{hidden}{key}.{ending}" for key in "ab" for ending in ("jpg", "txt") for hidden in ("._", "")]
    tar(tmp_path / "0.tar", [(name, IMAGE if name.endswith("jpg") else b"a cat") for name in names])
    dataset = index_dataset(tmp_path)
    assert not dataset.damaged
    assert [read(tmp_path, number=number)[1].caption for number in range(len(dataset))] == ["a cat", "a cat"]


def test_an_unsorted_tar_is_refused_with_the_way_out(tmp_path):
    path = tar(tmp_path / "a.tar", [("0.jpg", IMAGE), ("1.jpg", IMAGE), ("0.txt", b"a dog"), ("1.txt", b"a cat")])
    with pytest.raises(DataError, match="members of a sample are not next to each other; pack them anew"):
        index_dataset(path)


DEEP = b'{"caption": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"
HOSTILE = {
    "deep json": ("captions", {"jpg": IMAGE, "json": DEEP}, "bad json"),
    "infinite span": (
        "compositional",
        {"jpg": IMAGE, "0.jpg": IMAGE, "json": b'{"caption": "a dog", "entities": [{"span": [0, Infinity]}]}'},
        "bad span",
    ),
    "digit that is none": ("edit", {"\u00b2_0.jpg": IMAGE, "json": b'{"edit": "x"}'}, "missing picture"),
    "5,000 digits": ("edit", {"1" * 5000 + "_0.jpg": IMAGE, "json": b'{"edit": "x"}'}, "missing picture"),
    "list for a name": ("interleaved", {"json": b'{"segments": [{"image": ["a"]}]}'}, "bad segments"),
    "name of the reader's": ("interleaved", {"json": b'{"segments": [{"image": "__key__"}]}'}, "missing picture"),
    "integer of 5,000 digits": ("captions", {"json": b'{"caption": ' + b"1" * 5000 + b"}"}, "bad json"),
    "one image 10,000 times": (
        "interleaved",
        {"0.jpg": IMAGE, "json": json.dumps({"segments": [{"image": "0.jpg"}] * 10_000}).encode()},
        "too many pictures",
    ),
    "alternatives without an end": (
        "original-openimage",
        {"tsv": b"a dog\t" + b"(a|a)" * 30 + b"b," + b"a" * 40 + b"\teA==\teA==\teA=="},
        "bad entity name",
    ),
    "20,000 names": (
        "original-openimage",
        {"tsv": b"a dog\t" + b"a," * 20_000 + b"\teA==\teA==\teA=="},
        "too many entity names",
    ),
    "image twice as wide": ("captions", {"jpg": IMAGE, "txt": b"a dog"}, "picture too large"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_sample_is_one_counted_sample(name):
    kind, parts, reason = HOSTILE[name]
    crude = {"__key__": "x", "__restore_key__": (), "__subflavors__": None} | parts
    kind_of(crude)
    with pytest.raises(BadSample, match=reason):
        cook(kind, crude, PIXELS if reason != "picture too large" else 1000)


@pytest.mark.parametrize("part", ["jpg", "0.jpg", "0.mask.png", "0.white.jpg"])
def test_every_picture_of_a_sample_has_a_largest_size(part):
    large = encoded(random_scene(random.Random(0), 33, 1).image())
    parts = dict.fromkeys(("jpg", "0.jpg", "0.mask.png", "0.white.jpg"), IMAGE)
    crude = {"__key__": "x", "__restore_key__": (), "__subflavors__": None} | parts
    crude["json"] = b'{"caption": "a dog", "entities": [{"span": [0, 5]}]}'
    assert cook("compositional", crude, 32 * 32).entities
    with pytest.raises(BadSample, match="picture too large"):
        cook("compositional", crude | {part: large}, 32 * 32)


def test_as_many_pictures_and_names_as_are_allowed_are_sound(monkeypatch):
    monkeypatch.setattr("training.data.cookers.MOST_IMAGES", 3)
    monkeypatch.setattr("training.data.original_cookers.MOST_NAMES", 2)
    monkeypatch.setattr("training.data.original_cookers.LONGEST_NAME", 3)
    crude = {"__key__": "x", "__restore_key__": (), "__subflavors__": None, "0.jpg": IMAGE}
    document = {"segments": [{"image": "0.jpg"}] * 3}
    assert len(cook("interleaved", crude | {"json": json.dumps(document).encode()}, PIXELS).segments) == 3
    assert len(placed_entities("a dog, a cat", ["dog", "cat"])) == 2
    for names in (["dog", "cat", "a"], ["dogs"]):
        with pytest.raises(BadSample, match="too many entity names"):
            placed_entities("a dog, a cat", names)


def test_members_that_claim_more_than_they_hold_are_refused(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as file:
        sparse = tarfile.TarInfo("0.txt")
        sparse.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.name": "0.txt",
                              "GNU.sparse.size": str(8 * 10**9), "GNU.sparse.map": "0,5"}  # fmt: skip
        sparse.size = 5
        file.addfile(sparse, io.BytesIO(b"a dog"))
        for name, size in (("1.txt", 3_000_000), ("2.txt", 5)):
            info = tarfile.TarInfo(name)
            info.size = size
            file.addfile(info, io.BytesIO(b"x" * size))
    reader = Reader(index_dataset(path), "text", max_megabytes=2)
    for number, reason in ((0, "sparse file"), (1, "file too large")):
        with pytest.raises(BadSample, match=reason):
            reader[number]
    assert reader[2]["txt"] == b"xxxxx"


def test_a_size_that_cannot_be_is_a_damaged_file(tmp_path):
    tar(tmp_path / "a.tar", [("0.txt", b"a dog")])
    with tarfile.open(tmp_path / "b.tar", "w", format=tarfile.PAX_FORMAT) as file:
        for name in ("README", "0.txt"):  # the first is no part of a sample: it is only passed over
            info = tarfile.TarInfo(name)
            info.pax_headers = {"size": "1" + "0" * 20}
            file.addfile(info, io.BytesIO())
    dataset = index_dataset(tmp_path)
    assert len(dataset) == 1
    assert [shard.name for shard in dataset.damaged] == ["b.tar"]


def test_an_edited_input_is_noticed_by_convert(tmp_path, capsys):
    source = tmp_path / "source" / "0000001"
    source.mkdir(parents=True)
    for moment in (0, 1):
        (source / f"7_{moment}.jpg").write_bytes(IMAGE)
    (source / "prompt.json").write_text('{"edit": "make it night"}')
    command = ["instructpix2pix", str(source.parent), str(tmp_path / "out"), "--workers", "1"]
    assert convert.main(command) == 0
    assert convert.main(command) == 0
    times = os.stat(source / "prompt.json")
    (source / "prompt.json").write_text('{"edit": "make it light"}')  # of the same size, and dated back
    os.utime(source / "prompt.json", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert convert.main(command) == 2
    assert "holds a conversion with another content" in capsys.readouterr().err


@pytest.mark.parametrize("record", [b"[]", b"{", b'{"a.tar": [1]}', b'{"a.tar": {"name": 1}}', b"[" * 200_000, b"\xff"])
def test_an_index_record_that_is_none_is_made_anew(tmp_path, record):
    tar(tmp_path / "a.tar", [("0.txt", b"a dog")])
    index_dataset(tmp_path)
    (tmp_path / RECORD).write_bytes(record)
    assert len(index_dataset(tmp_path)) == 1


def test_lines_in_utf_16_are_named_and_a_mark_is_no_text(tmp_path):
    (tmp_path / "a.jsonl").write_bytes('{"text": "a dog"}\r\n'.encode("utf-8-sig"))
    assert read(tmp_path)[1].text == "a dog"
    (tmp_path / "b.jsonl").write_bytes('{"text": "a dog"}\n'.encode("utf-16"))
    assert "UTF-16" in index_dataset(tmp_path).damaged[0].problem


def test_keys_from_data_do_not_steer_the_terminal(tmp_path, capsys):
    members = [("x[/red]y.txt", b" "), ("x\x1b[31m.txt", b" "), ("z.txt", b"a dog")]
    assert lint.main([str(tar(tmp_path / "a[/b].tar", members)), "--sheet", str(tmp_path / "s.png")]) == 1
    shown = capsys.readouterr().out
    assert "x[/red]y" in shown
    assert "\x1b[31mx" not in shown
    assert "\\x1b" in shown


def test_an_error_that_stops_the_run_is_no_bad_sample(monkeypatch):
    from training.data import cookers

    def stop(crude):
        raise TrainingStopped("disk full")

    monkeypatch.setitem(cookers.COOKERS, "text", stop)
    with pytest.raises(TrainingStopped):
        cook("text", {}, PIXELS)
