"""Kosmos-G files as ComfyUI's CLIPSave writes them: tensors alone, the model's under one prefix.

A program that saves a text encoder keeps its tensors and drops what else a file says of itself. So the encoder hands
out its metadata and its tokenizer as tensors as well, and here they are found again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace

import safetensors
import torch
from torch import Tensor

from .safetensors_file import Header, WeightsError, read_header

PREFIX = "model."  # of the model's tensors
DESCRIPTION = "kosmos_g.description"
LARGEST_DESCRIPTION = 1_000_000  # bytes


def description_tensor(metadata: Mapping[str, str]) -> Tensor:
    """A file's metadata as one tensor of bytes (n,)."""
    return torch.frombuffer(bytearray(json.dumps(dict(metadata)).encode()), dtype=torch.uint8)


def is_saved_clip(header: Header) -> bool:
    """Whether the file was written by CLIPSave from a Kosmos-G encoder."""
    return DESCRIPTION in header.shapes


def read_kosmos_header(path: str | os.PathLike) -> tuple[Header, str]:
    """Header of a file as if it were in Kosmos-G's own format, and the prefix that the file has before its names.

    Raises WeightsError as `read_header` does, and for a description that cannot be read.
    """
    header = read_header(path)
    if not is_saved_clip(header):
        return header, ""
    shape = header.shapes[DESCRIPTION]
    if header.dtypes[DESCRIPTION] != "U8" or len(shape) != 1 or shape[0] > LARGEST_DESCRIPTION:
        raise WeightsError(
            f"{path} has a {DESCRIPTION} of {header.dtypes[DESCRIPTION]} {shape}, expected at most "
            f"{LARGEST_DESCRIPTION:,} bytes; save the CLIP again"
        )
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            content = json.loads(file.get_tensor(DESCRIPTION).numpy().tobytes())
        metadata = {str(key): str(value) for key, value in content.items()}
    except (safetensors.SafetensorError, ValueError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{path} has an unreadable {DESCRIPTION} ({error!s:.200}); save the CLIP again") from error
    own = [name for name in header.shapes if name != DESCRIPTION]
    shapes = {name.removeprefix(PREFIX): header.shapes[name] for name in own}
    dtypes = {name.removeprefix(PREFIX): header.dtypes[name] for name in own}
    return replace(header, metadata=metadata, shapes=shapes, dtypes=dtypes), PREFIX
