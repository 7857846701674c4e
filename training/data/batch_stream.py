"""What the engine and the stages know of data: a `Stream` says which rows, a `BatchStream` yields them as batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

# One micro-batch: tensors, and for every row its sample's key and its source. `batches.py` lists the entries. The
# engine moves the tensors to the device and saves the keys where a run has to stop.
Batch = dict[str, Any]


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on `device`."""
    return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}


@dataclass(frozen=True)
class Stream:
    """Which rows of every step's global batch one stream yields; `data_stream.py` draws an example.

    A global batch is `micro_batches` micro-batches of `micro_batch` rows: row i of micro-batch m is its row
    m * micro_batch + i. Micro-batch m of every step belongs to stream m % streams, and a stream to the process with
    rank index % world_size. So rows and their order do not depend on the number of processes: a run saved on 8
    processes goes on with the same rows on 4.
    """

    seed: int
    index: int  # of this stream, 0 ... streams - 1
    streams: int  # of the run
    micro_batch: int
    micro_batches: int  # of a step, over all streams

    @property
    def per_step(self) -> int:
        """Micro-batches that this stream yields per step."""
        return self.micro_batches // self.streams

    def rows(self, number: int) -> slice:
        """The rows of its step's global batch that the stream's micro-batch `number`, counted from 0, consists of."""
        first = (self.index + self.streams * (number % self.per_step)) * self.micro_batch
        return slice(first, first + self.micro_batch)


class BatchStream(Protocol):
    """Endless micro-batches of one `Stream`.

    `state_dict` is the position behind the batches yielded so far, whatever is read ahead: a fresh stream that loads it
    yields exactly the batches that would have followed. It holds numbers, strings, lists and dictionaries only.
    """

    def __next__(self) -> Batch: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    # Optional: report() -> dict[str, int], counts so far, which the log and the end of each epoch tell: "source/size"
    # (samples of the data set), "source/seen", "source/bad/reason", "source/filtered/reason".
