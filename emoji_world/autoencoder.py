"""Train the world's autoencoder, f = 8 with 4 channels, in minutes; its layout is TAESD's, which ComfyUI can load.

    python -m emoji_world.autoencoder --output RUNS/vae

What is trained is a slimmer network: fewer channels where pictures are large, and a ReLU in place of most residual
blocks. The saved file has the full layout, filled with zeros, and computes the same function.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from diffusers.models.autoencoders.vae import AutoencoderTinyBlock
from torch import nn

from training.base.processes import choose_device

from .options import whole_number
from .pieces import PieceTraining, Schedule, add_options
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


def draw_pictures(world: EmojiWorld, count: int, seed: int, crowds: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels (n, 3, size, size) uint8 and masks of all objects (n, 1, size, size) bool; three of four are crowds, or
    none: scenes as the other steps draw them."""
    rng, pixels, masks = np.random.default_rng(seed), [], []
    for number in range(count):
        image, parts = world.render(crowd(world, rng) if crowds and number % 4 else world.draw(rng))
        pixels.append(image)
        masks.append(np.any(parts, axis=0))
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2), torch.from_numpy(np.stack(masks)).unsqueeze(1)


def unit_range(pixels: torch.Tensor) -> torch.Tensor:
    """8-bit pixels as the autoencoder reads and makes them, -1..1."""
    return pixels.float() / 127.5 - 1


def crowd(world: EmojiWorld, rng: np.random.Generator) -> EmojiScene:
    """As many objects as fit, also in grey: the autoencoder learns from each, wherever it stands."""
    objects = []
    for left, top, side in world.spots(rng):
        identity = world.draw_identity(str(rng.choice(world.nouns)), rng)
        if rng.random() < 0.1:
            identity = replace(identity, hue=None)
        objects.append(Placed(identity, left, top, side))
    return EmojiScene(tuple(objects), world.draw_background(rng))


def loss_of(
    vae: AutoencoderTiny,
    pixels: torch.Tensor,
    masks: torch.Tensor,
    learn_encoder: bool = True,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Absolute and gradient errors, heavier on objects; latents pulled to unit scale and blurred by slight noise."""
    with torch.set_grad_enabled(learn_encoder):
        latents = vae.encoder(pixels).float()
    noise = torch.randn(latents.shape, generator=generator, device=latents.device)
    made = vae.decoder(latents + 0.05 * noise).float()
    weight = 1 + 4 * masks
    error = ((made - pixels).abs() * weight).mean()
    for dimension in (2, 3):
        error = error + (made.diff(dim=dimension) - pixels.diff(dim=dimension)).abs().mean()
    coarse = F.avg_pool2d(made - pixels, 4).abs().mean()
    scale = latents.mean((0, 2, 3)).square().mean() + (latents.std((0, 2, 3)) - 1).square().mean()
    return error + coarse + 0.05 * scale


@torch.no_grad()
def object_error(vae: AutoencoderTiny, world: EmojiWorld) -> tuple[float, float, torch.Tensor]:
    """Peak signal-to-noise ratio in dB over all pixels and over the objects' of 64 fixed scenes, and the first 32 of
    these and of what becomes of them, -1..1, eight in a row, row above row."""
    pixels, masks = draw_pictures(world, 64, 7, crowds=False)
    pixels, masks = unit_range(pixels), masks.float()
    made = vae.decoder(vae.encoder(pixels)).clamp(-1, 1)
    square = (made - pixels).square() / 4
    everywhere = -10 * square.mean().log10()
    objects = -10 * ((square * masks).sum() / (3 * masks.sum())).log10()
    rows = torch.cat([x[:32].unflatten(0, (4, 8)) for x in (pixels, made)], 1).flatten(0, 1)
    return everywhere.item(), objects.item(), rows


def report(vae: AutoencoderTiny, world: EmojiWorld, folder: Path) -> str:
    """The errors in a line; writes the sheet of scenes above what becomes of them."""
    everywhere, objects, rows = object_error(vae, world)
    images = ((rows.permute(0, 2, 3, 1) + 1) * 127.5).round().byte().numpy()
    pixel_grid(images, world.size).save(folder / "pairs.png")
    return f"PSNR {everywhere:.2f} dB, objects {objects:.2f} dB"


def main(words: list[str] | None = None) -> bool:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", choices=WORLD_NAMES, default="full")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--pictures", type=whole_number(1), default=20_000, help="drawn once and kept on the device")
    parser.add_argument("--freeze-encoder", action="store_true", help="only the decoder learns; latents stay")
    add_options(parser, samples=128_000, batch=16, rate=1e-3)
    arguments = parser.parse_args(words)
    torch.manual_seed(0)
    world, device = EmojiWorld.named(arguments.world), choose_device(arguments.device)
    vae = slim_autoencoder().to(memory_format=torch.channels_last)
    schedule = Schedule(arguments.samples, arguments.batch, arguments.rate, warmup=100, fall=0.4)
    training = PieceTraining(vae, arguments.output, schedule, device)
    pixels, masks = (tensor.to(device) for tensor in draw_pictures(world, arguments.pictures, 1))

    def loss() -> torch.Tensor:
        generator = training.generator()
        rows = torch.randint(len(pixels), (arguments.batch,), generator=generator, device=device)
        shown = unit_range(pixels[rows]).to(memory_format=torch.channels_last)
        return loss_of(vae, shown, masks[rows].float(), not arguments.freeze_encoder, generator)

    done = training.run(loss, arguments.minutes)
    full_autoencoder(vae.cpu()).save_pretrained(arguments.output / "vae")
    print(f"{training.samples} pictures, {report(vae, world, arguments.output)}")
    return done


if __name__ == "__main__":
    main()
