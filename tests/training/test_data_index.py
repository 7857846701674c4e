"""Finding, indexing and reading data files."""

import io
import json
import multiprocessing
import os
import random
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pytest

from training.data.index import RECORD, DataError, index_dataset, sample_offsets
from training.data.reader import Reader, detect_kind
from training.data.sample_types import BadSample
from training.data.synthetic import LAYOUTS, pair_samples, text_samples, write_tars


@pytest.fixture
def pairs(tmp_path):
    write_tars(tmp_path / "pairs", pair_samples(random.Random(0), 25, 32), per_shard=10)
    return tmp_path / "pairs"


def _tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def test_a_folder_of_tars_needs_no_preparation(pairs):
    dataset = index_dataset(pairs)
    assert [(shard.name, shard.count) for shard in dataset.shards] == [
        ("00000.tar", 10),
        ("00001.tar", 10),
        ("00002.tar", 5),
    ]
    reader = Reader(dataset, "captions")
    made = list(pair_samples(random.Random(0), 25, 32))
    for index in random.Random(1).sample(range(25), 25):
        crude = reader[index]
        assert {part: crude[part] for part in made[index]} == made[index]
        assert crude["__key__"].endswith(f"{index:09d}")


def test_the_index_is_byte_for_byte_what_energon_writes(pairs, tmp_path):
    index_dataset(pairs)
    other = tmp_path / "other"
    other.mkdir()
    for tar in pairs.glob("*.tar"):
        (other / tar.name).write_bytes(tar.read_bytes())
    from megatron.energon.flavors.webdataset.prepare import WebdatasetPreparator

    WebdatasetPreparator.prepare_dataset(
        other, [tar.name for tar in sorted(other.glob("*.tar"))], split_parts_ratio=[("train", 1)], workers=1
    )
    for index in sorted(other.glob("*.tar.idx")):
        ours = np.fromfile(pairs / index.name, "<u8")
        theirs = np.fromfile(index, "<u8")
        assert ours[:-1].tolist() == theirs[:-1].tolist()
    assert len(index_dataset(other)) == 25  # an index made by Energon is used as it is
    assert np.array_equal(np.fromfile(other / "00000.tar.idx", "<u8"), sample_offsets(other / "00000.tar"))


def test_energon_opens_the_folder_afterwards_with_our_cookers(pairs):
    index_dataset(pairs)
    from megatron.energon import Cooker, DefaultTaskEncoder, WorkerConfig, get_loader, get_train_dataset

    from training.data.cookers import cook_caption
    from training.data.sample_types import CaptionSample

    class Encoder(DefaultTaskEncoder):
        decoder = None
        cookers = (Cooker(cook_caption),)

        def batch(self, samples):
            return samples

        def encode_batch(self, batch):
            return batch

    dataset = get_train_dataset(
        pairs,
        batch_size=5,
        shuffle_buffer_size=None,
        max_samples_per_sequence=None,
        worker_config=WorkerConfig(rank=0, world_size=1, num_workers=0),
        task_encoder=Encoder(),
        repeat=False,
    )
    read = [sample for batch in get_loader(dataset) for sample in batch]
    assert all(isinstance(sample, CaptionSample) for sample in read)
    wanted = [parts["txt"].decode() for parts in pair_samples(random.Random(0), 25, 32)]
    assert sorted(sample.caption for sample in read) == sorted(wanted)


def test_a_truncated_tar_gives_its_sound_samples_and_is_named(pairs):
    whole = (pairs / "00001.tar").read_bytes()
    offsets = np.fromfile(_indexed(pairs) / "00001.tar.idx", "<u8")
    (pairs / "00001.tar").write_bytes(whole[: int(offsets[6]) + 700])  # in the picture of the seventh sample
    dataset = index_dataset(pairs)
    assert [(shard.count, shard.problem) for shard in dataset.shards] == [(10, None), (6, "truncated tar"), (5, None)]
    reader = Reader(dataset, "captions")
    assert [reader[index]["__key__"] for index in (15, 16)] == ["00001.tar/000000015", "00002.tar/000000020"]


def _indexed(folder):
    index_dataset(folder)
    return folder


@pytest.mark.parametrize("content", [b"", b"not a tar at all" * 100, None])
def test_a_file_that_is_no_tar_is_left_out_and_named(pairs, content):
    broken = pairs / "00001.tar"
    broken.write_bytes(broken.read_bytes()[:300] if content is None else content)
    dataset = index_dataset(pairs)
    assert len(dataset) == 15
    assert [shard.name for shard in dataset.damaged] == ["00001.tar"]
    assert json.loads((pairs / RECORD).read_text())["00001.tar"]["problem"] == "truncated tar"


def test_a_damaged_header_ends_the_shard_there_and_is_named(pairs):
    offsets = np.fromfile(_indexed(pairs) / "00000.tar.idx", "<u8")
    content = bytearray((pairs / "00000.tar").read_bytes())
    content[int(offsets[4]) + 100 : int(offsets[4]) + 300] = b"\xff" * 200
    before = (pairs / "00000.tar").stat().st_mtime_ns
    (pairs / "00000.tar").write_bytes(content)
    os.utime(pairs / "00000.tar", ns=(before, before + 10**9))  # a disk's clock may be coarse
    first = index_dataset(pairs).shards[0]
    assert (first.count, first.problem) == (3, "truncated tar")


def test_the_same_key_in_two_shards_is_two_samples(tmp_path):
    for shard in ("a/0.tar", "b/0.tar"):
        _tar(tmp_path / "data" / shard, [("x.txt", shard.encode())])
    reader = Reader(index_dataset(tmp_path / "data"), "text")
    assert [(reader[i]["__key__"], reader[i]["txt"]) for i in range(2)] == [
        ("a/0.tar/x", b"a/0.tar"),
        ("b/0.tar/x", b"b/0.tar"),
    ]


def test_a_changed_shard_is_indexed_anew_and_an_unchanged_one_is_not(pairs):
    index_dataset(pairs)
    before = {path.name: path.stat().st_mtime_ns for path in pairs.glob("*.idx")}
    write_tars(pairs / "more", pair_samples(random.Random(9), 3, 32), per_shard=10)
    (pairs / "more" / "00000.tar").replace(pairs / "00002.tar")
    assert [shard.count for shard in index_dataset(pairs).shards] == [10, 10, 3]
    after = {path.name: path.stat().st_mtime_ns for path in pairs.glob("*.idx")}
    assert [name for name in before if before[name] != after[name]] == ["00002.tar.idx"]


def test_lines_of_json_are_read_in_any_order(tmp_path):
    texts = [f"document {number} " * (number + 1) for number in range(20)]
    lines = "\n\n".join(json.dumps({"text": text}) for text in texts)
    (tmp_path / "corpus.jsonl").write_text(lines)
    reader = Reader(index_dataset(tmp_path / "corpus.jsonl"), "text")
    assert len(reader) == 20
    for index in (19, 0, 7):
        assert json.loads(reader[index]["json"])["text"] == texts[index]


def test_at_most_so_many_files_are_open_and_the_longest_unused_is_closed_first(pairs, monkeypatch):
    monkeypatch.setattr("training.data.reader.OPEN_FILES", 2)
    reader = Reader(index_dataset(pairs), "captions")
    for index in (0, 10, 1, 20):  # of the shards 0, 1, 0 again, 2
        assert reader[index]["__key__"].endswith(f"{index:09d}")
    assert list(reader._files) == [0, 2]


def test_a_line_and_a_file_of_just_the_most_bytes_are_read(tmp_path):
    lines = [json.dumps({"text": "x" * length}) for length in (85, 86)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
    _tar(tmp_path / "a.tar", [("0.txt", b"x" * len(lines[0]) + b"x"), ("1.txt", b"x" * len(lines[1]) + b"x")])
    for name, part, reason in (("a.jsonl", "json", "line too large"), ("a.tar", "txt", "file too large")):
        reader = Reader(index_dataset(tmp_path / name), "text", max_megabytes=(len(lines[0]) + 1) / 1e6)
        assert len(reader[0][part]) == len(lines[0]) + 1
        with pytest.raises(BadSample, match=reason):
            reader[1]


def test_the_layout_is_told_by_the_first_sample_that_tells_one(tmp_path):
    _tar(tmp_path / "a.tar", [("0.heic", b"x"), ("0.txt", b"a dog"), ("1.json", b"{"), ("2.jpg", b"x"), ("2.txt", b"")])
    assert detect_kind(index_dataset(tmp_path)) == "captions"


def test_an_index_of_another_tool_is_used_unless_the_file_is_newer(tmp_path):
    _tar(tmp_path / "a.tar", [("0.txt", b"a dog"), ("1.txt", b"a cat")])
    offsets = sample_offsets(index_dataset(tmp_path).root / "a.tar").tolist()
    index, now = tmp_path / "a.tar.idx", (tmp_path / "a.tar").stat().st_mtime_ns
    for age, count in ((0, 1), (-1, 2)):
        np.array([offsets[0], offsets[2]], "<u8").tofile(index)  # of one sample, so that it can be told apart
        os.utime(index, ns=(now + age, now + age))
        (tmp_path / RECORD).unlink()
        assert len(index_dataset(tmp_path)) == count


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_layout_of_every_kind_is_recognised(tmp_path, layout):
    write_tars(tmp_path / layout, LAYOUTS[layout](random.Random(0), 3, 32), per_shard=10)
    assert detect_kind(index_dataset(tmp_path / layout)) == {"pairs": "captions"}.get(layout, layout)


def test_a_folder_that_cannot_be_written_is_indexed_in_the_cache():
    """As another user, because the superuser may write everywhere."""
    with tempfile.TemporaryDirectory() as top:
        pairs, cache = Path(top, "pairs"), Path(top, "cache")
        write_tars(pairs, pair_samples(random.Random(0), 25, 32), per_shard=10)
        cache.mkdir()
        for folder, mode in ((Path(top), 0o755), (cache, 0o777), (pairs, 0o555)):
            folder.chmod(mode)
        context = multiprocessing.get_context("fork")
        told = context.Queue()

        def read_as_another():
            os.environ["XDG_CACHE_HOME"] = str(cache)
            if os.getuid() == 0:
                os.setuid(65534)
            told.put(index_dataset(pairs))

        process = context.Process(target=read_as_another)
        process.start()
        dataset = told.get(timeout=300)
        process.join()
        pairs.chmod(0o755)
        assert cache in dataset.root.parents
        last = list(pair_samples(random.Random(0), 25, 32))[24]
        assert Reader(dataset, "captions")[24]["txt"] == last["txt"]
        assert sorted(path.name for path in pairs.iterdir()) == ["00000.tar", "00001.tar", "00002.tar"]


def test_the_index_folder_of_the_configuration_is_used(pairs, tmp_path):
    dataset = index_dataset(pairs, tmp_path / "elsewhere")
    assert dataset.root.parent == tmp_path / "elsewhere"
    assert not list(pairs.glob("*.idx"))
    assert len(Reader(dataset, "captions")[3]["jpg"]) > 100


def test_several_processes_index_one_folder_without_harm(pairs):
    context = multiprocessing.get_context("fork")
    counts = context.Queue()
    running = [context.Process(target=lambda: counts.put(len(index_dataset(pairs)))) for _ in range(4)]
    for process in running:
        process.start()
    assert [counts.get(timeout=300) for _ in running] == [25] * 4
    for process in running:
        process.join()
    assert not list(pairs.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "holds no data file"),
        (lambda path: path.write_text("x"), "not a data file"),
        (lambda path: (path.mkdir(), (path / "a.tar.gz").write_text("x")), "Unpack the compressed files first"),
        (lambda path: (path.mkdir(), (path / "a.tar").write_text("x")), "a.tar: truncated tar"),
        (lambda path: (path.mkdir(), (path / "a.JPG").write_text("x")), "Pack loose files into a tar: tar --sort=name"),
    ],
)
def test_a_path_without_data_is_a_sentence(tmp_path, make, said):
    make(tmp_path / "data")
    with pytest.raises(DataError, match=said):
        index_dataset(tmp_path / "data")


def test_a_shard_that_vanishes_makes_its_samples_bad(pairs):
    reader = Reader(index_dataset(pairs), "captions")
    (pairs / "00001.tar").unlink()
    with pytest.raises(BadSample, match="unreadable shard"):
        reader[12]
    assert reader[3]["txt"]


def test_reading_keeps_memory_flat(tmp_path):
    """tarfile remembers every header that it has read unless it is made to forget."""
    write_tars(tmp_path / "text", text_samples(random.Random(0), 50, 32), per_shard=50)
    reader = Reader(index_dataset(tmp_path / "text"), "text")
    for index in range(50):
        reader[index]
    assert all(not tar.members for tar in reader._files.values())
