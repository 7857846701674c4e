"""What the forkserver of `launch` imports once for all processes."""

import torch.utils.tensorboard

import training.data.streams
import training.engine.start
import training.run
import training.stages.align
import training.stages.instruct
import training.stages.lm

__all__ = ["torch", "training"]
