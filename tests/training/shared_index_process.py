"""One of the processes that share the index of a data set; a module of its own, since other processes import it."""

import os

from training.base.processes import join_process_group
from training.data import index, shared_index
from training.data.data_config import DataConfig, SourceConfig

RANKS = 3  # 0 and 1 on one machine, 2 on another


def share_index(rank, port, disk, told):
    """Index `data` and `other`, relative to the disk of this process; tells what it was given or refused."""
    os.environ |= {"RANK": f"{rank}", "WORLD_SIZE": f"{RANKS}", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ["GROUP_RANK"] = f"{rank // 2}"
    os.chdir(disk)
    read = []

    def counted(path, folder):
        read.append(path)
        return index.index_dataset(path, folder)

    shared_index.index_dataset = counted
    answers = []
    with join_process_group("cpu") as group:
        for path in ("data", "data", "other"):
            config = DataConfig({"one": SourceConfig(path), "again": SourceConfig(path)})
            try:
                with shared_index.shared_indexes(config, group):
                    dataset = shared_index.source_index(path, None)
                    answers.append((len(dataset), (dataset.root / dataset.shards[0].name).is_file()))
            except index.DataError as error:
                answers.append(str(error))
    told.put((rank, answers, read))
