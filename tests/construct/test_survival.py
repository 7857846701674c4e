"""Kills, crashes, a full disk: the set of samples stays the same, each exactly once, byte for byte."""

import hashlib
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from training.base.errors import ConfigError
from training.construct.output_shards import ConstructionOutput

from . import in_process
from .conftest import ROOT, SMALL, settings
from .scenes import encoded, scene, write_folder
from .shard_reading import files, samples

# A busy machine may take minutes for what a quiet one does in seconds.
pytestmark = pytest.mark.timeout(1800)

COUNT = 120
CRASHING = "tests.construct.crashing"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Six shards of twenty, three pictures twice and two that cannot be read."""
    folder = tmp_path_factory.mktemp("pictures")
    write_folder(folder, range(COUNT))
    for number in (7, 50, 51):
        (folder / f"copy-{number}.jpg").write_bytes(encoded(scene(number).pixels[::2, ::2]))
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def expected(images, tmp_path_factory):
    """What an undisturbed run writes: the stages one after the other in this process, without Ray."""
    target = tmp_path_factory.mktemp("expected")
    stats = in_process.construct(settings(images, target))
    assert stats["pictures_left_out"] == {"picture: corrupt": 1, "picture: near-duplicate": 3}
    assert stats["samples"] == len(samples(target)) == COUNT
    return {**files(target), "stats.json": json.dumps(stats, indent=1).encode()}


def test_any_numbers_of_processes_write_the_bytes_of_one_process_without_ray(images, expected, tmp_path, run):
    run(settings(images, tmp_path, "--caption.workers=2", "--entities.most_workers=2", "--segment.workers=2"))
    assert files(tmp_path) == expected


def shards_of(folder: Path | dict[str, bytes]) -> dict[str, bytes]:
    """The files that do not name the classes used."""
    found = files(folder) if isinstance(folder, Path) else folder
    return {name: content for name, content in found.items() if name != "construct.json"}


def test_model_processes_that_are_killed_are_replaced_and_nothing_is_lost_or_twice(images, expected, tmp_path, run):
    marks = tmp_path / "marks"
    marks.mkdir()
    crashing = [
        f"--{stage}.{option}"
        for stage, name in (
            ("caption", "DyingCaptioner"),
            ("entities", "DyingExtractor"),
            ("segment", "DyingSegmenter"),
        )
        for option in (f"kind={CRASHING}:{name}", f"model={marks}")
    ]
    run(settings(images, tmp_path / "out", *crashing))
    assert sorted(path.name for path in marks.iterdir()) == ["caption", "entities", "loading", "segment"]
    assert shards_of(tmp_path / "out") == shards_of(expected)


def started(command: list[str], environment: dict[str, str], before: subprocess.Popen | None = None):
    """The command under way; `before` ended by itself, which only Ray's impatience on a busy machine excuses."""
    from training.construct.ray_cluster import NO_START

    if before is not None:
        said = before.stderr.read()
        assert before.returncode == 1, f"the command ended before it was killed: {before.returncode} {said}"
        assert NO_START in said
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def test_command_that_is_killed_while_it_works_goes_on_with_every_sample_exactly_once(images, expected, tmp_path, run):
    """Killed when shards are finished; Ray dies with the command. The next test kills at many other moments."""
    target, gates = tmp_path / "out", tmp_path / "gates"
    gates.mkdir()
    gated = f"--segment.kind={CRASHING}:Gate", f"--segment.model={gates}"
    command = [sys.executable, "-m", "training.construct", f"--input={images}", f"--output={target}", *SMALL, *gated]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    # Of 18 chunks with entities in 6 shards, 15 cannot pass without finishing a shard.
    (gates / "gate").write_text("16")
    process = started(command, environment)
    while not (gates / "reached").exists() or not list(target.glob("*.stats.json")):
        if process.poll() is not None:
            process = started(command, environment, process)
        time.sleep(0.02)
    process.kill()
    process.wait()
    for path in target.glob("*.tar"):
        assert path.read_bytes() == expected[path.name], "an unfinished shard is to be seen"
    finished = {path.name: path.stat().st_mtime_ns for path in target.glob("*.stats.json")}
    assert 1 <= len(finished) < 7
    (gates / "gate").write_text("0")
    run(settings(images, target, *gated))
    assert shards_of(target) == shards_of(expected)
    again = {path.name: path.stat().st_mtime_ns for path in target.glob("*.stats.json")}
    assert finished.items() <= again.items(), "a finished shard was made again"
    assert not list(target.glob(".work/parts-*")), "unfinished parts were left behind"


def test_kills_at_ten_random_moments_never_show_an_unfinished_shard(images, expected, tmp_path):
    command = [sys.executable, "-m", "tests.construct.dying", images, tmp_path, "10", "0"]
    done = subprocess.run(map(str, command), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    runs = [json.loads(line) for line in done.stdout.splitlines()]
    assert sum(run["killed"] for run in runs) == 10
    sound = {name: hashlib.sha256(content).hexdigest() for name, content in expected.items()}
    for run in runs:
        assert run["shards"].items() <= sound.items(), "an unfinished shard is to be seen"
    for before, after in itertools.pairwise(runs):
        if before["folder"] == after["folder"]:
            assert before["finished"].items() <= after["finished"].items(), "a finished shard was made again"
    assert any(run["killed"] and 0 < len(run["finished"]) < 7 for run in runs), "no kill met a run half done"
    for run in runs:
        if not run["killed"]:
            whole = {**shards_of(tmp_path / run["folder"]), "stats.json": expected["stats.json"]}
            assert whole == shards_of(expected)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 300 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", folder]
    mounted = subprocess.run(mount, check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip("file systems cannot be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_full_disk_is_one_sentence_and_the_run_goes_on_when_there_is_room(images, expected, small_disk, run):
    """Whatever fits is finished and sound; what does not fit leaves nothing behind."""
    from training.construct.ray_cluster import ConstructionStopped

    config = settings(images, small_disk)
    with pytest.raises(
        ConstructionStopped, match=r"writing to .* failed \(No space left on device\); finished shards are kept"
    ):
        run(config)
    for name, content in files(small_disk).items():
        if name != "construct.json":
            assert content == expected[name]
    assert not list(small_disk.glob(".work/parts-*"))
    subprocess.run(["mount", "-o", "remount,size=60m", small_disk], check=True)
    in_process.construct(config)
    assert {**shards_of(small_disk), "stats.json": expected["stats.json"]} == shards_of(expected)


def test_what_a_killed_run_left_half_written_is_removed_by_the_next(images, tmp_path):
    (tmp_path / "part").mkdir()
    left = tmp_path / "part" / ".000000.tar.abc.tmp"
    left.write_bytes(b"half of it")
    output, lock = ConstructionOutput.open(settings(images, tmp_path))
    assert not left.exists()
    lock.release()
    output.close()


def test_second_run_on_the_same_folder_is_refused(images, tmp_path):
    config = settings(images, tmp_path)
    output, lock = ConstructionOutput.open(config)
    with pytest.raises(ConfigError, match="another run is writing to"):
        ConstructionOutput.open(config)
    lock.release()
    output.close()


def test_whatever_decides_the_result_is_a_setting_that_may_not_change(tmp_path):
    result = settings(tmp_path / "in", tmp_path / "out").result_settings()
    decisive = ["--chunk=9", "--shard_size=9", "--model_side=99", "--licence=x", "--caption.batch=9", "--crops.side=9"]
    for words in (*decisive, "--filters.min_words=9", "--entities.model=x", "--segment.threshold=0.9"):
        key = words[2:].partition("=")[0]
        other = settings(tmp_path / "in", tmp_path / "out", words).result_settings()
        assert {name for name in result if result[name] != other[name]} == {key}
    for words in ("--salvage=true", "--preview=3", "--segment.cpus=2", "--object_store_gb=1", "--entities.workers=2"):
        assert settings(tmp_path / "elsewhere", tmp_path / "other", words).result_settings() == result


def test_other_settings_on_the_same_folder_are_refused_by_name(images, tmp_path):
    in_process.construct(settings(images, tmp_path))
    with pytest.raises(ConfigError, match=r"crops\.side: 512, now it is 256; go on with the old settings"):
        in_process.construct(settings(images, tmp_path, "--crops.side=256"))
    stats = in_process.construct(settings(images, tmp_path, "--caption.workers=3", "--segment.gpus=0.5"))
    assert stats["samples"] == COUNT
