"""What the probe says of a model is what the model computes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from emoji_world.probe import ReferenceProbe, caption_of, likeliest, nearest
from emoji_world.scenes import EmojiWorld
from kosmos_core import load_model
from kosmos_core.diffusers.stable_diffusion import StableDiffusion
from kosmos_core.images import preprocess_image


@pytest.fixture(scope="module")
def probe(chain) -> ReferenceProbe:
    return ReferenceProbe(EmojiWorld.named("test"), StableDiffusion(str(chain.folder / "sd/diffusers")))


def test_conditions_are_nearest_to_the_caption_they_come_from(probe):
    generator = torch.Generator().manual_seed(0)
    conditions = probe.states + 0.01 * torch.randn(probe.states.shape, generator=generator)
    chosen, errors = nearest(conditions, probe.states, probe.weights)
    assert chosen.tolist() == list(range(len(probe.captions)))
    by_hand = (conditions[0] - probe.states[1]).square().mean(1) @ probe.weights[1] / probe.weights[1].sum()
    assert errors[0, 1] == pytest.approx(float(by_hand), abs=1e-4)


def test_the_likeliest_words_are_those_of_the_language_models_own_scores(chain, probe):
    model = load_model(chain.folder / "lm.safetensors").eval()
    tokenizer, side = model.tokenizer, model.config.vision.image_size
    candidates = ["a car", "apple", "glossy green heart"]  # of different numbers of pieces
    images = probe.references[:3]
    wanted = []
    for image in images:
        layout = tokenizer.layout("<i>", model.config.resampler.latents)
        pixels = preprocess_image(Image.fromarray(image), side)
        scores = []
        for words in candidates:
            ids = tokenizer.encode(words)
            rows = torch.tensor([layout.token_ids + ids])
            mask = torch.tensor([layout.image_mask + [False] * len(ids)])
            with torch.no_grad():
                chances = model(rows, pixels[None], mask, output="logits").log_softmax(2)[0]
            at = len(layout.token_ids) - 1
            scores.append(sum(float(chances[at + i, word]) for i, word in enumerate(ids)))
        wanted.append(candidates[int(np.argmax(scores))])
    assert likeliest(model, images, candidates) == wanted


def test_lines_count_right_answers_by_group(probe):
    assert {words.noun for words in probe.captions} == set(probe.world.nouns)
    first = probe.world.identities[0]
    assert caption_of(probe.world, first).endswith(f" {probe.words[0].colour} apple on a red background")
    wrong_look = [replace(words, look="other") if words.noun == "star" else words for words in probe.words]
    seen, _, nouns = probe.lines(wrong_look, torch.ones(len(wrong_look)))
    assert seen == "seen: noun 100%, look 100%, colour 100%, all 100%, squared error 1.0000"
    assert nouns.startswith("held-out nouns: noun 100%, look 0%, colour 100%, all 0%")
