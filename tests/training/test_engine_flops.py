"""The analytic FLOP counts behind the utilisation figure, against torch's own counter."""

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from kosmos_core import KosmosG, KosmosGConfig
from tests.tiny.stable_diffusion import tiny_unet
from training.engine import flops
from training.stages import instruct


def counted(function):
    """FLOPs that torch counts. On the meta device attention runs as plain matrix products, which the counter knows."""
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        function()
    return counter.get_total_flops()


@pytest.fixture(scope="module")
def config():
    return KosmosGConfig.medium(reconstruction=True)


@pytest.fixture(scope="module")
def model(config):
    return KosmosG(config).eval()


def test_forward_of_every_part_equals_torch_s_count(config, model):
    token_ids = torch.randint(4, 8000, (2, 30))
    hidden, condition = torch.randn(2, 30, 512), torch.randn(2, 77, 384)
    side = config.vision.image_size
    with torch.no_grad():
        assert counted(lambda: model.hidden_states(token_ids)) == flops.decoder(config, 2, 30)
        assert counted(lambda: model.logits(hidden)) == flops.linear(60, 512, 8007)
        assert counted(lambda: model.align(hidden)) == flops.align(config, 2, 30)
        assert counted(lambda: model.reconstruct(condition, 30)) == flops.reconstruct(config, 2, 30)
        tower = flops.patch_embedding(config, 1) + config.vision.layers * flops.vision_block(config, 1)
        pixels = torch.randn(1, 3, side, side)
        assert counted(lambda: model.embed_images(pixels)) == tower + flops.resampler(config, 1)


def test_training_step_of_the_alignment_equals_torch_s_count(config, model):
    token_ids = torch.randint(4, 8000, (2, 30))
    model.requires_grad_(False)
    model.aligner.requires_grad_(True)

    def step():
        hidden = model.hidden_states(token_ids)
        condition = model.align(hidden)
        (condition.sum() + model.reconstruct(condition, 30).sum()).backward()

    # The first layer's input needs no gradient, which the rule "three forward passes" counts nevertheless.
    assert counted(step) == pytest.approx(flops.align_step(config, 2, 30), rel=0.01)


def test_alignment_without_half_n_costs_so_much_less():
    both, alone = KosmosGConfig.medium(reconstruction=True), KosmosGConfig.medium()
    saved = flops.align_step(both, 2, 30) - flops.align_step(alone, 2, 30)
    assert saved == flops.TRAINED * flops.reconstruct(both, 2, 30) > 0


def test_training_step_of_the_instruction_tuning_equals_torch_s_count(config, model):
    lengths, ids = (30, 21, 9), config.ids
    unet = tiny_unet(384).requires_grad_(False)
    token_ids = torch.full((3, 30), ids.pad)
    for row, length in enumerate(lengths):
        token_ids[row, :length] = torch.randint(4, 8000, (length,))
    batch = {"token_ids": token_ids, "latents": torch.randn(3, 4, 8, 8)}
    model.requires_grad_(False)
    for part in (model.decoder, model.resampler, model.aligner.source_encoder, model.aligner.query_decoder):
        part.requires_grad_(True)
    noise, timesteps, drop = torch.randn(3, 4, 8, 8), torch.tensor([1, 2, 3]), torch.tensor([False, True, False])

    def step():
        instruct.loss(model, unet, DDPMScheduler(), batch, noise, timesteps, drop)["loss"].backward()

    # A batch without pictures sends one blank picture through the vision tower, here without a trained block.
    blank = flops.images(config, 1, last_block_trained=False)
    analytic = flops.of_batch("instruct", config, {"unet": unet}, batch) + blank
    assert counted(step) == pytest.approx(analytic, rel=0.01)


def test_unet_vae_and_clip_equal_torch_s_count():
    from diffusers import AutoencoderKL, AutoencoderTiny
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        for options in ({}, {"block_out_channels": (32, 64), "layers_per_block": 1, "attention_head_dim": 8}):
            if options:
                options["down_block_types"] = ("CrossAttnDownBlock2D", "DownBlock2D")
                options["up_block_types"] = ("UpBlock2D", "CrossAttnUpBlock2D")
            unet = UNet2DConditionModel(cross_attention_dim=768, norm_num_groups=32, **options)
            inputs = torch.randn(2, 4, 32, 32), torch.zeros(2, dtype=torch.long), torch.randn(2, 77, 768)
            assert counted(lambda unet=unet, inputs=inputs: unet(*inputs)) == flops.unet(unet.config, 2, 32)
        vae = AutoencoderKL(
            block_out_channels=(32, 64, 64), down_block_types=("DownEncoderBlock2D",) * 3, layers_per_block=2
        )
        assert counted(lambda: vae.encode(torch.randn(2, 3, 64, 64))) == flops.vae_encoder(vae.config, 2, 64)
        tiny = AutoencoderTiny()
        assert counted(lambda: tiny.encode(torch.randn(2, 3, 64, 64))) == flops.tiny_vae_encoder(tiny.config, 2, 64)
        clip = CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12))
        token_ids = torch.zeros(2, 77, dtype=torch.long)
        assert counted(lambda: clip(token_ids)) == flops.clip_text(clip.config, 2)
