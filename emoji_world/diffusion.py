"""Train the world's U-Net on cached latents and text states, and put the small Stable Diffusion together.

    python -m emoji_world.diffusion --world half --vae RUNS/vae/vae --clip RUNS/clip --output RUNS/sd --minutes 40

A run that was stopped goes on when the command is given again. `RUNS/sd/diffusers` is the folder that stages 2 and 3
read; `emoji_world.single_file` makes a ComfyUI checkpoint of it.
"""

import argparse
import copy
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from transformers import CLIPTextModel, CLIPTokenizer

from kosmos_core.atomic import atomic_write
from kosmos_core.diffusers.stable_diffusion import ddpm_scheduler
from training.base.precision import Precision, autocast, faster_on_cpu
from training.stages.diffusion_loss import snr_weights

from .autoencoder import narrow_autoencoder
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
        with autocast(faster_on_cpu(), clip.device):
            states.append(clip(words.input_ids).last_hidden_state.bfloat16())
    return torch.cat(states)


def cached(path: Path, make: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """What `make` returns, from the file where it was made before."""
    if not path.exists():
        made = make()
        with atomic_write(path) as file:
            torch.save(made, file)
    return torch.load(path)


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
        latents.append(encoder(pixels.permute(0, 3, 1, 2).float() / 127.5 - 1))
    return {"latents": torch.cat(latents)}


def blurred(states: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """States (b, 77, 768) led up to LEAN towards those of another row, with noise of up to NOISE deviations."""
    lean, deviation = (torch.rand((len(states), 1, 1), generator=generator, dtype=states.dtype) for _ in range(2))
    noise = torch.randn(states.shape, generator=generator, dtype=states.dtype)
    return states.lerp(states.roll(1, 0), LEAN * lean) + NOISE * deviation * noise


class UNetTraining:
    """U-Net, its running mean, optimiser and position; saved whole so that a stopped run loses little."""

    def __init__(self, world: EmojiWorld, folder: Path, start: Path | None = None, precision: Precision = "fp32"):
        torch.manual_seed(0)
        self.folder, self.unet, self.precision = folder, build_unet(world.size), precision
        if start:
            self.unet.load_state_dict(UNet2DConditionModel.from_pretrained(start / "unet").state_dict())
        self.mean = copy.deepcopy(self.unet).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.unet.parameters(), lr=0.0, betas=(0.9, 0.99), weight_decay=0.01, fused=True
        )
        self.step, self.samples, self.seconds = 0, 0, 0.0
        self.schedule = ddpm_scheduler()
        self.weights = snr_weights(self.schedule, SNR_BOUNDS)
        if (folder / "state.pt").exists():
            state = torch.load(folder / "state.pt")
            for name in ("unet", "mean", "optimizer"):
                getattr(self, name).load_state_dict(state[name])
            self.step, self.samples, self.seconds = state["step"], state["samples"], state["seconds"]

    def save(self) -> None:
        state = {name: getattr(self, name).state_dict() for name in ("unet", "mean", "optimizer")}
        state |= {"step": self.step, "samples": self.samples, "seconds": self.seconds}
        with atomic_write(self.folder / "state.pt") as file:
            torch.save(state, file)

    def train_step(self, latents: torch.Tensor, states: torch.Tensor, rate: float) -> float:
        """Predict the noise (arXiv 2006.11239), weighted by SNR: see `snr_weights`."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        generator = torch.Generator().manual_seed(self.step)
        noise = torch.randn(latents.shape, generator=generator)
        # One time from each part of the schedule: less noise in the loss than independent draws.
        parts = torch.arange(len(latents)) + torch.rand(len(latents), generator=generator)
        times = (parts * 1000 / len(latents)).long()
        noisy, states = self.schedule.add_noise(latents, noise, times), blurred(states.float(), generator)
        with autocast(self.precision, latents.device):
            predicted = self.unet(noisy, times, encoder_hidden_states=states).sample
        errors = (predicted.float() - noise).square().mean((1, 2, 3))
        loss = (errors * self.weights[times]).mean()
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        self.samples += len(latents)
        decay = min(0.999, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.mean.parameters()), list(self.unet.parameters()), 1 - decay)
        return loss.item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", choices=WORLD_NAMES, default="full")
    parser.add_argument("--vae", type=Path, required=True)
    parser.add_argument("--clip", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--scenes", type=int, default=16000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--pairs", type=float, default=0.4, help="share of the pictures with two objects")
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument(
        "--precision", choices=("bf16", "fp32"), default=faster_on_cpu(), help="default: the faster here"
    )
    parser.add_argument("--start", type=Path, help="diffusers folder whose U-Net a new run begins with")
    parser.add_argument("--show-every", type=float, default=5, metavar="MINUTES")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    world = EmojiWorld.named(arguments.world)
    vae = AutoencoderTiny.from_pretrained(arguments.vae).eval()
    clip = CLIPTextModel.from_pretrained(arguments.clip / "text_encoder").eval()
    tokenizer = CLIPTokenizer.from_pretrained(arguments.clip / "tokenizer")
    scenes, captions = draw_scenes(world, arguments.scenes)
    text = cached(arguments.output / "captions.pt", lambda: caption_states(clip, tokenizer, captions))
    latents = cached(arguments.output / "latents.pt", lambda: scene_latents(world, vae, scenes))["latents"]
    numbers, states = text["numbers"], text["states"]
    print(f"{len(latents)} scenes, {len(states) - 1} captions, latent std {latents.std():.3f}", flush=True)
    training = UNetTraining(world, arguments.output, arguments.start, arguments.precision)
    rng = np.random.default_rng(5)
    pair = np.array([len(scene.objects) == 2 for scene in scenes])
    chances = np.where(pair, arguments.pairs / pair.sum(), (1 - arguments.pairs) / (~pair).sum())
    shown = [f"a {noun} on a {colour} background" for noun in world.nouns for colour in ("blue", "white")][:20]
    shown += [
        "a cat and a car on a grey background",
        "a red heart and a banana on a green background",
        "a sticker car on a yellow background",
        "a glossy green apple on a white background",
    ]
    shown_states = text_states(clip, tokenizer, ["", *shown]).float()
    started, saved, showed = time.monotonic() - training.seconds, time.monotonic(), time.monotonic()
    limit, began = 60 * arguments.minutes, training.samples
    beginning = time.monotonic()
    while (spent := time.monotonic() - started) < limit:
        rows = torch.from_numpy(rng.choice(len(latents), arguments.batch, p=chances))
        chosen = numbers[rows] * torch.from_numpy(rng.random(arguments.batch) >= EMPTY_CAPTIONS)
        rate = arguments.rate * min(1, (training.step + 1) / 50, max(0.03, (1 - spent / limit) / 0.3))
        loss = training.train_step(latents[rows], states[chosen], rate)
        if training.step % 50 == 0:
            speed = (training.samples - began) / (time.monotonic() - beginning)
            print(f"step {training.step}, {training.samples} samples ({speed:.1f}/s) loss {loss:.4f}", flush=True)
        if time.monotonic() - saved > 120:
            saved, training.seconds = time.monotonic(), time.monotonic() - started
            training.save()
        if time.monotonic() - showed > 60 * arguments.show_every:
            showed = time.monotonic()
            show(training.mean, vae, shown_states, world.size, arguments.output / f"samples-{training.samples:07d}.png")
    training.seconds = time.monotonic() - started
    training.save()
    show(training.mean, vae, shown_states, world.size, arguments.output / f"samples-{training.samples:07d}.png")
    save_pipeline(training.mean, vae, clip, tokenizer, arguments.output / "diffusers")


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
    ).save_pretrained(folder)


if __name__ == "__main__":
    main()
