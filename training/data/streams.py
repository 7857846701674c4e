"""The data of each stage, opened.

Stages import this where they open their data: it brings Megatron-Energon along, half a second and a package that plans,
measurements of a step and everything else that reads no data do without.
"""

from __future__ import annotations

from typing import Any

from kosmos_core.config import VisionConfig
from kosmos_core.tokenizer import Tokenizer

from .batch_stream import Stream
from .cached_rows import Maker
from .data_config import AlignData, InstructData, LmData
from .data_stream import DataStream
from .tasks import AlignTask, InstructTask, LmTask


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
