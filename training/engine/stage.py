"""What the engine asks of a training stage.

A stage is a small object: the model, the modules that stay frozen beside it, what of the model trains, and the loss of
one micro-batch. It knows nothing of processes, sharding, precision, accumulation or checkpoints; the engine
(`training.engine.loop`) knows nothing of losses.

Each stage has a module of what is configured, which brings no torch along (`training/stages/lm_config.py`, ...)

    @dataclass
    class Config: ...       # the `task:` section of the YAML file; every field has a default and a line of doc under it
    @dataclass
    class DataConfig: ...   # the `data:` section

and one of what it does (`lm.py`, `align.py`, `instruct.py`)

    def build(config: StageConfig, device, model_device) -> Stage
    def assemble(config, diffusion, model, notes) -> Stage   # what `build` does with the models once they are read
    def loss(model, ...) -> dict[str, Tensor]   # the loss alone, usable without the engine

`build` puts the frozen modules on `device`, in the format they compute in, and the model on `model_device`. That may
be the meta device: then only the shapes of `model` are built, no value initialised or read. The engine fills parameters
and buffers from rank 0, so that a node never holds the whole model once per GPU. A path or size that does not fit
raises ValueError or OSError with a sentence for the user. A plan reads no files: it calls `assemble` with a model and a
Stable Diffusion (None in lm) that have no values.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import nn

from ..base.rng import RowRng
from ..data.batch_stream import Batch, BatchStream, Stream
from ..stages.losses import Losses


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

    def training_step(self, model: nn.Module, batch: Batch, rng: RowRng) -> Losses:
        """The loss of one micro-batch, under autocast in the run's precision. All random numbers come from `rng`;
        dropout's generator is seeded by the engine from (seed, step, micro-batch)."""

    # Optional: indexed, a DataConfig of all sources that `stream` reads, where `data:` does not name all of them.
    # Optional: notes, a list of sentences for the user: where the weights come from.
    # Optional: sample(model) -> PIL.Image, the fixed prompts as one grid, and figures for the step's record by their
    # names (the same on all ranks); leaves train or eval mode as it was. Called every log.sample_every steps, on all
    # ranks because the forward of a sharded model is collective; saved by rank 0.
    # Optional, for validation, which asks for all four or, without held-out sources, for none:
    # held_out(name, source, rows, size) -> micro-batches of at most `rows` rows, `size` in all, of a HeldOutSource.
    # prepared(batch, first_row) -> what is kept of a micro-batch whose first row is that one of its source (may lack).
    # metrics(images) -> dict[str, str], names of the metrics of a source with or without images, and what usually keeps
    # each from its goal.
    # validation_step(model, batch, images) -> RowValues, in evaluation mode; as collective as training_step.
