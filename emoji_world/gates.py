"""What each step of a world's training has to reach before the next one is worth its time.

Names come before stages: a U-Net that does not paint a noun from its own CLIP's words teaches Kosmos-G nothing of it,
and a language model that does not name pictures gives AlignerNet nothing to read.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from transformers import CLIPVisionModel

from kosmos_core import load_model
from kosmos_core.diffusers.stable_diffusion import StableDiffusion

from .autoencoder import object_error
from .features import feature_nets
from .generator import EmojiGenerator
from .image_words import PhraseTokens, batch, share_right
from .judge import Judge, draw_prompts, in_words
from .probe import ReferenceProbe
from .scenes import EmojiWorld
from .text_encoder import normalise, resized

COUNT = 96  # identities, prompts or pictures that a gate looks at
Answer = tuple[bool, str]


def at_least(value: float, goal: float, what: str) -> Answer:
    return bool(value >= goal), f"{what} {value:.2f}, at least {goal:g}"


def autoencoder(world: str, folder: Path) -> Answer:
    vae = AutoencoderTiny.from_pretrained(folder / "vae" / "vae").eval()
    return at_least(object_error(vae, EmojiWorld.named(world))[1], 22, "signal-to-noise of objects in dB:")


def clip(world: str, folder: Path) -> Answer:
    """By a linear probe: ridge regression from the vision half's states to the nouns, over other pictures."""
    vision = CLIPVisionModel.from_pretrained(folder / "clip" / "vision").eval()
    own = EmojiWorld.named(world)
    nouns = sorted(own.nouns)[:: max(1, len(own.nouns) // 40)]
    states, wanted = [], []
    rng = np.random.default_rng(17)
    for number in range(16 * len(nouns)):
        noun = nouns[number % len(nouns)]
        image = own.close_up(own.arranged([own.draw_identity(noun, rng)], rng))[0]
        states.append(torch.from_numpy(resized(image, own.size)))
        wanted.append(number % len(nouns))
    with torch.no_grad():
        pixels = normalise(torch.stack(states).permute(0, 3, 1, 2))
        found = torch.cat([vision(part).pooler_output for part in pixels.split(64)])
    share = linear_probe(found, torch.tensor(wanted), held=4 * len(nouns))
    return at_least(share, 0.6, f"nouns by a linear probe of close-ups, chance {1 / len(nouns):.2f}:")


def unet(world: str, folder: Path) -> Answer:
    own, diffusion = EmojiWorld.named(world), StableDiffusion(str(folder / "sd" / "diffusers"))
    prompts = draw_prompts(own, own.groups["seen"], COUNT, 1, 61)
    images = EmojiGenerator(diffusion, None, own.size, 4.0, steps=8).generate([in_words(own, p, True) for p in prompts])
    judge = Judge(next(iter(feature_nets().values())), own)
    noun = judge.singles("", images, prompts).values["noun"].mean()
    return at_least(noun, 0.6, "nouns painted from CLIP's own captions:")


def language_model(world: str, folder: Path) -> Answer:
    probe, model = probed(world, folder, "lm-pictures")
    right = [a.noun == b.noun for a, b in zip(probe.named(model), probe.words, strict=True)]
    return at_least(float(np.mean(right)), 0.25, "nouns named by the language model from pictures:")


def image_words(world: str, folder: Path) -> Answer:
    own, model = EmojiWorld.named(world), load_model(folder / "lm.safetensors").float().eval()
    pixels, wanted = batch(own, PhraseTokens(own, model), 256, [3, 0])
    with torch.no_grad():
        return at_least(share_right(model.embed_images(pixels), wanted), 0.8, "pictures with all words right:")


def align(world: str, folder: Path) -> Answer:
    """By exact word embeddings in the pictures' place: what AlignerNet cannot read there it reads nowhere."""
    probe, model = probed(world, folder, "align")
    return all_words(probe.aligned_exactly(model)[0], probe, 0.8, "captions nearest to exact words:")


def instruct(world: str, folder: Path) -> Answer:
    probe, model = probed(world, folder, "instruct")
    return all_words(probe.aligned(model)[0], probe, 0.6, "captions nearest to pictures:")


def probed(world: str, folder: Path, weights: str) -> tuple[ReferenceProbe, torch.nn.Module]:
    probe = ReferenceProbe(EmojiWorld.named(world), StableDiffusion(str(folder / "sd" / "diffusers")), COUNT)
    return probe, load_model(folder / f"{weights}.safetensors").float().eval()


def all_words(answers: list, probe: ReferenceProbe, goal: float, what: str) -> Answer:
    pairs = zip(answers, probe.words, probe.groups["seen"], strict=True)
    return at_least(float(np.mean([a == b for a, b, seen in pairs if seen])), goal, f"seen identities, {what}")


def linear_probe(states: torch.Tensor, classes: torch.Tensor, held: int) -> float:
    """Share of the last `held` rows whose class a ridge regression on the others finds."""
    states = torch.cat([states, torch.ones(len(states), 1)], 1).double()
    fitted, wanted = states[:-held], torch.nn.functional.one_hot(classes)[:-held].double()
    ridge = 1e-2 * fitted.square().sum(0).mean() * torch.eye(states.shape[1])
    weights = torch.linalg.solve(fitted.T @ fitted + ridge, fitted.T @ wanted)
    return ((states[-held:] @ weights).argmax(1) == classes[-held:]).double().mean().item()


GATES: dict[str, Callable[[str, Path], Answer]] = {
    "autoencoder": autoencoder,
    "clip": clip,
    "unet": unet,
    "lm": language_model,
    "image-words": image_words,
    "align": align,
    "instruct": instruct,
}
