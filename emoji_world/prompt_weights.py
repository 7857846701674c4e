"""What a prompt weight does, by where it acts: on conditions, and on pictures of the small world.

    python -m emoji_world.prompt_weights --output RUNS/weights              # with 12 prompts of each kind
    python -m emoji_world.prompt_weights --output RUNS/weights --paint 0    # conditions alone

Prints, and writes as numbers and a figure: how decided AlignerNet's attention is, how far each place moves the
condition, and what the world's judge sees in the painted pictures. In half of the kinds of prompts a word and a picture
contradict each other, so that there is room above a weight of 1. Steps, noise and prompts are fixed.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kosmos_core import KosmosG, Prompt, load_model
from kosmos_core.aligner import AlignerNet
from kosmos_core.diffusers.stable_diffusion import StableDiffusion
from kosmos_core.images import preprocess_image
from kosmos_core.layers import AttentionPattern, normalise
from kosmos_core.tokenizer import Layout

from .atlas import ASSETS
from .features import ObjectFeatures
from .judge import Judge, PromptCase, draw_prompts
from .options import refused_by, whole_number
from .probe import words_of
from .sampling import sample
from .scenes import EmojiWorld
from .weight_curves import figure, table

WEIGHTS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0)
SHARPNESS = 0.05  # the judge's cosines are divided by it before the softmax
GUIDANCE, STEPS, SEED = 4.0, 6, 3


@dataclass
class Case:
    """A prompt with W for the weight, its pictures, and what the weighted part asks for."""

    text: str
    images: list[Image.Image]
    nouns: set[str]  # whose identities count as what was weighted
    colour: str | None = None  # among them only those of this colour count, as a share of all
    identity: object = None  # only this one counts


def article(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'}"


def cases_of(world: EmojiWorld, count: int) -> dict[str, list[Case]]:
    """Prompts of every kind, over identities that stage 3 has seen."""
    seen = world.groups["seen"]
    kinds: dict[str, list[Case]] = {}
    for drawn in draw_prompts(world, seen, count, 2, 77):
        for kind, case in _cases(world, drawn).items():
            kinds.setdefault(kind, []).append(case)
    return kinds


def _cases(world: EmojiWorld, drawn: PromptCase) -> dict[str, Case]:
    one, two = drawn.identities
    where = drawn.background.phrase
    shown, other = (Image.fromarray(reference) for reference in drawn.references)
    own = words_of(world, one).colour
    colours = sorted({words_of(world, x).colour for x in world.identities if x.noun == one.noun} - {own}) or [own]
    a, b = f"{article(one.noun)} {one.noun}", f"{article(two.noun)} {two.noun}"
    weighted = f"{article(two.noun)} ({two.noun}:W)"
    return {
        "a word alone": Case(f"{article(one.noun)} ({one.noun}:W) {where}", [], {one.noun}),
        "a word against a picture": Case(f"{weighted} <i> {where}", [shown], {two.noun}),
        "a colour against a picture": Case(
            f"{article(colours[0])} ({colours[0]}:W) {one.noun} <i> {where}", [shown], {one.noun}, colour=colours[0]
        ),
        "a picture against a word": Case(f"{b} (<i>:W) {where}", [shown], {one.noun}),
        "one of two words": Case(f"{weighted} and {a} {where}", [], {two.noun}),
        "one of two pictures": Case(f"(<i>:W) and <i> {where}", [shown, other], {one.noun}, identity=one),
        "nested, several": Case(f"(({weighted}:1.2) <i>:1.1) ({where}:0.9)", [shown], {two.noun}),
    }


class WeightedPrompt:
    """A prompt with its language model's states, which no weight changes, and its condition by any place."""

    def __init__(self, model: KosmosG, case: Case):
        self.model, self.case = model, case
        marker = Prompt.parse(case.text.replace("W)", "7)"), images=len(case.images))
        inner = {s.weight for s in marker.segments if s.weight >= 6}
        self.layout = self._layout(marker)
        self.chosen = torch.tensor([weight >= 6 for weight in self.layout.key_weights])
        self.states = self.hidden(self.layout)
        self.neutral = model.align(self.states)[0]
        self.without = model.align(self.states, key_weights=(~self.chosen).float()[None])[0]
        kept = Prompt(tuple(segment for segment in marker.segments if segment.weight not in inner))
        self.removed = model.align(self.hidden(self._layout(kept)))[0]
        ids = [
            model.config.ids.pad if x else t for x, t in zip(self.chosen.tolist(), self.layout.token_ids, strict=True)
        ]
        mask = [m and not x for x, m in zip(self.chosen.tolist(), self.layout.image_mask, strict=True)]
        slots = [image.index for image in kept.images]
        padded = self.hidden(replace(self.layout, token_ids=ids, image_mask=mask, image_slots=slots))
        self.padded = model.align(padded, padding_mask=self.chosen[None])[0]

    def _layout(self, prompt: Prompt) -> Layout:
        return self.model.required_tokenizer().layout(prompt, self.model.config.resampler.latents)

    def hidden(self, layout: Layout, scale: Tensor | None = None) -> Tensor:
        """Hidden states (1, s, width); `scale` (s,) multiplies what goes into the language model, positions apart."""
        model, decoder = self.model, self.model.decoder
        ids, mask = torch.tensor([layout.token_ids]), torch.tensor([layout.image_mask])
        size = model.config.vision.image_size
        prepared = [preprocess_image(self.case.images[slot], size) for slot in layout.image_slots]
        embeddings = torch.stack([model.image_embeddings(x) for x in prepared]) if prepared else None
        x = decoder.embed(ids, mask if prepared else None, embeddings)
        if scale is not None:
            positions = decoder._positions(ids, None)
            x = (x - positions) * scale[:, None] + positions
        for block in decoder.blocks:
            x = block(x, AttentionPattern(causal=True))
        return normalise(decoder.norm, x)

    def weights(self, weight: float) -> Tensor:
        """The weight of each token, (s,)."""
        prompt = Prompt.parse(self.case.text.replace("W)", f"{weight})"), images=len(self.case.images))
        return torch.tensor(self._layout(prompt).key_weights or [1.0] * len(self.chosen))


def biased(prompt: WeightedPrompt, weight: float, encoder: bool, decoder: bool) -> Tensor:
    """The logarithm of the weight added to the logits of AlignerNet's attention."""
    aligner, bias = prompt.model.aligner, prompt.weights(weight).log()[None]
    memory = aligner.source_encoder(prompt.states, AttentionPattern(key_bias=bias if encoder else None))
    pattern = AttentionPattern(key_bias=bias if decoder else None)
    return aligner.query_decoder(memory, aligner.config.queries, pattern)[0]


def scaled_values(prompt: WeightedPrompt, weight: float) -> Tensor:
    """The values of AlignerNet's cross-attention times the weight."""
    factors = prompt.weights(weight)[:, None]
    blocks = prompt.model.aligner.query_decoder.blocks
    hooks = [x.cross_attention.v_proj.register_forward_hook(lambda _, __, out: out * factors) for x in blocks]
    condition = prompt.model.align(prompt.states)[0]
    for hook in hooks:
        hook.remove()
    return condition


def scaled_embeddings(prompt: WeightedPrompt, weight: float) -> Tensor:
    """What the language model reads, word and image embeddings, times the weight."""
    return prompt.model.align(prompt.hidden(prompt.layout, prompt.weights(weight)))[0]


def extrapolated(prompt: WeightedPrompt, weight: float, without: str) -> Tensor:
    """Along the line from a condition without the weighted part through the neutral one."""
    return torch.lerp(getattr(prompt, without), prompt.neutral, weight)


def shipped(prompt: WeightedPrompt, weight: float) -> Tensor:
    """As the encoder does it: `kosmos_core.emphasis`."""
    return prompt.model.align(prompt.states, key_weights=prompt.weights(weight)[None])[0]


CHOSEN = "readings (chosen)"
PLACES: dict[str, Callable[[WeightedPrompt, float], Tensor]] = {
    "keys of the encoder": partial(biased, encoder=True, decoder=False),
    "keys of the cross-attention": partial(biased, encoder=False, decoder=True),
    "keys of both": partial(biased, encoder=True, decoder=True),
    "values": scaled_values,
    "embeddings": scaled_embeddings,
    "with - without, masked": partial(extrapolated, without="without"),
    "with - without, removed": partial(extrapolated, without="removed"),
    "with - without, padded": partial(extrapolated, without="padded"),
    CHOSEN: shipped,
}
# What is the same by construction is painted once: at 0 keys and readings, up to 1 readings and extrapolation.
PAINTED = {
    "keys of both": (0.5, 1.0, 2.0, 3.0),
    "values": (0.5, 1.0, 2.0),
    "embeddings": (0.5, 1.0, 2.0),
    "with - without, masked": (1.0, 1.5, 2.0, 3.0),
    CHOSEN: WEIGHTS,
}
ONLY_CHOSEN = "nested, several"  # a kind for which the other places have no rule


def decided(aligner: AlignerNet, prompts: list[WeightedPrompt]) -> dict[str, float]:
    """How much of the cross-attention goes to the weighted part, head by head and query by query."""
    found: list[Tensor] = []
    for prompt in prompts:
        seen: list[Tensor] = []  # a layer's queries, then its keys
        layers = [block.cross_attention for block in aligner.query_decoder.blocks]
        hooks = [
            part.register_forward_hook(lambda _, __, out, seen=seen: seen.append(out[0]))
            for layer in layers
            for part in (layer.q_proj, layer.k_proj)
        ]
        prompt.model.align(prompt.states)
        for hook in hooks:
            hook.remove()
        for layer, query, key in zip(layers, seen[::2], seen[1::2], strict=True):
            query, key = (x.unflatten(-1, (layer.heads, -1)).transpose(0, 1) for x in (query, key))
            attention = (query @ key.mT * query.shape[-1] ** -0.5).softmax(-1)
            found.append(attention[..., prompt.chosen].sum(-1).flatten())
    share = torch.cat(found)
    doubled = 2 * share / (1 + share)
    return {
        "share below 1 %": float((share < 0.01).float().mean()),
        "share above 90 %": float((share > 0.9).float().mean()),
        "mean share": float(share.mean()),
        "mean share with its odds doubled": float(doubled.mean()),
    }


def moved(prompts: list[WeightedPrompt], place: str, weights: Sequence[float] = WEIGHTS) -> dict[float, float]:
    """Distance to the neutral condition, as a share of the distance that removing the part from the prompt makes."""
    found: dict[float, float] = {}
    for weight in weights:
        found[weight] = float(
            np.mean([(PLACES[place](x, weight) - x.neutral).norm() / (x.removed - x.neutral).norm() for x in prompts])
        )
    return found


class Painter:
    """Paints conditions and asks the judge for the probability of what was weighted."""

    def __init__(self, world: EmojiWorld, model: KosmosG, diffusion: StableDiffusion):
        self.unet, self.vae, self.null = diffusion.unet(), diffusion.vae(), model.encode([""])
        self.world, self.judge = world, Judge(ObjectFeatures(), world)
        self.colours = [words_of(world, identity).colour for identity in self.judge.identities]

    def paint(self, conditions: list[Tensor]) -> np.ndarray:
        """uint8 (n, size, size, 3)."""
        settings = {"seed": SEED, "guidance": GUIDANCE, "steps": STEPS}
        return sample(self.unet, self.vae, torch.stack(conditions), self.null, self.world.size, **settings)

    def probability(self, images: np.ndarray, cases: list[Case]) -> float:
        """Mean of `probabilities`."""
        return float(self.probabilities(images, cases).mean())

    def probabilities(self, images: np.ndarray, cases: list[Case]) -> np.ndarray:
        """Of each picture; where a prompt has two objects, of the likeliest among left, middle and right."""
        side = self.world.object_size
        pair = any(" and " in case.text for case in cases)
        views = [images[:, :, at : at + side] for at in (0, side // 2, side)] if pair else [images]
        chances = [
            (self.judge.features(list(view)) @ self.judge.gallery.T / SHARPNESS).softmax(1).numpy() for view in views
        ]
        return np.array([max(self._asked(x[row], case) for x in chances) for row, case in enumerate(cases)])

    def _asked(self, chances: np.ndarray, case: Case) -> float:
        if case.identity is not None:
            return chances[self.judge.number[case.identity]]
        own = np.isin(self.judge.nouns, list(case.nouns))
        if case.colour is None:
            return chances[own].sum()
        return chances[own & (np.array(self.colours) == case.colour)].sum() / chances[own].sum()


def painted(painter: Painter, kind: str, prompts: list[WeightedPrompt]) -> dict[str, dict[float, list[float]]]:
    """For each place and weight: mean difference to the neutral picture in 255 levels, probability."""
    cases = [prompt.case for prompt in prompts]
    base = painter.paint([shipped(prompt, 1.0) for prompt in prompts])
    neutral = [0.0, painter.probability(base, cases)]
    curves: dict[str, dict[float, list[float]]] = {}
    for place, weights in PAINTED.items():
        if kind == ONLY_CHOSEN and place != CHOSEN:
            continue
        curves[place] = {}
        for weight in weights:
            if weight == 1:
                curves[place][weight] = neutral
                continue
            images = painter.paint([PLACES[place](prompt, weight) for prompt in prompts])
            difference = np.abs(images.astype(int) - base).mean()
            curves[place][weight] = [float(difference), painter.probability(images, cases)]
    return curves


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kosmos_g", type=Path, default=ASSETS / "emoji-world-kosmos-g.safetensors")
    parser.add_argument("--stable_diffusion", type=Path, default=ASSETS / "emoji-world-sd.safetensors")
    parser.add_argument("--count", type=whole_number(1), default=12, help="prompts of each kind that are compared")
    parser.add_argument(
        "--paint", type=whole_number(0), default=12, help="prompts of each kind that are painted; 0: none"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for the tables, numbers and figure")
    arguments = parser.parse_args()
    world = EmojiWorld.named("full")
    with refused_by(parser):
        model = load_model(arguments.kosmos_g).eval()
        diffusion = StableDiffusion(arguments.stable_diffusion, option="--stable_diffusion")
    drawn = cases_of(world, max(arguments.count, arguments.paint))
    kinds = {kind: [WeightedPrompt(model, x) for x in cases] for kind, cases in drawn.items()}
    plain = {kind: prompts[: arguments.count] for kind, prompts in kinds.items() if kind != ONLY_CHOSEN}
    report: dict = {"attention": {kind: decided(model.aligner, prompts) for kind, prompts in plain.items()}}
    print(json.dumps(report["attention"], indent=1), flush=True)
    arguments.output.mkdir(parents=True, exist_ok=True)
    everything = [prompt for prompts in plain.values() for prompt in prompts]
    report["condition"] = {place: moved(everything, place) for place in PLACES}
    print(table(report["condition"], WEIGHTS), flush=True)
    report["pictures"] = {}
    if arguments.paint:
        painter = Painter(world, model, diffusion)
        for kind, prompts in kinds.items():
            report["pictures"][kind] = painted(painter, kind, prompts[: arguments.paint])
            print(kind, table(report["pictures"][kind], WEIGHTS), sep="\n", flush=True)
            (arguments.output / "weights.json").write_text(json.dumps(report, indent=1) + "\n")
        (arguments.output / "prompt-weights.svg").write_text(figure(report["pictures"]))
    (arguments.output / "weights.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
