"""Train the world's autoencoder, f = 8 with 4 channels, in minutes; its layout is TAESD's, which ComfyUI can load.

    python -m emoji_world.autoencoder --output RUNS/vae --minutes 25

What is trained is a slimmer network: fewer channels where pictures are large, and a ReLU in place of most residual
blocks. The saved file has the full layout, filled with zeros, and computes the same function.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from diffusers.models.autoencoders.vae import AutoencoderTinyBlock
from torch import nn

from kosmos_core.atomic import atomic_write
from training.base.precision import autocast, faster_on_cpu

from .scenes import WORLD_NAMES, EmojiScene, EmojiWorld, Placed
from .sheets import pixel_grid

# Output channels by the number of TAESD's layer; residual blocks that are not named are a ReLU.
ENCODER = {0: 16, 2: 32, 4: 32, 6: 64, 8: 64, 10: 64, 12: 64, 13: 64, 14: 4}
DECODER = {0: 64, 2: 64, 3: 64, 4: 64, 6: 64, 7: 64, 8: 64, 9: 64, 11: 32, 13: 32, 14: 32, 16: 16, 17: 16, 18: 3}


def slim(layers: nn.Sequential, channels: dict[int, int], inputs: int) -> None:
    """Replace TAESD's layers by slimmer ones of the same kinds."""
    for number, layer in enumerate(layers):
        outputs = channels.get(number)
        if isinstance(layer, nn.Conv2d):
            layers[number] = nn.Conv2d(inputs, outputs, 3, stride=layer.stride, padding=1, bias=layer.bias is not None)
        elif isinstance(layer, AutoencoderTinyBlock):
            layers[number] = AutoencoderTinyBlock(inputs, outputs, "relu") if outputs else nn.ReLU()
        inputs = outputs or inputs


def slim_autoencoder() -> AutoencoderTiny:
    vae = AutoencoderTiny()
    slim(vae.encoder.layers, ENCODER, 3)
    slim(vae.decoder.layers, DECODER, 4)
    return vae


@torch.no_grad()
def full_autoencoder(narrow: AutoencoderTiny) -> AutoencoderTiny:
    """The same function in the full layout: channels and blocks that are not trained are zeros."""
    vae, found = AutoencoderTiny(), narrow.state_dict()
    for name, tensor in vae.state_dict().items():
        tensor.zero_()
        if name in found:
            tensor[tuple(slice(0, size) for size in found[name].shape)] = found[name]
    return vae


@torch.no_grad()
def narrow_autoencoder(full: AutoencoderTiny) -> AutoencoderTiny:
    """`full_autoencoder` backwards: the same function with far fewer multiplications."""
    vae, found = slim_autoencoder(), full.state_dict()
    for name, tensor in vae.state_dict().items():
        tensor.copy_(found[name][tuple(slice(0, size) for size in tensor.shape)])
    return vae


def batch_of_scenes(world: EmojiWorld, count: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels -1..1 (count, 3, size, size) and object masks (count, 1, size, size), float32."""
    pixels, masks = [], []
    for number in range(count):
        image, parts = world.render(crowd(world, rng) if number % 4 else world.draw(rng))
        pixels.append(image)
        masks.append(np.any(parts, axis=0))
    pixels = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return pixels, torch.from_numpy(np.stack(masks)).unsqueeze(1).float()


def crowd(world: EmojiWorld, rng: np.random.Generator) -> EmojiScene:
    """As many objects as fit, also in grey: the autoencoder learns from each, wherever it stands."""
    size = world.object_size
    objects = []
    for top in range(0, world.size - size + 1, size):
        for left in range(0, world.size - size + 1, size):
            identity = world.draw_identity(str(rng.choice(world.nouns)), rng)
            if rng.random() < 0.1:
                identity = replace(identity, hue=None)
            objects.append(Placed(identity, left, top, size))
    return EmojiScene(tuple(objects), world.draw_background(rng))


def loss_of(
    vae: AutoencoderTiny, pixels: torch.Tensor, masks: torch.Tensor, learn_encoder: bool = True
) -> torch.Tensor:
    """Absolute and gradient errors, heavier on objects; latents pulled to unit scale and blurred by slight noise."""
    with torch.set_grad_enabled(learn_encoder):
        latents = vae.encoder(pixels).float()
    made = vae.decoder(latents + 0.05 * torch.randn_like(latents)).float()
    weight = 1 + 4 * masks
    error = ((made - pixels).abs() * weight).mean()
    for dimension in (2, 3):
        error = error + (made.diff(dim=dimension) - pixels.diff(dim=dimension)).abs().mean()
    coarse = F.avg_pool2d(made - pixels, 4).abs().mean()
    scale = latents.mean((0, 2, 3)).square().mean() + (latents.std((0, 2, 3)) - 1).square().mean()
    return error + coarse + 0.05 * scale


@torch.no_grad()
def report(vae: AutoencoderTiny, world: EmojiWorld, folder: Path) -> str:
    """Peak signal-to-noise ratio over all pixels and over the objects', on fixed scenes; writes a sheet of them,
    a row of scenes above the row of what becomes of them."""
    pixels, masks = batch_of_scenes(world, 64, np.random.default_rng(7))
    latents = vae.encoder(pixels)
    made = vae.decoder(latents).clamp(-1, 1)
    square = (made - pixels).square() / 4
    everywhere = -10 * square.mean().log10()
    objects = -10 * ((square * masks).sum() / (3 * masks.sum())).log10()
    rows = torch.cat([x[:32].unflatten(0, (4, 8)) for x in (pixels, made)], 1).flatten(0, 1)
    images = ((rows.permute(0, 2, 3, 1) + 1) * 127.5).round().byte().numpy()
    pixel_grid(images, world.size).save(folder / "pairs.png")
    return f"PSNR {everywhere:.2f} dB, objects {objects:.2f} dB, latent std {latents.std():.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", choices=WORLD_NAMES, default="full")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--freeze-encoder", action="store_true", help="only the decoder learns; latents stay")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    vae = slim_autoencoder().to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(vae.parameters(), lr=arguments.rate, betas=(0.9, 0.99))
    state_path = arguments.output / "state.pt"
    step, spent = 0, 0.0
    if state_path.exists():
        state = torch.load(state_path)
        vae.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, spent = state["step"], state["seconds"]
    world = EmojiWorld.named(arguments.world)
    precision = faster_on_cpu()
    started, saved, limit = time.monotonic() - spent, time.monotonic(), 60 * arguments.minutes
    while (spent := time.monotonic() - started) < limit:
        for group in optimizer.param_groups:  # a constant rate, then a linear fall over the last 40 %
            group["lr"] = arguments.rate * min(1, step / 100 + 0.01, max(0.02, (1 - spent / limit) / 0.4))
        pixels, masks = batch_of_scenes(world, arguments.batch, np.random.default_rng([1, step]))
        pixels = pixels.to(memory_format=torch.channels_last)
        with autocast(precision, torch.device("cpu")):
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
            with atomic_write(state_path) as file:
                torch.save(state, file)
            full_autoencoder(vae).save_pretrained(arguments.output / "vae")
            print(f"after {spent:.0f} s: {report(vae, world, arguments.output)}", flush=True)
    full_autoencoder(vae).save_pretrained(arguments.output / "vae")
    print(f"{step * arguments.batch} pictures, {report(vae, world, arguments.output)}")


if __name__ == "__main__":
    main()
