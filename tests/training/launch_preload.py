"""What the forkserver of `launch` imports, and makes, once for all processes."""

import contextlib

import fairscale.nn
import torch.utils.tensorboard
from PIL import Image
from transformers import CLIPTextModel

import training.data.streams
import training.engine.start
import training.run
import training.stages.align
import training.stages.instruct
import training.stages.lm

__all__ = ["CLIPTextModel", "fairscale", "torch", "training"]

Image.init()
with contextlib.suppress(ImportError):  # a thousand patterns, compiled by the first model that transformers loads
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    get_checkpoint_conversion_mapping("clip")
