"""Which number format `auto` stands for where the encoder computes on a CPU."""

from __future__ import annotations

import comfy.model_management
import torch
from comfy.cli_args import args

from ..kosmos_core import cpu_formats

SMALL = 250_000_000  # parameters up to which an encoding takes less than a second in float32 on one core
CHOSEN_BY_OPTION = "_text_enc"  # ends ComfyUI's own options, such as --fp32-text-enc


def faster_dtype(parameters: int, device: torch.device | None) -> torch.dtype | None:
    """bfloat16 for a large encoder on a CPU that multiplies it faster than float32; None leaves the type to ComfyUI.

    So do ComfyUI's own options for the type of text encoders, which are the user's choice.
    """
    device = device or comfy.model_management.text_encoder_device()
    asked = any(value for name, value in vars(args).items() if name.endswith(CHOSEN_BY_OPTION))
    if parameters <= SMALL or asked or not comfy.model_management.is_device_cpu(device):
        return None
    return torch.bfloat16 if cpu_formats.bfloat16_is_faster() else None
