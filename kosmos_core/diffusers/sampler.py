"""The samplers by name, and the sampling loop with classifier-free guidance."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, PNDMScheduler
from torch import Tensor, nn

# Today's diffusers ends DPM-Solver at sigma 0; 0.21.4, with which the original samples, ended it at the schedule's
# smallest sigma. The difference is 1e-3 of the latents. A folder saved by a newer diffusers names the spacing of its
# own scheduler, which would replace the one that the original uses: so each is told its spacing.
_DPM = {
    "algorithm_type": "dpmsolver++",
    "solver_order": 2,
    "final_sigmas_type": "sigma_min",
    "timestep_spacing": "linspace",
}
SCHEDULERS = {
    "dpmsolver++": (DPMSolverMultistepScheduler, _DPM),
    "ddim": (DDIMScheduler, {"clip_sample": False, "timestep_spacing": "leading"}),
    "pndm": (PNDMScheduler, {"skip_prk_steps": True, "timestep_spacing": "leading"}),
}


def named_scheduler(name: str, current: Any) -> Any:
    """The sampler of that name with the noise schedule of `current`: "dpmsolver++" (the original's default), "ddim" or
    "pndm". ValueError lists the names."""
    if name not in SCHEDULERS:
        raise ValueError(
            f"unknown scheduler '{name}'; choose one of {', '.join(SCHEDULERS)}, or set pipe.scheduler to any "
            "scheduler of diffusers"
        )
    kind, options = SCHEDULERS[name]
    return kind.from_config(current.config, **options)


@torch.no_grad()
def sample_latents(
    unet: nn.Module, scheduler: Any, noise: Tensor, conditions: Tensor, null: Tensor, *, steps: int, guidance: float
) -> Tensor:
    """Latents (b, 4, h, w) float32 in the U-Net's scale: noise removed in `steps` steps, guided away from `null`.

    noise (b, 4, h, w) float32, standard normal; conditions (b, s, width); null (1, s, width), the condition that
    guidance leads away from (arXiv 2207.12598). scheduler is any of diffusers and is set to `steps` here.
    """
    scheduler.set_timesteps(steps, device=noise.device)
    both = torch.cat([null.expand_as(conditions), conditions]).to(unet.dtype)
    latents = noise * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        doubled = scheduler.scale_model_input(latents, timestep).repeat(2, 1, 1, 1).to(unet.dtype)
        without, within = unet(doubled, timestep, encoder_hidden_states=both).sample.float().chunk(2)
        latents = scheduler.step(without + guidance * (within - without), timestep, latents).prev_sample
    return latents
