"""The frozen Stable Diffusion of stages 2 and 3, as a run's configuration names it."""

from __future__ import annotations

from typing import Any

import torch

from kosmos_core.diffusers.stable_diffusion import StableDiffusion

from ..base.precision import DTYPES, Precision


def configured_stable_diffusion(task: Any, device: torch.device | str, precision: Precision) -> StableDiffusion:
    """The model of `task.stable_diffusion` and `task.clip_tokenizer`, whose errors begin with these keys.

    `task` is the configuration of either stage. WeightsError where there is no such model.
    """
    return StableDiffusion(
        task.stable_diffusion,
        DTYPES[precision],
        device,
        clip_tokenizer=task.clip_tokenizer,
        option="task.stable_diffusion",
        tokenizer_option="task.clip_tokenizer",
    )
