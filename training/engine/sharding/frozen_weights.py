"""Frozen layers in the format they compute in, their float32 values on disk.

Under autocast a linear layer or convolution casts its float32 weights to the compute format in every forward pass, and
torch remembers the result only for weights that train. Stored in that format, frozen ones take half the memory and no
cast, and give the same numbers bit for bit. Norms and embeddings, which autocast leaves in float32, stay as they are.

Checkpoints hold the float32 values all the same: rounded ones would be lost for what is exported, and for the next
stage. They lie in a file without a name, mapped into memory, that ends with the process.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy
import torch
from torch import Tensor, nn

from ...base.errors import CheckpointError

LAYERS = (nn.Linear, nn.Conv2d)


def frozen_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The linear layers and convolutions in which nothing trains, by name."""
    for name, module in model.named_modules():
        if type(module) in LAYERS and not any(p.requires_grad for p in module.parameters(recurse=False)):
            yield name, module


def lower_frozen(model: nn.Module, dtype: torch.dtype, folder: Path | None) -> dict[str, Tensor]:
    """Bring the float32 weights of frozen layers into `dtype`, in place; returns their float32 values by name.

    Those are on the CPU, in a file of `folder` (None: of the system's folder for such files); writing to them changes
    no weight of the model. Raises CheckpointError where there is no room for them.
    """
    shapes = {}
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            for name, full in _lower(model, dtype):
                file.write(full.detach().cpu().numpy().data)
                shapes[name] = full.shape
            if not shapes:
                return {}
            file.flush()
            mapped = torch.from_numpy(numpy.memmap(file, dtype=numpy.float32, mode="r+"))
    except OSError as error:
        raise CheckpointError(
            f"run_folder: {folder} has no room for the float32 values of frozen weights ({error.strerror}); make room, "
            f"choose another --run_folder, or keep them in memory with --parallel.frozen fp32."
        ) from error
    parts = mapped.split([shape.numel() for shape in shapes.values()])
    return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def lower_unread(model: nn.Module, dtype: torch.dtype) -> None:
    """As `lower_frozen`, of a model whose values nobody will ask for."""
    for _ in _lower(model, dtype):
        pass


def _lower(model: nn.Module, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Lower one parameter after the other; yields each one's name and float32 value."""
    for layer, module in frozen_layers(model):
        for name, full in list(module.named_parameters(recurse=False)):
            if full.dtype == torch.float32:
                setattr(module, name, nn.Parameter(full.detach().to(dtype), requires_grad=False))
                yield f"{layer}.{name}", full
