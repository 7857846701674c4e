"""Training data: WebDataset tars and files of lines, read in an order that no number of processes changes.

    index      find and index a data set's files             order     position -> sample, shuffled by (seed, epoch)
    reader     samples by number, as named bytes (Energon)   lanes     reading positions, skipping what is unusable
    cookers    named bytes -> samples                        mixture   exact shares of the sources in every batch
    original   the first implementation's tsv files          stream    micro-batches of a stream, resumable
    sequences  samples -> token sequences (stages 2, 3)      batches   the tensors that a stage gets
    packing    documents -> packed sequences (stage 1)       skips     what was left out, and when it is too much

`lm_stream`, `align_stream` and `instruct_stream` open a stage's data; `batches` says what comes out of them.
`python -m training.data.lint PATH` checks a data set, `python -m training.data.convert` makes one from other layouts.
"""

from __future__ import annotations

from typing import Any

from kosmos_core.tokenizer import Tokenizer

from .batch_stream import Stream
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


def lm_stream(config: LmData, stream: Stream, tokenizer: Tokenizer, image_size: int = 224) -> DataStream:
    """Stage 1: packed text, captioned pictures, interleaved documents. image_size: of the vision tower, in pixels."""
    return DataStream(LmTask(config, tokenizer, image_size), config, stream)


def align_stream(
    config: AlignData, stream: Stream, tokenizer: Tokenizer, clip_tokenizer: Any, image_size: int = 224
) -> DataStream:
    """Stage 2: captions in both vocabularies. clip_tokenizer: that of the Stable Diffusion model (transformers)."""
    return DataStream(AlignTask(config, tokenizer, clip_tokenizer, image_size), config, stream)


def instruct_stream(
    config: InstructData, stream: Stream, tokenizer: Tokenizer, image_size: int = 224, clip_tokenizer: Any = None
) -> DataStream:
    """Stage 3: prompts with pictures, and target pictures; with clip_tokenizer, as in stage 2, also their captions.

    image_size: of the vision tower, in pixels.
    """
    return DataStream(InstructTask(config, tokenizer, image_size, clip_tokenizer), config, stream)
