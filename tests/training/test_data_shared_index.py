"""The index of a run's data: read by one process of each machine that needs it, the same for all, or refused."""

import random
import socket
from pathlib import Path

import pytest

from tests.training.launch import CONTEXT
from tests.training.shared_index_process import RANKS, share_index
from training.data.synthetic import pair_samples, write_tars


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    disks = [tmp_path_factory.mktemp(name) for name in ("first", "second")]
    for disk, samples in zip(disks, (9, 8), strict=True):
        write_tars(disk / "data", pair_samples(random.Random(0), 9, 32), per_shard=5)
        write_tars(disk / "other", pair_samples(random.Random(0), samples, 32), per_shard=5)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    told = CONTEXT.Queue()
    disk_of = [Path(disks[rank // 2]) for rank in range(RANKS)]
    running = [CONTEXT.Process(target=share_index, args=(rank, port, disk_of[rank], told)) for rank in range(RANKS)]
    for process in running:
        process.start()
    try:
        return {rank: (given, read) for rank, given, read in (told.get(timeout=300) for _ in running)}
    finally:
        for process in running:
            process.kill()


def test_all_processes_get_the_index_that_one_has_read(answers):
    assert [answers[rank][0][:2] for rank in range(RANKS)] == [[(9, True)] * 2] * RANKS
    assert answers[0][1] == ["data", "data", "other"]  # once a start, however many sources and streams share it
    assert answers[1][1] == []
    # A disk with a copy of its own needs its own index, and keeps it.
    assert answers[2][1] == ["data", "other"]


def test_a_machine_that_holds_other_files_is_named_on_every_process(answers):
    refused = {answers[rank][0][2] for rank in range(RANKS)}
    assert len(refused) == 1
    (sentence,) = refused
    assert sentence.startswith(f"data.sources.one: other on {socket.gethostname()} is not what process 0 reads there: ")
    assert "00001.tar is " in sentence
    assert "with 3 samples here and " in sentence
    assert "with 4 samples there. Give all machines the same files" in sentence
