"""Prompt weights on the weights in assets/world: a weight moves the condition, ever further, in both directions."""

import pytest
import torch

from emoji_world.atlas import ASSETS
from emoji_world.prompt_weights import CHOSEN, WeightedPrompt, cases_of, moved
from emoji_world.scenes import EmojiWorld
from kosmos_core import load_model

KOSMOS = ASSETS / "emoji-world-kosmos-g.safetensors"

pytestmark = pytest.mark.skipif(not KOSMOS.exists(), reason="assets/world holds no trained weights")


@torch.no_grad()
def test_a_weight_moves_the_condition_ever_further_where_weights_on_keys_hardly_moved_it():
    model = load_model(KOSMOS).eval()
    kinds = cases_of(EmojiWorld.named("full"), 1)
    prompts = [WeightedPrompt(model, kinds[kind][0]) for kind in ("a word against a picture", "one of two pictures")]
    distance = moved(prompts, CHOSEN, (0, 0.5, 1, 1.5, 2))
    assert distance[0] > distance[0.5] > distance[1] == 0 < distance[1.5] < distance[2], distance
    assert min(distance[0.5], distance[2]) > 0.3, distance
    keys = moved(prompts, "keys of both", (0.5, 2))
    assert max(keys.values()) < 0.15, keys
