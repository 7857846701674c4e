"""What a stage is given: micro-batches, and which rows of every step one data stream yields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

# Tensors of one micro-batch plus, for every row, its sample key and its source:
# token_ids (b, s) long; image_mask (b, s) bool; pixels (n, 3, S, S); "keys": list[str]; "sources": list[str]; what else
# the stage needs. The engine moves tensors to the device and saves the keys when a run has to stop.
Batch = dict[str, Any]


@dataclass(frozen=True)
class Stream:
    """Which rows of every step one data stream yields; rows and order never depend on how many processes train.

    A step's global batch is `micro_batches` micro-batches of `micro_batch` rows. Micro-batch m of each step comes from
    stream m % streams, so the n-th batch of a stream is micro-batch `index + streams * (n % per_step)` of step
    n // per_step. A process owns the streams with index % world_size == rank: a run saved on 8 processes
    goes on with the same rows on 4. Row i of micro-batch m is row m * micro_batch + i of the global batch.
    """

    seed: int
    index: int
    streams: int
    micro_batch: int
    micro_batches: int

    @property
    def per_step(self) -> int:
        """Micro-batches that this stream yields per step."""
        return self.micro_batches // self.streams


class BatchStream(Protocol):
    """Endless micro-batches of one `Stream`.

    `state_dict` is the position after the batches yielded so far, whatever workers have prefetched; a fresh stream that
    loads it yields exactly the batches that would have followed. The state must survive pickling.
    """

    def __next__(self) -> Batch: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    # Optional: report() -> dict[str, int], counts so far for the log and the end of each epoch: "source/size" (samples
    # of the data set), "source/seen", "source/bad/reason", "source/filtered/reason".
