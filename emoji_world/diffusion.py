"""Train the world's U-Net on cached latents and text states, and put the small Stable Diffusion together.

    python -m emoji_world.diffusion --world half --vae RUNS/vae/vae --clip RUNS/clip --output RUNS/sd

A run that was stopped goes on when the command is given again. `RUNS/sd/diffusers` is the folder that stages 2 and 3
read; `emoji_world.single_file` makes a ComfyUI checkpoint of it.
"""

import argparse
import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from kosmos_core.atomic import atomic_write
from kosmos_core.diffusers.stable_diffusion import ddpm_scheduler
from training.base.content_digest import content_digest, files_below
from training.base.precision import autocast, choose_precision, faster_on_cpu
from training.base.processes import choose_device
from training.stages.diffusion_loss import snr_weights

from .autoencoder import narrow_autoencoder, unit_range
from .options import refused_by, require_file, share, whole_number
from .pieces import SHARD, PieceTraining, Schedule, add_options
from .sampling import sample
from .scenes import SHARES, WORLD_NAMES, EmojiScene, EmojiWorld
from .sheets import pixel_grid

EMPTY_CAPTIONS = 0.1
CAPTIONS = (0.3, 0.1, 0.6)  # how many captions have each of SHARES: prompts name nouns alone, or all
SNR_BOUNDS = (0.15, 5.0)
# Kosmos-G's conditions are never quite CLIP's. A U-Net that has seen only CLIP's own states draws only half as many
# nouns right from states with an error of a twelfth of their variance as from exact ones.
LEAN, NOISE = 0.3, 0.4


def build_unet(size: int) -> UNet2DConditionModel:
    """The smallest U-Net that ComfyUI takes for Stable Diffusion 1.5: one level of 320 channels, conditions of 768."""
    unet = UNet2DConditionModel(
        sample_size=size // 8,
        cross_attention_dim=768,
        attention_head_dim=8,
        layers_per_block=1,
        block_out_channels=(320,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
    )
    unet.set_attn_processor(AttnProcessor())  # at these sizes plain products beat the fused attention
    return unet


@torch.no_grad()
def text_states(clip: CLIPTextModel, tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """CLIP's last hidden states (n, 77, 768), bfloat16."""
    states = []
    for start in range(0, len(captions), 64):
        words = tokenizer(
            captions[start : start + 64], padding="max_length", max_length=77, truncation=True, return_tensors="pt"
        )
        with autocast(choose_precision("auto", clip.device), clip.device):
            states.append(clip(words.input_ids.to(clip.device)).last_hidden_state.bfloat16())
    return torch.cat(states)


def cached(
    path: Path, made_from: tuple[Path, object], make: Callable[[], dict[str, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """What `make` returns, from the file where it was made before; made again once the network's folder or its input
    changed."""
    folder, data = made_from
    known = content_digest(*files_below(folder)) + hashlib.sha256(repr(data).encode()).hexdigest()
    if path.exists():
        found = torch.load(path)
        if found.pop("made_from", None) == known:
            return found
        print(f"{path}: made of other weights or scenes; made again.", flush=True)
    made = make()
    with atomic_write(path) as file:
        torch.save({"made_from": known, **made}, file)
    return made


def draw_scenes(world: EmojiWorld, count: int) -> tuple[list[EmojiScene], list[str]]:
    """The scenes that the U-Net trains on, always the same, and their captions."""
    rng = np.random.default_rng(11)
    scenes = [world.draw(rng) for _ in range(count)]
    return scenes, [world.caption(scene, rng, rng.choice(SHARES, p=CAPTIONS)) for scene in scenes]


def caption_states(clip: CLIPTextModel, tokenizer: CLIPTokenizer, captions: list[str]) -> dict[str, torch.Tensor]:
    """The number of each scene's caption among the distinct ones, "" first, and the states of these."""
    distinct = {"": 0}
    numbers = [distinct.setdefault(caption, len(distinct)) for caption in captions]
    return {"numbers": torch.tensor(numbers), "states": text_states(clip, tokenizer, list(distinct))}


@torch.no_grad()
def scene_latents(world: EmojiWorld, vae: AutoencoderTiny, scenes: list[EmojiScene]) -> dict[str, torch.Tensor]:
    """Latents (n, 4, s, s)."""
    latents, encoder = [], narrow_autoencoder(vae).encoder
    for start in range(0, len(scenes), 64):
        pixels = torch.from_numpy(np.stack([world.render(scene)[0] for scene in scenes[start : start + 64]]))
        latents.append(encoder(unit_range(pixels.permute(0, 3, 1, 2).to(vae.device))))
    return {"latents": torch.cat(latents)}


def blurred(states: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """States (b, 77, 768) led up to LEAN towards those of another row, with noise of up to NOISE deviations."""
    drawn = {"generator": generator, "dtype": states.dtype, "device": states.device}
    lean, deviation = (torch.rand((len(states), 1, 1), **drawn) for _ in range(2))
    noise = torch.randn(states.shape, **drawn)
    return states.lerp(states.roll(1, 0), LEAN * lean) + NOISE * deviation * noise


class UNetTraining(PieceTraining):
    """The U-Net and its running mean."""

    def __init__(self, world: EmojiWorld, folder: Path, schedule: Schedule, start: Path | None = None, **settings: Any):
        torch.manual_seed(0)
        unet = build_unet(world.size)
        if start:
            unet.load_state_dict(UNet2DConditionModel.from_pretrained(start / "unet").state_dict())
        super().__init__(unet, folder, schedule, mean=True, **settings)
        self.noising = ddpm_scheduler()
        self.weights = snr_weights(self.noising, SNR_BOUNDS).to(self.device)

    def noise_loss(self, latents: Tensor, states: Tensor) -> Tensor:
        """Predict the noise (arXiv 2006.11239), weighted by SNR: see `snr_weights`."""
        generator, count = self.generator(), len(latents)
        noise = torch.randn(latents.shape, generator=generator, device=self.device)
        # One time from each part of the schedule: less noise in the loss than independent draws.
        parts = torch.arange(count, device=self.device) + torch.rand(count, generator=generator, device=self.device)
        times = (parts * 1000 / count).long()
        noisy, states = self.noising.add_noise(latents, noise, times), blurred(states.float(), generator)
        predicted = self.module(noisy, times, encoder_hidden_states=states).sample
        errors = (predicted.float() - noise).square().mean((1, 2, 3))
        return (errors * self.weights[times]).mean()


def main(words: list[str] | None = None) -> bool:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", choices=WORLD_NAMES, default="full")
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--clip", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--scenes", type=whole_number(1), default=16000, help="drawn once and kept on the device")
    parser.add_argument("--pairs", type=share, default=0.6, help="share of the pictures with several objects")
    parser.add_argument("--precision", choices=("bf16", "fp32"), help="default: the faster here")
    parser.add_argument("--start", type=Path, help="diffusers folder whose U-Net a new run begins with")
    add_options(parser, samples=510_000, batch=16, rate=5e-4)
    arguments = parser.parse_args(words)
    require_file(parser, "--vae", arguments.vae, "config.json", "the folder vae that emoji_world.autoencoder wrote")
    text_half = arguments.clip / "text_encoder"
    require_file(parser, "--clip", text_half, "config.json", "the folder that emoji_world.text_encoder wrote")
    if arguments.start:
        require_file(parser, "--start", arguments.start / "unet", "config.json", "a diffusers folder")
    with refused_by(parser):
        arguments.output.mkdir(parents=True, exist_ok=True)
    world, device = EmojiWorld.named(arguments.world), choose_device(arguments.device)
    vae = AutoencoderTiny.from_pretrained(arguments.vae).eval().to(device)
    clip = CLIPTextModel.from_pretrained(text_half).eval().to(device)
    tokenizer = CLIPTokenizer.from_pretrained(arguments.clip / "tokenizer")
    scenes, captions = draw_scenes(world, arguments.scenes)
    made = partial(caption_states, clip, tokenizer, captions)
    text = cached(arguments.output / "captions.pt", (text_half, captions), made)
    made = partial(scene_latents, world, vae, scenes)
    latents = cached(arguments.output / "latents.pt", (arguments.vae, scenes), made)["latents"].to(device)
    numbers, states = text["numbers"].to(device), text["states"].to(device)
    print(f"{len(latents)} scenes, {len(states) - 1} captions, latent std {latents.std():.3f}", flush=True)
    schedule = Schedule(arguments.samples, arguments.batch, arguments.rate)
    settings = {"device": device, "precision": arguments.precision}
    training = UNetTraining(world, arguments.output, schedule, arguments.start, **settings)
    several = torch.tensor([len(scene.objects) > 1 for scene in scenes], device=device)
    chances = torch.where(several, arguments.pairs / several.sum(), (1 - arguments.pairs) / (~several).sum())

    def loss() -> Tensor:
        generator = torch.Generator(device).manual_seed(2**32 + training.step)  # not the noise's own numbers again
        rows = torch.multinomial(chances, arguments.batch, replacement=True, generator=generator)
        told = torch.rand(arguments.batch, generator=generator, device=device) >= EMPTY_CAPTIONS
        return training.noise_loss(latents[rows], states[numbers[rows] * told])

    done = training.run(loss, arguments.minutes)
    unet, vae, clip = (part.cpu() for part in (training.mean, vae, clip))
    shown = [world.caption(world.draw(rng), rng) for rng in np.random.default_rng(9).spawn(24)]
    shown_states = text_states(clip, tokenizer, ["", *shown]).float()
    show(unet, vae, shown_states, world.size, arguments.output / f"samples-{training.samples:07d}.png")
    save_pipeline(unet, vae, clip, tokenizer, arguments.output / "diffusers")
    return done


def show(unet: UNet2DConditionModel, vae: AutoencoderTiny, states: torch.Tensor, size: int, path: Path) -> None:
    """A sheet of samples, enlarged; row by row in the order of the captions."""
    images = sample(unet, vae, states[1:], states[:1], size, seed=0, guidance=4.0, precision=faster_on_cpu())
    pixel_grid(images, 96).save(path)


def save_pipeline(
    unet: UNet2DConditionModel, vae: AutoencoderTiny, clip: CLIPTextModel, tokenizer: CLIPTokenizer, folder: Path
) -> None:
    """The diffusers folder of the world's Stable Diffusion."""
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=clip,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=ddpm_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder, max_shard_size=SHARD)


if __name__ == "__main__":
    main()
