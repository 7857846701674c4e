"""What the losses of the stages promise beyond the original's numbers."""

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel

from kosmos_core import KosmosG, KosmosGConfig
from tests.tiny.stable_diffusion import tiny_unet
from training.stages import align, instruct, lm, lm_loss
from training.stages.image_embeddings import train_vision_end

IDS = KosmosGConfig.tiny().ids
IMAGE = [IDS.image_start] * 5 + [IDS.image_end]
IMAGE_MASK = [False, True, True, True, True, False]


@pytest.fixture
def model() -> KosmosG:
    return KosmosG(KosmosGConfig.tiny(reconstruction=True)).initialize(0).requires_grad_(False)


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return tiny_unet().requires_grad_(False).eval()


def _texts(rows: int = 2, length: int = 9) -> torch.Tensor:
    tokens = torch.randint(4, 100, (rows, length), generator=torch.Generator().manual_seed(1))
    tokens[:, 0] = IDS.bos
    return tokens


def _instruct_batch(rows: int = 3, images: bool = True) -> dict:
    random = torch.Generator().manual_seed(2)
    tokens, mask = _texts(rows, 12), torch.zeros(rows, 12, dtype=torch.bool)
    if images:
        tokens[:, 4:10], mask[:, 4:10] = torch.tensor(IMAGE), torch.tensor(IMAGE_MASK)
    return {
        "token_ids": tokens,
        "image_mask": mask,
        "pixels": torch.randn(rows, 3, 224, 224, generator=random) if images else None,
        "latents": torch.randn(rows, 4, 8, 8, generator=random),
    }


def _diffusion_loss(model, unet, batch, drop, scheduler=None):
    rows = len(batch["latents"])
    noise = torch.randn(rows, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    timesteps = torch.arange(rows) * 300 + 5
    return instruct.loss(model, unet, scheduler or DDPMScheduler(), batch, noise, timesteps, torch.tensor(drop))["loss"]


@torch.no_grad()
def test_paper_reconstruction_leaves_out_the_length_factor(model):
    tokens, target = _texts(length=20), torch.randn(2, 77, 768)
    ours, paper = (align.loss(model.eval(), tokens, target, rec=rec) for rec in ("original", "paper"))
    assert float(ours["rec"]) == pytest.approx(float(paper["rec"]) * 77 / 20, rel=1e-6)
    assert torch.equal(ours["mse"], paper["mse"])


@torch.no_grad()
def test_without_half_n_the_alignment_s_error_is_the_loss(model):
    alone = KosmosG(KosmosGConfig.tiny()).eval()
    alone.load_state_dict({name: model.state_dict()[name] for name in alone.state_dict()})
    tokens, target = _texts(), torch.randn(2, 77, 768)
    both, one = (align.loss(x.eval(), tokens, target) for x in (model, alone))
    assert torch.equal(one["mse"], both["mse"])
    assert torch.equal(one["loss"], one["mse"])
    assert float(one["rec"]) == 0 < float(both["rec"])


@torch.no_grad()
def test_dropout_acts_on_the_frozen_language_model_in_train_mode_only(model):
    tokens, target = _texts(), torch.randn(2, 77, 768)
    losses = {}
    for mode in (False, True):
        losses[mode] = [float(align.loss(model.train(mode), tokens, target)["loss"]) for _ in range(2)]
    assert losses[False][0] == losses[False][1]
    assert losses[True][0] != losses[True][1]


def test_null_condition_replaces_dropped_samples_and_learns(model, unet):
    batch = _instruct_batch()
    model.eval().aligner.query_decoder.requires_grad_(True)
    with torch.no_grad():
        draws = [False] * 3, [False, True, False], [True] * 3
        kept, mixed, null = (_diffusion_loss(model, unet, batch, drop) for drop in draws)
        other = _instruct_batch()
        other["token_ids"][1, 1:4] += 1
        changed = _diffusion_loss(model, unet, other, [False, True, False])
    assert len({float(kept), float(mixed), float(null)}) == 3
    assert torch.equal(mixed, changed), "a dropped sample's own prompt still matters"
    _diffusion_loss(model, unet, batch, [True] * 3).backward()
    assert float(model.aligner.query_decoder.queries.weight.grad.norm()) > 0


def test_one_pass_through_the_language_model_serves_samples_and_null_condition(model, unet):
    passes = []
    model.decoder.register_forward_hook(lambda *_: passes.append(1))
    with torch.no_grad():
        _diffusion_loss(model.eval(), unet, _instruct_batch(), [False, True, False])
    assert len(passes) == 1


def test_velocity_models_are_trained_on_velocity(model, unet):
    scheduler = DDPMScheduler(prediction_type="v_prediction")
    with torch.no_grad():
        batch = _instruct_batch()
        velocity = _diffusion_loss(model.eval(), unet, batch, [False] * 3, scheduler)
        noise = _diffusion_loss(model, unet, batch, [False] * 3)
    assert float(velocity) != pytest.approx(float(noise), rel=1e-3)


@pytest.mark.parametrize("last_block", ["trained", "frozen"])
def test_last_vision_block_trains_unless_frozen(model, unet, last_block):
    for part in (model.decoder, model.resampler, model.aligner.source_encoder, model.aligner.query_decoder):
        part.requires_grad_(True)
    train_vision_end(model, last_block)
    _diffusion_loss(model.train(), unet, _instruct_batch(), [False] * 3).backward()
    touched = {name for name, p in model.vision.named_parameters() if p.grad is not None and p.grad.any()}
    block = {name for name, _ in model.vision.named_parameters() if name.startswith("blocks.1.")}
    expected = {"norm_post.weight", "norm_post.bias"} | (block if last_block == "trained" else set())
    rounding = {"blocks.1.attention.k_proj.bias"}  # softmax ignores a shift of all keys: zero but for rounding
    assert touched - rounding == expected - rounding


def test_every_trained_parameter_gets_a_gradient_from_a_batch_without_pictures(model, unet):
    model.decoder.requires_grad_(True)
    model.resampler.requires_grad_(True)
    train_vision_end(model, "trained")
    _diffusion_loss(model.train(), unet, _instruct_batch(images=False), [False] * 3).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert not model.resampler.dense.weight.grad.any()


def _documents() -> tuple[dict, list[torch.Tensor]]:
    """Two rows of two packed documents each, one with a picture, and the four documents alone."""
    texts = [torch.cat([torch.tensor([IDS.bos]), _texts(1, n)[0, 1:], torch.tensor([IDS.eos])]) for n in (6, 9, 4, 7)]
    texts[1] = torch.cat([texts[1][:2], torch.tensor(IMAGE), texts[1][2:]])
    rows = [torch.cat(texts[:2]), torch.cat(texts[2:])]
    length = max(map(len, rows)) + 1
    token_ids, documents = torch.full((2, length), IDS.pad), torch.full((2, length), -1)
    for row, (tokens, pair) in enumerate(zip(rows, (texts[:2], texts[2:]), strict=True)):
        token_ids[row, : len(tokens)] = tokens
        documents[row, : len(tokens)] = torch.cat([torch.full((len(t),), n) for n, t in enumerate(pair)])
    boi = (token_ids == IDS.image_start).nonzero()[0]
    mask = torch.zeros_like(token_ids, dtype=torch.bool)
    mask[boi[0], boi[1] + 1 : boi[1] + 5] = True
    special = (token_ids < IDS.eos) | (token_ids == IDS.image_start) | (token_ids == IDS.image_end)
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(4))
    batch = {"token_ids": token_ids, "image_mask": mask, "pixels": pixels, "loss_mask": ~special}
    return batch | {"document_ids": documents}, texts


@torch.no_grad()
def test_documents_packed_with_their_ids_have_the_loss_of_documents_alone(model):
    batch, texts = _documents()
    total, tokens = 0.0, 0
    for number, text in enumerate(texts):
        mask = torch.zeros(1, len(text), dtype=torch.bool)
        mask[0, 3:7] = number == 1
        special = (text < IDS.eos) | (text == IDS.image_start) | (text == IDS.image_end)
        alone = {"token_ids": text[None], "image_mask": mask, "loss_mask": ~special[None]}
        found = lm.loss(model.eval(), alone | {"pixels": batch["pixels"] if number == 1 else None})
        total, tokens = total + float(found["loss"]) * int(found["tokens"]), tokens + int(found["tokens"])
    packed = lm.loss(model, batch)
    assert int(packed["tokens"]) == tokens
    assert float(packed["loss"]) == pytest.approx(total / tokens, rel=1e-6)
    unmasked = lm.loss(model, {k: v for k, v in batch.items() if k != "document_ids"})
    assert float(unmasked["loss"]) != pytest.approx(float(packed["loss"]), rel=1e-3)


def test_scores_in_pieces_give_the_same_loss_and_gradient(model, monkeypatch):
    batch, _ = _documents()
    model.eval().decoder.requires_grad_(True)
    found = []
    for rows in (1024, 3):
        monkeypatch.setattr(lm_loss, "ROWS_OF_LOGITS", rows)
        model.zero_grad()
        result = lm.loss(model, batch)["loss"]
        result.backward()
        found.append((float(result.detach()), model.decoder.embedding.weight.grad.clone()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-7)


@torch.no_grad()
def test_a_batch_without_targets_has_no_loss_and_no_tokens(model):
    found = lm.loss(model.eval(), {"token_ids": _texts(), "loss_mask": torch.zeros(2, 9, dtype=torch.bool)})
    assert (float(found["loss"]), int(found["tokens"])) == (0.0, 0)
