"""Which of ComfyUI's nodes asks for an encoder's weights."""

from __future__ import annotations

import sys
from types import FrameType

import comfy.sd


def into_checkpoint() -> bool:
    """Whether ComfyUI's `save_checkpoint` is asking, which says so to no one: CLIPSave asks by the same calls."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not comfy.sd.save_checkpoint.__code__:
        frame = frame.f_back
    return frame is not None
