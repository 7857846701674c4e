"""The world's Stable Diffusion: it learns, and becomes a file that ComfyUI can read."""

from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from emoji_world.autoencoder import (
    draw_pictures,
    full_autoencoder,
    loss_of,
    narrow_autoencoder,
    slim_autoencoder,
    unit_range,
)
from emoji_world.diffusion import UNetTraining, blurred, build_unet, cached
from emoji_world.pieces import Schedule
from emoji_world.sampling import sample
from emoji_world.scenes import EmojiWorld
from emoji_world.single_file import save_clip, save_diffusers, single_file, unet_name
from kosmos_core.diffusers.single_file import LATENT_SCALE
from kosmos_core.diffusers.stable_diffusion import StableDiffusion


@pytest.fixture(scope="module")
def world() -> EmojiWorld:
    return EmojiWorld.named("test")


def test_the_full_autoencoder_computes_what_the_slim_one_learned(world):
    torch.manual_seed(0)
    slim = slim_autoencoder()
    optimizer = torch.optim.Adam(slim.parameters(), lr=1e-3)
    pixels, masks = draw_pictures(world, 8, 0)
    pixels, masks = unit_range(pixels), masks.float()
    losses = []
    for _ in range(40):
        loss = loss_of(slim, pixels, masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.85 * losses[0]
    full = full_autoencoder(slim)
    with torch.no_grad():
        assert torch.equal(full.encoder(pixels), slim.encoder(pixels))
        assert torch.equal(narrow_autoencoder(full).encoder(pixels), slim.encoder(pixels))
        assert torch.allclose(full.decode(full.encode(pixels).latents).sample, slim.decoder(slim.encoder(pixels)))


SCHEDULE = Schedule(samples=4, batch=4, rate=1e-3)


def test_precision_is_a_choice_of_speed_not_of_numbers(world, tmp_path):
    latents, states = torch.randn(4, 4, 4, 4), torch.randn(4, 77, 768)
    losses = []
    for name in ("bf16", "fp32"):
        training = UNetTraining(world, tmp_path, SCHEDULE, precision=name)
        losses.append(training.train_step(partial(training.noise_loss, latents, states)).item())
        assert training.done
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_blurred_conditions_stay_nearest_to_their_own():
    states = torch.randn(6, 77, 768, generator=torch.Generator().manual_seed(0))
    made = blurred(states, torch.Generator().manual_seed(1))
    distances = torch.cdist(made.flatten(1), states.flatten(1))
    assert distances.argmin(1).tolist() == list(range(6))
    assert distances.diagonal().min() > 0
    second = distances.masked_fill(torch.eye(6, dtype=torch.bool), torch.inf).argmin(1)
    assert second.tolist() == [5, 0, 1, 2, 3, 4]  # towards the row before


def test_latents_of_an_autoencoder_that_was_trained_on_are_made_again(tmp_path, capsys):
    path, network, folder, made = tmp_path / "latents.pt", torch.nn.Linear(2, 1), tmp_path / "vae", []
    folder.mkdir()
    save_file(network.state_dict(), folder / "vae.safetensors")

    def latents() -> dict[str, torch.Tensor]:
        made.append(network.weight.detach().clone())
        return {"latents": made[-1]}

    first = cached(path, (folder, ["a scene"]), latents)
    again = cached(path, (folder, ["a scene"]), latents)
    assert torch.equal(first["latents"], again["latents"])
    assert again.keys() == first.keys()
    assert len(made) == 1
    assert capsys.readouterr().out == ""
    with torch.no_grad():
        network.weight += 1
    save_file(network.state_dict(), folder / "vae.safetensors")
    assert torch.equal(cached(path, (folder, ["a scene"]), latents)["latents"], network.weight)
    assert "latents.pt: made of other weights or scenes; made again." in capsys.readouterr().out
    cached(path, (folder, ["a scene", "another"]), latents)
    assert len(made) == 3


def test_pictures_depend_on_condition_and_seed_only():
    torch.manual_seed(0)
    unet, vae = build_unet(32), full_autoencoder(slim_autoencoder())
    torch.nn.init.normal_(unet.conv_out.weight, std=0.02)
    conditions, null = torch.randn(3, 77, 768), torch.zeros(1, 77, 768)
    together = sample(unet, vae, conditions, null, 32, seed=1, steps=3)
    assert together.shape == (3, 32, 32, 3)
    assert np.array_equal(together, sample(unet, vae, conditions, null, 32, seed=1, steps=3))
    assert not np.array_equal(together, sample(unet, vae, conditions, null, 32, seed=2, steps=3))
    assert not np.array_equal(together[1:2], sample(unet, vae, conditions[:1], null, 32, seed=1, steps=3))


def test_the_single_file_has_every_tensor_under_comfyuis_names(chain):
    tensors = single_file(chain.folder / "sd/diffusers")
    unet = build_unet(32).state_dict()
    names = {unet_name(name) for name in unet}
    assert len(names) == len(unet)
    assert {name.removeprefix("model.diffusion_model.") for name in tensors if "diffusion_model" in name} == names
    assert tensors["model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"].shape == (320, 768)
    assert tensors["first_stage_model.taesd_decoder.1.weight"].shape == (64, 4, 3, 3)
    assert tensors["first_stage_model.vae_scale"].item() == pytest.approx(LATENT_SCALE, abs=1e-4)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16, torch.float8_e4m3fn}


def test_the_single_file_reads_back_as_the_models_that_it_was_made_of(chain, tmp_path):
    save_file(single_file(chain.folder / "sd/diffusers"), tmp_path / "sd.safetensors")
    folder, file = (StableDiffusion(str(path)) for path in (chain.folder / "sd/diffusers", tmp_path / "sd.safetensors"))
    unet = folder.unet()
    for made, read in ((unet, file.unet()), (folder.vae(), file.vae())):
        weights = read.state_dict()
        for name, tensor in made.state_dict().items():
            stored = torch.float8_e4m3fn if made is unet and tensor.ndim > 1 else torch.float16
            assert torch.equal(weights[name], tensor.to(stored).float()), name
    assert file.vae().config.scaling_factor == pytest.approx(folder.vae().config.scaling_factor, rel=1e-3)


def test_the_diffusers_folder_comes_back_from_the_shipped_files(chain, tmp_path):
    save_file(single_file(chain.folder / "sd/diffusers"), tmp_path / "sd.safetensors")
    save_clip(chain.folder / "sd/diffusers", tmp_path / "clip")
    save_diffusers(tmp_path / "sd.safetensors", tmp_path / "clip", tmp_path / "back")
    made, read = (StableDiffusion(str(path)) for path in (chain.folder / "sd/diffusers", tmp_path / "back"))
    words = made.tokenizer()("a glossy red heart", return_tensors="pt").input_ids
    assert torch.equal(words, read.tokenizer()("a glossy red heart", return_tensors="pt").input_ids)
    states = [model.text_encoder()(words).last_hidden_state for model in (made, read)]
    assert torch.allclose(*states, atol=2e-2)
    assert not torch.equal(*states)  # fp16 on disk
    latents = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(made.vae().decode(latents).sample, read.vae().decode(latents).sample, atol=2e-2)
    assert read.vae().config.scaling_factor == made.vae().config.scaling_factor
    training = UNetTraining(chain.world, tmp_path / "new", SCHEDULE, start=tmp_path / "back")
    for name, tensor in training.module.state_dict().items():
        assert torch.equal(tensor, read.unet().state_dict()[name]), name


def test_a_second_level_is_refused_by_name():
    with pytest.raises(ValueError, match=r"down_blocks\.1\.resnets.* is no tensor of a U-Net with one level"):
        unet_name("down_blocks.1.resnets.0.conv1.weight")
