"""Train the world's autoencoder, f = 8 with 4 channels, in minutes; its layout is TAESD's, which ComfyUI can load.

    python -m training.world.autoencoder --world pocket --output RUNS/vae --minutes 12

Most residual blocks stay switched off: a block whose last convolution is zero is a ReLU, so that training runs with the
ReLU alone, several times faster, and the saved file has the full layout with zeros.
"""

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from diffusers.models.autoencoders.vae import AutoencoderTinyBlock
from PIL import Image
from torch import nn

from .scenes import WORLDS, World

ACTIVE = {"encoder": (11, 12, 13), "decoder": (2, 3, 4, 7, 8, 12)}  # the residual blocks that are trained


def lean_autoencoder() -> AutoencoderTiny:
    """AutoencoderTiny with a ReLU in place of each block that stays switched off."""
    vae = AutoencoderTiny()
    for part, active in ACTIVE.items():
        layers = getattr(vae, part).layers
        for number, layer in enumerate(layers):
            if isinstance(layer, AutoencoderTinyBlock) and number not in active:
                layers[number] = nn.ReLU()
    return vae


def full_autoencoder(lean: AutoencoderTiny) -> AutoencoderTiny:
    """The same function in the full layout: blocks that are switched off end in a zero convolution."""
    vae = AutoencoderTiny()
    missing, unexpected = vae.load_state_dict(lean.state_dict(), strict=False)
    assert not unexpected
    for name in missing:
        if ".conv.4." in name:
            nn.init.zeros_(vae.get_parameter(name))
    return vae


def batch_of_scenes(world: World, count: int, random: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels -1..1 (count, 3, size, size) and object masks (count, 1, size, size), float32."""
    pixels, masks = [], []
    for _ in range(count):
        picture, parts = world.render(world.draw(random))
        pixels.append(picture)
        masks.append(np.any(parts, axis=0))
    pixels = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return pixels, torch.from_numpy(np.stack(masks)).unsqueeze(1).float()


def loss_of(
    vae: AutoencoderTiny, pixels: torch.Tensor, masks: torch.Tensor, learn_encoder: bool = True
) -> torch.Tensor:
    """Absolute and gradient errors, heavier on objects; latents pulled to unit scale and blurred by slight noise."""
    with torch.set_grad_enabled(learn_encoder):
        latents = vae.encoder(pixels).float()
    made = vae.decoder(latents + 0.05 * torch.randn_like(latents)).float()
    weight = 1 + 2 * masks
    error = ((made - pixels).abs() * weight).mean()
    for dimension in (2, 3):
        error = error + (made.diff(dim=dimension) - pixels.diff(dim=dimension)).abs().mean()
    coarse = F.avg_pool2d(made - pixels, 4).abs().mean()
    scale = latents.mean((0, 2, 3)).square().mean() + (latents.std((0, 2, 3)) - 1).square().mean()
    return error + coarse + 0.05 * scale


@torch.no_grad()
def report(vae: AutoencoderTiny, world: World, folder: Path) -> str:
    """Peak signal-to-noise ratio over all pixels and over the objects', on fixed scenes; writes a sheet of pairs."""
    pixels, masks = batch_of_scenes(world, 64, np.random.default_rng(7))
    latents = vae.encoder(pixels)
    made = vae.decoder(latents).clamp(-1, 1)
    square = (made - pixels).square() / 4
    everywhere = -10 * square.mean().log10()
    objects = -10 * ((square * masks).sum() / (3 * masks.sum())).log10()
    size = world.size
    rows = torch.cat([x[:32].reshape(4, 8, 3, size, size) for x in (pixels, made)], 1).reshape(8, 8, 3, size, size)
    sheet = ((rows.permute(0, 3, 1, 4, 2).reshape(8 * size, 8 * size, 3) + 1) * 127.5).round().byte().numpy()
    Image.fromarray(sheet).save(folder / "pairs.png")
    return f"PSNR {everywhere:.2f} dB, objects {objects:.2f} dB, latent std {latents.std():.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", choices=WORLDS, default="full")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--freeze-encoder", action="store_true", help="only the decoder learns; latents stay")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    vae = lean_autoencoder().to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(vae.parameters(), lr=arguments.rate, betas=(0.9, 0.99))
    state_path = arguments.output / "state.pt"
    step, spent = 0, 0.0
    if state_path.exists():
        state = torch.load(state_path)
        vae.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, spent = state["step"], state["seconds"]
    world = World.named(arguments.world)
    started, saved, limit = time.monotonic() - spent, time.monotonic(), 60 * arguments.minutes
    while (spent := time.monotonic() - started) < limit:
        for group in optimizer.param_groups:  # a constant rate, then a linear fall over the last 40 %
            group["lr"] = arguments.rate * min(1, step / 100 + 0.01, max(0.02, (1 - spent / limit) / 0.4))
        pixels, masks = batch_of_scenes(world, arguments.batch, np.random.default_rng([1, step]))
        pixels = pixels.to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(vae, pixels, masks, not arguments.freeze_encoder)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 50 == 0:
            print(f"step {step} ({step * arguments.batch / spent:.0f}/s) loss {loss.item():.4f}", flush=True)
        if time.monotonic() - saved > 90:
            saved = time.monotonic()
            state = {"model": vae.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "seconds": spent}
            torch.save(state, f"{state_path}.part")
            os.replace(f"{state_path}.part", state_path)
            full_autoencoder(vae).save_pretrained(arguments.output / "vae")
            print(f"after {spent:.0f} s: {report(vae, world, arguments.output)}", flush=True)
    full_autoencoder(vae).save_pretrained(arguments.output / "vae")
    print(f"{step * arguments.batch} pictures, {report(vae, world, arguments.output)}")


if __name__ == "__main__":
    main()
