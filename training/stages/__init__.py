"""What the engine asks of a training stage, and the table of stages.

A stage is a small object: the model, the modules that stay frozen beside it, what of the model trains, and the loss of
one micro-batch. It knows nothing of processes, sharding, precision, accumulation or checkpoints; the engine
(`training.loop`) knows nothing of losses.

Each stage module (`training/stages/lm.py`, `align.py`, `instruct.py`) has

    @dataclass
    class Config: ...       # the `task:` section of the YAML file; every field has a default and a line of doc under it
    @dataclass
    class DataConfig: ...   # the `data:` section
    def build(config: RunConfig, device, model_device) -> Stage
    def loss(model, ...) -> dict[str, Tensor]   # the loss alone, usable without the engine

`build` puts the frozen modules on `device`, in the format they compute in, and the model on `model_device`. That may
be the meta device: then only the shapes of `model` are built, no value initialised or read. The engine fills parameters
and buffers from rank 0, so that a node never holds the whole model once per GPU. A path or size that does not fit
raises ValueError or OSError with a sentence for the user.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ..draws import Draws

STAGES = ("lm", "align", "instruct")

# Tensors of one micro-batch plus, for every row, its sample key and its source:
# token_ids (b, s) long; image_mask (b, s) bool; pixels (n, 3, S, S); "keys": list[str]; "sources": list[str]; what else
# the stage needs. The engine moves tensors to the device and saves the keys when a run has to stop.
Batch = dict[str, Any]


@dataclass(frozen=True)
class Stream:
    """Which rows of every step one data stream yields; rows and order never depend on how many processes train.

    A step's global batch is `micro_batches` micro-batches of `micro_batch` rows. Micro-batch m of each step comes from
    stream m % streams, so the n-th batch of a stream is micro-batch `index + streams * (n % per_step)` of step
    n // per_step. A process owns the streams with index % world == rank: a run saved on 8 processes goes on with the
    same rows on 4. Row i of micro-batch m is row m * micro_batch + i of the global batch.
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


@dataclass
class Losses:
    """The loss of one micro-batch, as a sum and a count, so that the engine can form the exact global mean.

    total: the loss summed over this micro-batch's valid items (tokens in `lm`, samples elsewhere); carries gradient.
    count: number of valid items (may be 0).
    parts: what a person wants to see, name -> (sum, count), detached; shown as the global sum / count, so a part that
        occurs in this micro-batch only (one per source, for instance) is right too.
    """

    total: Tensor
    count: Tensor | float
    parts: Mapping[str, tuple[Tensor | float, Tensor | float]] = field(default_factory=dict)

    @classmethod
    def of_rows(cls, totals: Tensor, sources: list[str], counts: Tensor | None = None, **parts: Tensor) -> Losses:
        """Losses from each row's sum (b,), its source and its count of valid items (one each where None).

        The parts are one per source, and the further values (b,) given by name.
        """
        counts = torch.ones_like(totals) if counts is None else counts.to(totals)
        shown = {}
        for source in dict.fromkeys(sources):
            rows = torch.tensor([name == source for name in sources], device=totals.device)
            shown[source] = ((totals * rows).sum().detach(), (counts * rows).sum())
        shown |= {name: (values.sum().detach(), counts.sum()) for name, values in parts.items()}
        return cls(totals.sum(), counts.sum(), shown)


@runtime_checkable
class Stage(Protocol):
    """One training stage.

    The engine calls `training_step` and `sample` from inside the forward of a module that it shards or wraps, so they
    may call any method of `model`; blocks, though, only through their own forward, which gathers their parameters.
    Every trained module must take part in every micro-batch, on a dummy picture with weight 0 if there is none in it:
    the processes gather and reduce together, and one that skips a module leaves the others waiting.
    """

    model: nn.Module  # trained, sharded, checkpointed; everything not trainable in it is stored too
    frozen: dict[str, nn.Module]  # "unet", "vae", "clip": replicated, never sharded, never in a checkpoint

    def set_trainable(self) -> None:
        """Set requires_grad of every parameter, and train or eval mode of every module."""

    def stream(self, stream: Stream) -> BatchStream:
        """The data of one stream."""

    def training_step(self, model: nn.Module, batch: Batch, draws: Draws) -> Losses:
        """The loss of one micro-batch, under autocast in the run's precision. All random numbers come from `draws`;
        dropout's generator is seeded by the engine from (seed, step, micro-batch)."""

    # Optional: notes, a list of sentences for the user: where the weights come from.
    # Optional: sample(model) -> PIL.Image, the fixed prompts as one grid; leaves train or eval mode as it was. Called
    # every log.sample_every steps, on all ranks because the forward of a sharded model is collective; saved by rank 0.


def stage_module(name: str) -> ModuleType:
    """The module of a stage by its name."""
    return import_module(f".{name}", __package__)
