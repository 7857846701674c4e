"""Part f: how many samples a second the small world trains on: its U-Net, and its three stages."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .context import Context, Line, Skipped, require
from .steps import NEEDS, ROOT, measure

BATCH = 16


def check(context: Context) -> Iterator[Line]:
    """Samples a second, forward, backward and update; data not included."""
    require("diffusers")
    found = context.values["world"] = {}
    found["unet"] = _unet(context)
    yield Line("U-Net, 64 pixels", f"{found['unet']:,.0f} samples/s")
    require(*NEEDS)
    for stage in ("lm", "align", "instruct") if context.official else ("lm",):
        try:
            context.in_time()
            words = ["--config", str(ROOT / "emoji_world" / "configs" / f"{stage}.yaml"), *_sizes(context, stage)]
            step = measure(context, words)
        except Skipped as reason:
            context.skipped[f"world, {stage}"] = str(reason)
            continue
        rows = step.rows / step.micro_batch_seconds
        found[stage] = rows
        yield Line(f"stage {stage}, micro-batch of {step.rows}", f"{rows:,.0f} samples/s")


def _sizes(context: Context, stage: str) -> list[str]:
    """Options that make a stage run without the world's own files, and quickly where that is asked."""
    words = ["--precision", "bf16" if context.device.type == "cuda" else "fp32", "--weights", "null"]
    if stage != "lm":
        words += ["--task.stable_diffusion", str(ROOT / "assets" / "world" / "emoji-world-sd.safetensors")]
        words += ["--data.pad_to", "40"]
    if not context.official:
        words += ["--batch.size", "2", "--batch.micro", "2", "--data.sequence_length", "64"]
    return words


def _unet(context: Context) -> float:
    from emoji_world.diffusion import build_unet
    from training.base.precision import autocast

    unet, rows = build_unet(64).to(context.device), BATCH if context.official else 2
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4, fused=True)
    latents, states = (torch.randn(rows, *shape, device=context.device) for shape in ((4, 8, 8), (77, 768)))
    times = torch.arange(rows, device=context.device)
    precision = "bf16" if context.device.type == "cuda" else "fp32"

    def step() -> None:
        with autocast(precision, context.device):
            predicted = unet(latents, times, encoder_hidden_states=states).sample
        predicted.float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return rows / context.seconds(step, rounds=5 if context.official else 2, warm=1)
