"""What is done to transformer blocks one by one, whatever the sharding: recomputed in the backward pass, compiled."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, checkpoint_wrapper

from ..stage import Stage


def block_lists(model: nn.Module) -> Iterator[nn.ModuleList]:
    """The stacks of transformer blocks of a model: every ModuleList called `blocks`."""
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and name.rsplit(".", 1)[-1] == "blocks":
            yield module


def recompute_activations(stage: Stage) -> None:
    """Let trained blocks and the U-Net compute their activations again in the backward pass instead of keeping them."""
    for blocks in block_lists(stage.model):
        for i, block in enumerate(blocks):
            if any(p.requires_grad for p in block.parameters()):
                blocks[i] = checkpoint_wrapper(block, CheckpointImpl.NO_REENTRANT)
    for module in stage.frozen.values():
        if hasattr(module, "enable_gradient_checkpointing"):
            module.enable_gradient_checkpointing()


def compile_blocks(model: nn.Module) -> None:
    """torch.compile each block on its own, in place."""
    for blocks in block_lists(model):
        for block in blocks:
            block.compile()
