"""Teach the vision tower and the resampler to put pictures into the words that a language model of text alone knows.

    python -m emoji_world.image_words --weights RUNS/lm-words.safetensors --vision RUNS/lm-pictures.safetensors \\
        --output RUNS/lm.safetensors --minutes 16

A picture's tokens learn to be the word embeddings of its phrase: "a glossy green cat". What an AlignerNet learns from
captions it then reads in pictures, too, whether or not stage 3 shows them. Beyond the paper, whose stage 1 has the
samples to find such tokens by itself; here next-token prediction alone made tokens that told the language model
everything and an AlignerNet nothing. As in stage 1 all identities are shown.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from kosmos_core import KosmosG, load_model
from kosmos_core.weights import save_model
from training.base.precision import autocast, faster_on_cpu

from .scenes import WORLD_NAMES, Background, EmojiWorld, Identity
from .text_encoder import normalise
from .training_data import SampleMaker

RATE = 1e-3
Pixels = np.ndarray


class PhraseTokens:
    """The picture tokens (latents, width) that say an identity's phrase in a model's word embeddings."""

    def __init__(self, world: EmojiWorld, model: KosmosG):
        self.world, self.latents = world, model.config.resampler.latents
        self.tokenizer, self.table = model.required_tokenizer(), model.decoder.embedding.weight.detach().float()
        self.cached: dict[str, Tensor] = {}

    def __call__(self, identity: Identity) -> Tensor:
        phrase = self.world.phrase(identity, np.random.default_rng(0), share=1.0)
        if phrase not in self.cached:
            self.cached[phrase] = self.tokens(phrase)
        return self.cached[phrase]

    def tokens(self, phrase: str) -> Tensor:
        """Its pieces in order; places that are left hold their sum at one piece's length, which tells all at once."""
        pieces = self.table[self.tokenizer.encode(phrase)[: self.latents]]
        rest = (pieces.sum(0) / len(pieces) ** 0.5).expand(self.latents - len(pieces), -1)
        return torch.cat([pieces, rest])


def draw(make: SampleMaker) -> tuple[Pixels, Identity]:
    """A picture as prompts have them: a close-up, on white or not, or one of four times a scene of one object."""
    scene, rng = make.turned_scene(pairs=0.0), make.rng
    identity = scene.objects[0].identity
    if rng.random() < 0.25:
        return make.world.render(scene)[0], identity
    if rng.random() < 0.5:
        scene = scene.edited(background=Background("white"))
    return make.world.close_up(scene)[0], identity


def batch(world: EmojiWorld, phrases: PhraseTokens, count: int, seed: list[int]) -> tuple[Tensor, Tensor]:
    """Normalised pixels (count, 3, s, s) and the tokens to learn (count, latents, width)."""
    make = SampleMaker(world, seed)
    drawn = [draw(make) for _ in range(count)]
    size = (world.size, world.size)
    pixels = np.stack([np.asarray(Image.fromarray(x).resize(size, Image.Resampling.BICUBIC)) for x, _ in drawn])
    return normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2)), torch.stack([phrases(x) for _, x in drawn])


@torch.no_grad()
def share_right(found: Tensor, wanted: Tensor) -> float:
    """Share of pictures all of whose tokens are nearest to what they should be among the batch's."""
    hits = torch.ones(len(found), dtype=torch.bool)
    for place in range(found.shape[1]):
        distances = torch.cdist(found[:, place].float(), wanted[:, place])
        own = (found[:, place].float() - wanted[:, place]).norm(dim=1)
        hits &= own <= distances.min(1).values + 1e-4
    return hits.float().mean().item()


def train(model: KosmosG, world: EmojiWorld, minutes: float, size: int) -> None:
    """Train the vision tower and the resampler of `model` in place for so long, in batches of `size` pictures."""
    model.requires_grad_(False).eval()
    parts = nn.ModuleList([model.vision, model.resampler]).requires_grad_(True)
    optimizer = torch.optim.AdamW(parts.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=0.01)
    phrases, precision = PhraseTokens(world, model), faster_on_cpu()
    held = batch(world, phrases, 256, [3, 0])
    started, step, limit = time.monotonic(), 0, 60 * minutes
    while (spent := time.monotonic() - started) < limit:
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / 50, 0.01 + 1.5 * (1 - spent / limit))
        pixels, wanted = batch(world, phrases, size, [2, step])
        with autocast(precision, torch.device("cpu")):
            found = model.embed_images(pixels)
        loss = F.mse_loss(found.float(), wanted) / wanted.square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parts.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 100 == 0:
            rate = step * size / (time.monotonic() - started)
            print(f"step {step} ({rate:.0f}/s) error {loss.item():.3f}", flush=True)
    with torch.no_grad():
        found = model.embed_images(held[0])
    print(f"{step * size} pictures; all words right for {share_right(found, held[1]):.0%} of 256 others")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", choices=WORLD_NAMES, default="full")
    parser.add_argument("--weights", required=True, help="Kosmos-G weights of stage 1, trained on words alone")
    parser.add_argument("--vision", help="weights of stage 1 whose vision tower knows pictures already")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--batch", type=int, default=64)
    arguments = parser.parse_args()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)  # said before the training, not behind it
    model = load_model(arguments.weights).float()
    if arguments.vision:
        model.vision.load_state_dict(load_model(arguments.vision).float().vision.state_dict())
    train(model, EmojiWorld.named(arguments.world), arguments.minutes, arguments.batch)
    save_model(model, arguments.output)


if __name__ == "__main__":
    main()
