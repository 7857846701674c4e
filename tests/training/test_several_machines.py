"""Processes on several machines: they meet again after any restart, and write into one folder or not at all."""

from concurrent.futures import ThreadPoolExecutor

import torch.distributed as dist

from tests.training.launch import OnAnotherDisk, train
from training.base.processes import agree_on_attempt


def start(store, ranks=3):
    with ThreadPoolExecutor(ranks) as pool:
        return list(pool.map(lambda rank: agree_on_attempt(store, rank, ranks, 20), range(ranks)))


def test_processes_of_one_start_agree_whatever_their_agents_have_counted():
    store = dist.HashStore()
    first = start(store)
    store.set("kosmos-g/none/question/1", "of a process that died before it was answered")
    second = start(store)
    assert len(set(first)) == len(set(second)) == 1
    assert first[0] != second[0]


def test_a_run_folder_that_each_machine_has_for_itself_is_refused(smoke_stages, tmp_path):
    arguments = smoke_stages.arguments("lm", "runs/own", "--steps", "2")
    disks = [tmp_path / "a", tmp_path / "b"]
    result = train(arguments, tmp_path / "log", 2, {rank: OnAnotherDisk(disk) for rank, disk in enumerate(disks)})
    assert result.codes == [2, 2], result.output
    assert "run_folder: runs/own is not one folder for all processes: 1 of 2" in result.output
    assert not any(list(disk.iterdir()) for disk in disks)
