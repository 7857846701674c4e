"""Teach the vision tower and the resampler to put pictures into the words that a language model of text alone knows.

    python -m emoji_world.image_words --weights RUNS/lm-words.safetensors --vision RUNS/lm-pictures.safetensors \\
        --output RUNS/lm.safetensors

A picture's tokens learn to be the word embeddings of its phrase: "a glossy green cat". What an AlignerNet learns from
captions it then reads in pictures, too, whether or not stage 3 shows them. Beyond the paper, whose stage 1 has the
samples to find such tokens by itself; here next-token prediction alone made tokens that told the language model
everything and an AlignerNet nothing. As in stage 1 all identities are shown.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kosmos_core import KosmosG, load_model
from kosmos_core.weights import save_model
from training.base.processes import choose_device

from .options import refused_by
from .pieces import PieceTraining, Schedule, add_options
from .scenes import WORLD_NAMES, Background, EmojiWorld, Identity
from .text_encoder import normalise, resized
from .training_data import SampleMaker

Pixels = np.ndarray


class PhraseTokens:
    """The picture tokens (latents, width) that say an identity's phrase in a model's word embeddings."""

    def __init__(self, world: EmojiWorld, model: KosmosG):
        self.world, self.latents = world, model.config.resampler.latents
        self.tokenizer, self.table = model.required_tokenizer(), model.decoder.embedding.weight.detach().float().cpu()
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
    pixels = np.stack([resized(image, world.size) for image, _ in drawn])
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


class ImageWordsTraining(PieceTraining):
    """The vision tower and the resampler of a model; all else of it stays."""

    def __init__(self, model: KosmosG, world: EmojiWorld, folder: Path, schedule: Schedule, **settings: Any):
        model.requires_grad_(False).eval()
        parts = nn.ModuleList([model.vision, model.resampler]).requires_grad_(True)
        super().__init__(parts, folder, schedule, **settings)
        self.model, self.world = model.to(self.device), world
        self.phrases = PhraseTokens(world, model)

    def phrase_loss(self) -> Tensor:
        """The squared error of picture tokens, as a share of the word embeddings' squares."""
        drawn = batch(self.world, self.phrases, self.schedule.batch, [2, self.step])
        pixels, wanted = (tensor.to(self.device) for tensor in drawn)
        return F.mse_loss(self.model.embed_images(pixels).float(), wanted) / wanted.square().mean()


def main(words: list[str] | None = None) -> bool:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", choices=WORLD_NAMES, default="full")
    parser.add_argument("--weights", required=True, help="Kosmos-G weights of stage 1, trained on words alone")
    parser.add_argument("--vision", help="weights of stage 1 whose vision tower knows pictures already")
    parser.add_argument("--output", type=Path, required=True)
    add_options(parser, samples=166_000, batch=64, rate=1e-3)
    arguments = parser.parse_args(words)
    world = EmojiWorld.named(arguments.world)
    with refused_by(parser):
        model = load_model(arguments.weights).float()
        if arguments.vision:
            model.vision.load_state_dict(load_model(arguments.vision).float().vision.state_dict())
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
    schedule = Schedule(arguments.samples, arguments.batch, arguments.rate, fall=0.6)
    folder = arguments.output.with_suffix(".training")
    training = ImageWordsTraining(model, world, folder, schedule, device=choose_device(arguments.device))
    done = training.run(training.phrase_loss, arguments.minutes)
    pixels, wanted = batch(world, training.phrases, 256, [3, 0])
    with torch.no_grad():
        found = model.cpu().embed_images(pixels)
    print(f"{training.samples} pictures; all words right for {share_right(found, wanted):.0%} of 256 others")
    save_model(model, arguments.output)
    return done


if __name__ == "__main__":
    main()
