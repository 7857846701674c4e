"""Training data: WebDataset tars and files of lines, read in the same order on any number of processes.

The way of a sample:

    index         find a data set's files, index them        order        position -> sample, shuffled
    reader        samples by number, as named bytes          lanes        reading positions, and what they pass over
    cookers       named bytes -> samples, by layout          mixture      exact shares of the sources in every batch
    sample_types  what cookers make                          data_stream  micro-batches; it draws an example of it all
    sequences     samples -> tokens (stages 2 and 3)         tasks        what each stage makes of samples
    packing       documents -> tokens (stage 1)              batches      the tensors that a stage gets

`lm_stream`, `align_stream` and `instruct_stream` open a stage's data; `batch_stream` is all that the engine knows of
it; `skips` counts what is left out. `cached_rows` reads what `python -m training.data.cache`
has put beside the shards. `python -m training.data.lint PATH` checks a data set, `python -m
training.data.convert` makes one from other layouts, `python -m training.data.synthetic DIR` makes small ones to try.
"""

from __future__ import annotations

from typing import Any

from kosmos_core.config import VisionConfig
from kosmos_core.tokenizer import Tokenizer

from .batch_stream import Stream
from .cached_rows import Maker
from .data_config import AlignData, DataConfig, InstructData, LmData, SourceConfig
from .data_stream import DataStream
from .index import DataError
from .tasks import AlignTask, InstructTask, LmTask

__all__ = [
    "AlignData",
    "DataConfig",
    "DataError",
    "DataStream",
    "InstructData",
    "LmData",
    "SourceConfig",
    "align_stream",
    "instruct_stream",
    "lm_stream",
]


def lm_stream(
    config: LmData, stream: Stream, tokenizer: Tokenizer, image_size: int = VisionConfig.image_size
) -> DataStream:
    """Stage 1: packed text, captioned pictures, interleaved documents. image_size: of the vision tower, in pixels."""
    return DataStream(LmTask(config, tokenizer, image_size), config, stream)


def align_stream(
    config: AlignData,
    stream: Stream,
    tokenizer: Tokenizer,
    clip_tokenizer: Any,
    image_size: int = VisionConfig.image_size,
    maker: Maker | None = None,
) -> DataStream:
    """Stage 2: captions in both vocabularies. clip_tokenizer: that of the Stable Diffusion model (transformers).

    maker: of the CLIP states that are read where they lie beside the shards.
    """
    return DataStream(AlignTask(config, tokenizer, clip_tokenizer, image_size, maker=maker), config, stream)


def instruct_stream(
    config: InstructData,
    stream: Stream,
    tokenizer: Tokenizer,
    image_size: int = VisionConfig.image_size,
    clip_tokenizer: Any = None,
    maker: Maker | None = None,
) -> DataStream:
    """Stage 3: prompts with pictures, and target pictures; with clip_tokenizer, as in stage 2, also their captions.

    image_size: of the vision tower, in pixels. maker: of the latents that are read where they lie beside the shards.
    """
    return DataStream(InstructTask(config, tokenizer, image_size, clip_tokenizer, maker=maker), config, stream)
