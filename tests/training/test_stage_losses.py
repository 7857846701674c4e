"""Losses, gradients and optimiser steps of the stages equal the original's recorded ones."""

from pathlib import Path

import pytest
import torch
from diffusers import PNDMScheduler, UNet2DConditionModel

from kosmos_core import KosmosG
from kosmos_core.original.tensor_names import new_name
from tests.core.golden_roles import Role, assert_close, roles
from training.engine.optim_config import OptimConfig
from training.engine.optimizer import build_optimizer
from training.stages import align, instruct, lm
from training.stages.image_embeddings import train_vision_end

ROLES = pytest.mark.parametrize("role", roles(), ids=lambda role: f"{role.folder.parent.name}-{role.folder.name}")


def _unet(role: Role) -> UNet2DConditionModel:
    """The recorded U-Net, frozen."""
    folder = role.folder / "sd" / "unet"
    unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder))
    weights = torch.load(role.folder / "checkpoint_final.pt", weights_only=True)["model"]
    prefix = "diffusion_unet.unet."
    unet.load_state_dict({k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)})
    return unet.requires_grad_(False).eval()


def _align(role: Role, model: KosmosG) -> dict[str, torch.Tensor]:
    inputs = role.tensors("inputs")
    target, pixels = role.tensors("expected_stage2")["clip_target"], inputs.get("gpt_img_src_tokens")
    mask = None if pixels is None else inputs["img_gpt_input_mask"]
    return align.loss(model, inputs["src_tokens"], target, pixels=pixels, image_mask=mask)


def _instruct(role: Role, model: KosmosG, unet: UNet2DConditionModel) -> torch.Tensor:
    inputs, recorded = role.tensors("inputs"), role.tensors("expected_stage3")
    scheduler = PNDMScheduler.from_pretrained(role.folder / "sd" / "scheduler")
    pixels = inputs.get("gpt_img_src_tokens")
    batch = {
        "token_ids": inputs["src_tokens"],
        "image_mask": None if pixels is None else inputs["img_gpt_input_mask"],
        "pixels": pixels,
        "latents": recorded["latents"],
    }
    drop = torch.tensor(role.config["stage3"]["dropped"])
    return instruct.loss(model, unet, scheduler, batch, recorded["noise"], recorded["timesteps"], drop)["loss"]


def _assert_gradients(model: KosmosG, recorded: dict, norms: dict[str, list[float] | None], scale: float) -> None:
    """Every recorded gradient and norm; `scale` is the original's loss over ours."""
    gradients = {name: p.grad * scale for name, p in model.named_parameters() if p.grad is not None}
    assert set(gradients) == {new_name(name) for name in norms}, "what trains differs"
    for name, tensor in recorded.items():
        if name.startswith("grad."):
            found = gradients[new_name(name.removeprefix("grad."))]
            assert_close(found.reshape(tensor.shape), tensor, name, tolerance=1e-4)
    # Some gradients are zero but for rounding (key biases: softmax ignores a shift), so they have no relative norm.
    least = 1e-6 * max(entry[0] for entry in norms.values() if entry)
    for name, entry in norms.items():
        norm = entry[0] if entry else 0.0  # no picture, no gradient; ours is then exactly zero
        floor = least if entry else 0.0
        assert float(gradients[new_name(name)].norm()) == pytest.approx(norm, rel=2e-4, abs=floor), name


@ROLES
def test_align_losses_and_gradients_equal_the_original(role: Role, tmp_path: Path):
    model, expected = role.model("checkpoint_stage2", tmp_path), role.config["stage2"]
    model.aligner.requires_grad_(True)
    found = _align(role, model)
    for ours, original in (("mse", "mse_loss"), ("rec", "rec_loss"), ("loss", "loss")):
        assert float(found[ours].detach()) == pytest.approx(expected[original], rel=1e-5), ours
    found["loss"].backward()
    _assert_gradients(model, role.tensors("expected_stage2"), expected["grad_norm_and_sum"], 1.0)


@ROLES
def test_three_clipped_steps_of_the_original_adam_equal_the_recorded_weights(role: Role, tmp_path: Path):
    model = role.model("checkpoint_stage2", tmp_path)
    trained = list(model.aligner.requires_grad_(True).parameters())
    config = OptimConfig(name="original", lr=1e-3)
    optimizer = build_optimizer(config, trained)
    for loss, norm in role.config["stage2"]["adam_trajectory_loss_gradnorm"]:
        optimizer.zero_grad()
        found = _align(role, model)["loss"]
        assert float(found.detach()) == pytest.approx(loss, rel=1e-5)
        if norm is None:
            break
        found.backward()
        assert float(torch.nn.utils.clip_grad_norm_(trained, config.clip_norm)) == pytest.approx(norm, rel=1e-5)
        optimizer.step()
    weights, recorded = model.state_dict(), role.tensors("expected_stage2")
    names = [name for name in recorded if name.startswith("after3.")]
    assert names
    for name in names:
        assert_close(weights[new_name(name.removeprefix("after3."))], recorded[name], name, tolerance=1e-5)


@ROLES
def test_instruct_loss_and_gradients_equal_the_original(role: Role, tmp_path: Path):
    model, expected = role.model("checkpoint_final", tmp_path), role.config["stage3"]
    for part in (model.decoder, model.resampler, model.aligner):
        part.requires_grad_(True)
    train_vision_end(model, "trained")
    found = _instruct(role, model, _unet(role))
    rows = len(expected["dropped"])  # the original sums over samples
    assert float(found.detach()) * rows == pytest.approx(expected["loss"], rel=1e-5)
    found.backward()
    norms = expected["grad_norm_and_sum_vit_checkpoint_off"]
    _assert_gradients(model, role.tensors("expected_stage3"), norms, rows)


@ROLES
def test_next_token_loss_equals_that_of_the_recorded_logits(role: Role, tmp_path: Path):
    model, inputs = role.model("checkpoint_stage2", tmp_path), role.tensors("inputs")
    pixels = inputs.get("gpt_img_src_tokens")
    counted = inputs["gpt_loss_mask"].bool() & (inputs["target"] != model.config.ids.pad)
    first = torch.zeros_like(counted[:, :1])
    batch = {
        "token_ids": torch.cat([inputs["src_tokens"][:, :1], inputs["target"]], dim=1),
        "loss_mask": torch.cat([first, counted], dim=1),
        "image_mask": None if pixels is None else torch.cat([inputs["img_gpt_input_mask"], first], dim=1),
        "pixels": pixels,
    }
    found = lm.loss(model, batch)
    logits = role.tensors("expected_stage2")["logits"]
    expected = torch.nn.functional.cross_entropy(logits[counted], inputs["target"][counted])
    assert float(found["loss"]) == pytest.approx(float(expected), rel=1e-5)
    assert int(found["tokens"]) == int(counted.sum())
