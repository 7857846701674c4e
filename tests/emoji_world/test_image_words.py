"""Picture tokens learn the word embeddings of what pictures show, and nothing else of the model moves."""

import pytest
import torch

from emoji_world.image_words import ImageWordsTraining, PhraseTokens, batch, share_right
from emoji_world.pieces import Schedule
from emoji_world.scenes import HUES, EmojiWorld, Identity
from kosmos_core import load_model


@pytest.fixture
def model(chain):
    return load_model(chain.folder / "lm.safetensors").float()


def test_tokens_are_the_pieces_of_the_phrase_and_then_their_sum(model):
    world = EmojiWorld.named("test")
    phrases, latents = PhraseTokens(world, model), model.config.resampler.latents
    pieces = model.decoder.embedding.weight[model.tokenizer.encode("a heart")].detach()
    tokens = phrases.tokens("a heart")
    assert len(pieces) < len(tokens) == latents
    assert torch.equal(tokens[: len(pieces)], pieces)
    assert torch.allclose(tokens[len(pieces) :], pieces.sum(0) / len(pieces) ** 0.5)
    identity = Identity("heart", "noto", HUES[0])
    phrase = f"a {world.atlas.words['noto']} {world.colour(identity)} heart"
    assert torch.equal(phrases(identity), phrases.tokens(phrase))
    assert len(phrases(identity)) == latents  # a phrase of more pieces is cut


def test_training_brings_pictures_near_their_words_and_leaves_the_language_model(model, tmp_path):
    world = EmojiWorld.named("test")
    pixels, wanted = batch(world, PhraseTokens(world, model), 32, [9])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def error() -> float:
        return float((model.embed_images(pixels) - wanted).square().mean())

    first = error()
    training = ImageWordsTraining(model, world, tmp_path, Schedule(samples=1_600, batch=16, rate=1e-3))
    assert training.run(training.phrase_loss)
    assert error() < 0.5 * first
    after = model.state_dict()
    assert {name.split(".")[0] for name in after if not torch.equal(after[name], before[name])} == {
        "vision",
        "resampler",
    }


def test_right_asks_for_every_token():
    wanted = torch.eye(4).repeat(1, 2).reshape(4, 2, 4)
    found = wanted.clone()
    assert share_right(found, wanted) == 1
    found[1, 1] = wanted[2, 1]
    assert share_right(found, wanted) == 0.75
