"""What Kosmos-G reads from references, in a minute: no picture is generated.

    python -m emoji_world.probe --stable_diffusion RUNS/sd/diffusers WEIGHTS [WEIGHTS ...]

Every identity's reference stands in a prompt of its own. Two parts of the model are asked what it shows: the language
model, which continuation it thinks likeliest, and AlignerNet, whose caption's CLIP states its condition is nearest to.
Weights of stage 1 have the first only. Whether the U-Net makes the right picture of a right condition is not seen here.
"""

import argparse
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kosmos_core import KosmosG, load_model
from kosmos_core.diffusers.stable_diffusion import StableDiffusion
from kosmos_core.images import preprocess_image
from training.stages.alignment_loss import token_weights

from .diffusion import text_states
from .image_words import PhraseTokens
from .options import refused_by, whole_number
from .scenes import ALL_HUES, HUES, WORLD_NAMES, Background, EmojiWorld, Identity

PADDING = 0.1  # weight of CLIP's states behind a caption's end, as in the world's configurations
WHERE = Background("red")


@dataclass(frozen=True)
class IdentityWords:
    """All that a caption says of an identity."""

    noun: str
    look: str
    colour: str


def words_of(world: EmojiWorld, identity: Identity) -> IdentityWords:
    return IdentityWords(identity.noun, world.atlas.words[identity.look], world.colour(identity))


def caption_of(world: EmojiWorld, identity: Identity) -> str:
    return f"{world.phrase(identity, np.random.default_rng(0), share=1.0)} {WHERE.phrase}"


@torch.no_grad()
def nearest(conditions: Tensor, states: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest of the states (m, 77, d) to each condition (n, 77, d), (n,), and its squared errors to all, (n, m).

    weights (m, 77): of each state's tokens.
    """
    weights = weights / weights.sum(1, keepdim=True)
    weighted = (states * weights[..., None]).flatten(1)
    products = conditions.flatten(1) @ weighted.T / states.shape[2]
    errors = conditions.square().mean(2) @ weights.T - 2 * products + (states.square().mean(2) * weights).sum(1)
    return errors.argmin(1), errors


@torch.no_grad()
def likeliest(model: KosmosG, images: Sequence[np.ndarray], candidates: Sequence[str]) -> list[str]:
    """Which of the candidates the language model gives the highest probability right behind each picture."""
    tokenizer, side = model.required_tokenizer(), model.config.vision.image_size
    prompt = tokenizer.layout("<i>", model.config.resampler.latents)
    ids = [tokenizer.encode(words) for words in candidates]
    longest, count = max(map(len, ids)), len(candidates)
    padded = torch.tensor([row + [model.config.ids.pad] * (longest - len(row)) for row in ids])
    rows = torch.cat([torch.tensor(prompt.token_ids).expand(count, -1), padded], 1)
    mask = torch.tensor(prompt.image_mask + [False] * longest).expand(count, -1)
    before, found = len(prompt.token_ids), []
    for image in images:
        features = model.embed_images(preprocess_image(Image.fromarray(image), side)[None])
        hidden = model.hidden_states(rows, mask, features.expand(count, -1, -1))
        chances = model.logits(hidden[:, before - 1 : -1]).float().log_softmax(2)
        chances = chances.gather(2, padded[..., None])[..., 0].masked_fill(padded == model.config.ids.pad, 0)
        found.append(candidates[int(chances.sum(1).argmax())])
    return found


def evenly(group: Sequence[Identity], count: int | None) -> list[Identity]:
    """`count` of a group, from one end to the other; all where it has no more."""
    if count is None or count >= len(group):
        return list(group)
    return [group[int(number)] for number in np.linspace(0, len(group) - 1, count)]


class ReferenceProbe:
    """The identities of a world with their words, references and captions' states; a reader of weights.

    count: of the identities of each group, evenly chosen, where these are not all asked for.
    """

    def __init__(self, world: EmojiWorld, diffusion: StableDiffusion, count: int | None = None):
        self.world = world
        groups = {name: evenly(group, count) for name, group in world.groups.items()}
        self.identities = [identity for group in groups.values() for identity in group]
        self.words = [words_of(world, identity) for identity in self.identities]
        self.references = [world.reference(identity) for identity in self.identities]
        captions = {words: caption_of(world, x) for words, x in zip(self.words, self.identities, strict=True)}
        self.captions, texts = list(captions), list(captions.values())
        clip, tokenizer = diffusion.text_encoder(), diffusion.tokenizer()
        self.states = text_states(clip, tokenizer, texts).float()
        tokens = tokenizer(texts, padding="max_length", max_length=77, return_tensors="pt").input_ids
        self.weights = token_weights(tokens, PADDING)
        self.groups = {name: np.array([x in group for x in self.identities]) for name, group in groups.items()}

    def named(self, model: KosmosG) -> list[IdentityWords]:
        """By the language model: the likeliest noun, look and colour, each by itself."""
        answers = [
            likeliest(model, self.references, sorted({getattr(words, part) for words in self.words}))
            for part in IdentityWords.__dataclass_fields__
        ]
        return [IdentityWords(*answer) for answer in zip(*answers, strict=True)]

    def aligned(self, model: KosmosG) -> tuple[list[IdentityWords], Tensor]:
        """By AlignerNet: the words of the nearest caption, and the squared error to the reference's own, (n,)."""
        prompt, parts = f"<i> {WHERE.phrase}", []
        for start in range(0, len(self.references), 16):
            images = [[Image.fromarray(x)] for x in self.references[start : start + 16]]
            parts.append(model.encode([prompt] * len(images), images))
        return self.nearest_words(torch.cat(parts))

    @torch.no_grad()
    def aligned_exactly(self, model: KosmosG) -> tuple[list[IdentityWords], Tensor]:
        """As `aligned`, with the word embeddings of each phrase in the place of its picture's: what AlignerNet could
        read if the vision tower told it every word."""
        layout = model.required_tokenizer().layout(f"<i> {WHERE.phrase}", model.config.resampler.latents)
        phrases, parts = PhraseTokens(self.world, model), []
        ids, mask = torch.tensor([layout.token_ids]), torch.tensor([layout.image_mask])
        for start in range(0, len(self.identities), 16):
            tokens = torch.stack([phrases(identity) for identity in self.identities[start : start + 16]])
            rows = len(tokens)
            parts.append(model.encode_tokens(ids.expand(rows, -1), None, mask.expand(rows, -1), image_features=tokens))
        return self.nearest_words(torch.cat(parts))

    def nearest_words(self, conditions: Tensor) -> tuple[list[IdentityWords], Tensor]:
        chosen, errors = nearest(conditions.float(), self.states, self.weights)
        own = torch.tensor([self.captions.index(words) for words in self.words])
        return [self.captions[i] for i in chosen], errors.gather(1, own[:, None])[:, 0]

    def lines(self, answers: Sequence[IdentityWords], errors: Tensor | None = None) -> list[str]:
        """A line of each group: shares of right answers and the mean squared error."""
        lines = []
        for name, members in self.groups.items():
            pairs = [(a, b) for a, b, inside in zip(answers, self.words, members, strict=True) if inside]
            right = np.array([[x == y for x, y in zip(astuple(a), astuple(b), strict=True)] for a, b in pairs])
            noun, look, colour = right.mean(0)
            line = f"{name}: noun {noun:.0%}, look {look:.0%}, colour {colour:.0%}, all {right.all(1).mean():.0%}"
            lines.append(line if errors is None else f"{line}, squared error {errors[members].mean():.4f}")
        return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", choices=WORLD_NAMES, default="full")
    parser.add_argument("--all-hues", action="store_true", help="references in twelve hues instead of the world's two")
    parser.add_argument("--count", type=whole_number(1), help="identities of each group, where these are too many")
    parser.add_argument("--exact", action="store_true", help="also with exact word embeddings in the pictures' place")
    parser.add_argument("--stable_diffusion", required=True, help="diffusers folder of the world")
    parser.add_argument("weights", nargs="+", help="Kosmos-G weights of any stage")
    arguments = parser.parse_args()
    world = EmojiWorld.named(arguments.world, ALL_HUES if arguments.all_hues else HUES)
    with refused_by(parser):
        diffusion = StableDiffusion(arguments.stable_diffusion, option="--stable_diffusion")
        models = {path: load_model(path).float().eval() for path in arguments.weights}
    probe = ReferenceProbe(world, diffusion, arguments.count)
    for path, model in models.items():
        print(path, flush=True)
        if not arguments.all_hues:  # the language model reads every candidate behind every reference: an hour
            print("  language model", *probe.lines(probe.named(model)), sep="\n    ", flush=True)
        if model.config.aligner:
            print("  nearest caption", *probe.lines(*probe.aligned(model)), sep="\n    ", flush=True)
        if model.config.aligner and arguments.exact:
            print("  of exact words", *probe.lines(*probe.aligned_exactly(model)), sep="\n    ", flush=True)


if __name__ == "__main__":
    main()
