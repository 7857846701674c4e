"""What has changed since an earlier run is made again; what has gone is set aside; nothing old passes for new."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from training.base.errors import ConfigError
from training.construct.__main__ import main
from training.construct.chunks import Chunk
from training.construct.construct_config import SegmentConfig
from training.construct.input_shards import InputShard
from training.construct.masks import Region
from training.construct.output_shards import ConstructionOutput, PendingShard
from training.construct.sample_encoding import EncodedSample

from .conftest import SMALL, settings
from .in_process import construct
from .scenes import encoded, scene, write_folder
from .shard_reading import described, samples

ANY_MASK = f"--segment.kind={__name__}:AnyMask"


class AnyMask:
    """A segmenter that finds everything in the middle of the picture."""

    def __init__(self, config: SegmentConfig):
        self.middle = Region(np.pad(np.ones((4, 4), dtype=bool), 2), 1.0)

    def __call__(self, pairs):
        return [self.middle for _ in pairs]


def tar_of(members: list[tuple[str, bytes]], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def sample(name: str, number: int, caption: str) -> list[tuple[str, bytes]]:
    return [(f"{name}.jpg", encoded(scene(number).pixels)), (f"{name}.txt", caption.encode())]


def captions(folder: Path) -> dict[str, str]:
    return {key: described(parts)["caption"] for key, parts in samples(folder).items()}


def test_corrected_caption_of_a_tar_of_the_same_size_and_date_is_taken_up(tmp_path):
    (tmp_path / "in").mkdir()
    tar, config = tmp_path / "in" / "a.tar", settings(tmp_path / "in", tmp_path / "out", ANY_MASK)
    tar.write_bytes(tar_of(sample("x", 1, "a blue ball here")))
    before = tar.stat()
    construct(config)
    tar.write_bytes(tar_of(sample("x", 1, "a fine kite here")))
    os.utime(tar, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (tar.stat().st_size, tar.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    construct(config)
    assert captions(tmp_path / "out") == {"x": "a fine kite here"}
    made = (tmp_path / "out" / "a.tar").stat().st_ino
    os.utime(tar)  # another date, the same content
    construct(config)
    assert (tmp_path / "out" / "a.tar").stat().st_ino == made


def test_corrected_caption_beside_a_picture_is_taken_up(tmp_path):
    write_folder(tmp_path / "in", range(2))
    config = settings(tmp_path / "in", tmp_path / "out", ANY_MASK)
    construct(config)
    (tmp_path / "in" / "000001.txt").write_text("a quite other ball")
    construct(config)
    assert captions(tmp_path / "out")["000001"] == "a quite other ball"


def test_shards_without_input_are_set_aside_and_come_back_with_it(tmp_path):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    config = settings(tmp_path / "in", tmp_path / "out", ANY_MASK)
    for number, name in enumerate(("a", "sub/b")):
        (tmp_path / "in" / f"{name}.tar").write_bytes(tar_of(sample(name[-1], number, "a ball in front")))
    construct(config)
    gone = tmp_path / "in" / "sub" / "b.tar"
    made = (tmp_path / "out" / "sub" / "b.tar").stat().st_ino
    gone.rename(tmp_path / "b.tar")
    stats = construct(config)
    assert (list(samples(tmp_path / "out")), stats["samples"]) == (["a"], 1)
    assert not (tmp_path / "out" / "sub" / "b.stats.json").exists()
    assert len(list((tmp_path / "out" / ".work").rglob("b.tar"))) == 1
    (tmp_path / "b.tar").rename(gone)
    construct(config)
    assert sorted(samples(tmp_path / "out")) == ["a", "b"]
    assert (tmp_path / "out" / "sub" / "b.tar").stat().st_ino == made  # not made again


def test_deleted_pictures_of_a_folder_are_in_no_shard(tmp_path):
    write_folder(tmp_path / "in", range(5))
    config = settings(tmp_path / "in", tmp_path / "out", "--shard_size=2", ANY_MASK)
    construct(config)
    for name in ("000000.jpg", "000003.jpg"):
        (tmp_path / "in" / name).unlink()
    construct(config)
    assert sorted(samples(tmp_path / "out")) == ["000001", "000002", "000004"]


def test_near_duplicate_is_kept_once_its_original_is_gone(tmp_path):
    (tmp_path / "in").mkdir()
    config = settings(tmp_path / "in", tmp_path / "out", ANY_MASK)
    for name in "ab":
        (tmp_path / "in" / f"{name}.tar").write_bytes(tar_of(sample(name, 1, "a ball in front")))
    construct(config)
    assert list(samples(tmp_path / "out")) == ["a"]
    (tmp_path / "in" / "a.tar").unlink()
    construct(config)
    assert list(samples(tmp_path / "out")) == ["b"]


def test_lost_output_is_made_again(tmp_path):
    write_folder(tmp_path / "in", range(2))
    config = settings(tmp_path / "in", tmp_path / "out", ANY_MASK)
    construct(config)
    for ending in ("*.tar", "*.tar.idx"):
        lost = next((tmp_path / "out").glob(ending))
        lost.unlink()
        construct(config)
        assert lost.is_file()
        assert len(samples(tmp_path / "out")) == 2


def test_input_of_every_shape_is_read_and_what_is_not_read_is_counted(tmp_path):
    """Two tars of one name, endings in capitals, a linked folder, a loop, a broken link, an output inside the input."""
    source = tmp_path / "in"
    for number, name in enumerate(("", "sub", "../elsewhere")):
        write_folder(source / name, range(number, number + 1))
    (source / "000000.jpg").rename(source / "000000.JPG")
    (source / "000000.txt").rename(source / "000000.TXT")
    (source / "linked").symlink_to(tmp_path / "elsewhere")
    (source / "sub" / "loop").symlink_to(source)
    (source / "broken.jpg").symlink_to(tmp_path / "nowhere")
    for name, number, mode in (("t.tar", 3, "w"), ("T.TAR.GZ", 4, "w:gz"), ("t.tgz", 5, "w:gz"), ("__t.tar", 6, "w")):
        (source / name).write_bytes(tar_of(sample(f"s{number}", number, "a ball in front"), mode))
    for name in ("photo.heic", "notes.txt", ".hidden.jpg", "LICENCE"):
        (source / name).write_text("x")
    os.mkfifo(source / "pipe.jpg")
    config = settings(source, source / "out", ANY_MASK)
    for _ in range(2):  # the second time with the output of the first inside
        stats = construct(config)
        found = captions(source / "out")
        assert {key.partition("-")[0] for key in found} == {
            "000000", "sub_000001", "linked_000002", "s3", "s4", "s5", "s6",
        }  # fmt: skip
        assert found["000000"] == scene(0).caption
        assert stats["files_left_out"] == {
            "file: .heic is not read": 1,
            "file: broken link": 1,
            "file: hidden": 1,
            "file: neither file nor folder": 1,
            "file: no ending": 1,
            "file: text without a picture": 1,
            "folder: linked a second time": 1,
        }
    assert not [path for path in (source / "out").rglob("*.tar") if path.name.startswith("__")]
    with pytest.raises(ConfigError, match="is the input itself"):
        construct(settings(source, source, ANY_MASK))


def test_other_content_of_a_model_or_of_the_csv_is_refused_by_name(tmp_path):
    write_folder(tmp_path / "in", range(1))
    table = tmp_path / "images.csv"
    table.write_text("ImageID,Rotation,License\n000000,0,x\n")
    config = settings(tmp_path / "in", tmp_path / "out", ANY_MASK, f"--open_images={table}")
    construct(config)
    table.write_text("ImageID,Rotation,License\n000000,0,y\n")
    with pytest.raises(ConfigError, match=r"the files of open_images .*images\.csv are not those that the shards"):
        construct(config)


def part_of(output, number: int, count: int, last: bool):
    """A finished chunk of so many samples, which left out an entity for each."""
    chunk = Chunk(0, number, [], [(f"{number}-gone", "picture: corrupt")], {"entity: not found": count}, last)
    made = [EncodedSample(f"{number}-{i}", {"jpg": b"x" * 600, "json": b"{}"}) for i in range(count)]
    return output.write_part(chunk, made)


def test_parts_of_a_shard_are_joined_in_the_inputs_order_and_all_of_them_count(tmp_path):
    config = settings(tmp_path, tmp_path / "out", ANY_MASK)
    output, lock = ConstructionOutput.open(config)
    shard, pending = InputShard("a", "", None, "f"), PendingShard()
    first, second, third = (part_of(output, number, number + 1, number == 2) for number in range(3))
    assert [pending.add(part) for part in (third, first, first, second)] == [False, False, False, True]
    stats = output.join(shard, list(pending.parts.values()))
    assert list(samples(tmp_path / "out")) == ["0-0", "1-0", "1-1", "2-0", "2-1", "2-2"]
    assert (stats["pictures"], stats["samples"], stats["entities_left_out"]) == (9, 6, {"entity: not found": 6})
    assert stats["pictures_left_out"] == {"picture: corrupt": ["0-gone", "1-gone", "2-gone"]}
    assert not list(output.parts.iterdir())
    output.began = True
    output.abandon()  # but for a folder that holds shards
    assert output.finished(shard)
    (tmp_path / "out" / "a.stats.json").unlink()
    output.abandon()
    assert not (tmp_path / "out").exists()
    lock.release()


def test_what_a_run_does_not_see_of_models_is_remembered_from_the_one_that_did(tmp_path):
    """On a cluster the models are not looked at; a later run on one machine still notices others."""
    config = settings(tmp_path, tmp_path / "out", ANY_MASK)
    for seen in ({"--a": "1"}, {}):
        output, lock = ConstructionOutput.open(config, seen)
        (output.folder / "a.stats.json").touch()
        output.close()
        lock.release()
    with pytest.raises(ConfigError, match="the files of --a are not those that the shards"):
        ConstructionOutput.open(config, {"--a": "2"})


def test_shards_of_a_release_with_other_rules_are_refused(tmp_path):
    write_folder(tmp_path / "in", range(1))
    config = settings(tmp_path / "in", tmp_path / "out", ANY_MASK)
    construct(config)
    record = tmp_path / "out" / "construct.json"
    record.write_text(record.read_text().replace('"rules": 2', '"rules": 1'))
    with pytest.raises(ConfigError, match="another release made by other rules"):
        construct(config)


def test_failed_start_says_one_sentence_and_leaves_no_folder(tmp_path, capsys):
    write_folder(tmp_path / "in", range(1))
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    model = tmp_path / "clipseg"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "clipseg"}')
    words = [f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'out'}", *SMALL]
    for more, said in (
        ([f"--open_images={tmp_path / 'table.csv'}"], "has no column ImageID"),
        (["--segment.kind=nowhere:Nothing"], "segment.kind: nowhere:Nothing cannot be imported"),
        (["--segment.kind=clipseg", f"--segment.model={model}"], "it holds no weights"),
        (["--segment.kind=sam3", f"--segment.model={model}"], "it is a model of type clipseg"),
        (["--entities.kind=spacy", "--entities.model=no_such"], "there is no spaCy pipeline no_such"),
    ):
        assert main([*words, *more]) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "out").exists(), said
    (model / "model.safetensors.index.json").write_text('{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}')
    (model / "1.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      cut"[:12])
    assert main([*words, "--segment.kind=clipseg", f"--segment.model={model}"]) == 2
    assert "1.safetensors is damaged" in capsys.readouterr().err
