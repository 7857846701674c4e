"""Any Stable Diffusion 1.x model can be trained through: a diffusers folder or a single file, without a network."""

import argparse
import json
import os
import shutil
import socket
import subprocess
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from kosmos_core.diffusers import stable_diffusion
from kosmos_core.diffusers.checkpoint_file import read_tensors
from kosmos_core.diffusers.single_file import UNET, unet_config, vae_config
from kosmos_core.diffusers.stable_diffusion import SIZES as OFFICIAL_SIZES
from kosmos_core.diffusers.stable_diffusion import StableDiffusion, load_controlnet
from kosmos_core.safetensors_file import WeightsError
from tests.core.golden_roles import roles
from tests.tiny.comfyui_files import save_tiny_controlnet
from tests.tiny.stable_diffusion import SIZES, save_folder, save_single_file, single_file_names, tiny_parts
from training import run
from training.base.rng import RowRng
from training.plan.unread_stable_diffusion import UnreadStableDiffusion
from training.stages import align, instruct
from training.stages.diffusion_loss import encode_images
from training.stages.frozen_diffusion import configured_stable_diffusion

PARTS = ("unet", "vae", "text_encoder")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Any attempt to reach the network fails."""

    def refuse(*_):
        raise OSError("a test tried to use the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def parts():
    return tiny_parts()


@pytest.fixture(scope="module")
def folder(parts, tmp_path_factory) -> Path:
    return save_folder(parts, tmp_path_factory.mktemp("diffusers"))


def _assert_equal(found, expected):
    a, b = found.state_dict(), expected.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not found.training
    assert not any(p.requires_grad for p in found.parameters())


@pytest.mark.parametrize("name", ["model.safetensors", "model.ckpt"])
@pytest.mark.parametrize("part", PARTS)
def test_single_file_gives_the_very_weights(parts, tmp_path, name, part):
    diffusion = StableDiffusion(str(save_single_file(parts, tmp_path / name)))
    _assert_equal(getattr(diffusion, part)(), parts[part])


@pytest.mark.parametrize("name", ["model.safetensors", "model.ckpt"])
def test_a_plan_takes_its_sizes_from_the_file_that_the_run_will_read(parts, tmp_path, name):
    path = save_single_file(parts, tmp_path / name)
    diffusion = UnreadStableDiffusion(str(path), torch.float32, text_encoder_only=False)
    for part in ("unet", "vae"):
        with torch.device("meta"):
            planned = getattr(diffusion, part)()
        expected = {key: tensor.shape for key, tensor in parts[part].state_dict().items()}
        assert {key: tensor.shape for key, tensor in planned.state_dict().items()} == expected


def test_half_precision_file_is_read_in_the_precision_asked_for(parts, tmp_path):
    path = save_single_file(parts, tmp_path / "model.safetensors")
    save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path)
    for dtype in (torch.float32, torch.bfloat16):
        for part in PARTS:
            module = getattr(StableDiffusion(path, dtype), part)()
            assert {p.dtype for p in module.parameters()} == {dtype}


@pytest.mark.parametrize("part", PARTS)
def test_diffusers_folder_gives_the_very_weights(parts, folder, part):
    _assert_equal(getattr(StableDiffusion(str(folder)), part)(), parts[part])


class _Callback:
    """Stands for a class of a training program; of its objects a pickle holds the name and the attributes."""


class _Code:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_trainers_checkpoint_is_read_and_nothing_of_it_is_executed(parts, tmp_path):
    path, touched = save_single_file(parts, tmp_path / "model.ckpt"), tmp_path / "touched"
    callback = _Callback()
    callback.state = {"best": np.float64(0.5), "history": np.zeros(3), "folder": tmp_path, ("a", 1): {1, 2}}
    content = torch.load(path) | {
        "callbacks": {_Callback: callback},
        "hyper_parameters": argparse.Namespace(device=torch.device("cpu"), code=_Code(touched)),
        "optimizer_states": [torch.optim.AdamW(parts["vae"].parameters()).state_dict()],
    }
    for zipped in (True, False):
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        for part in PARTS:
            _assert_equal(getattr(StableDiffusion(path), part)(), parts[part])
    assert not touched.exists()
    for place in ("model", "module"):
        torch.save({place: content["state_dict"], "epoch": 3}, path)
        _assert_equal(StableDiffusion(path).vae(), parts["vae"])


@pytest.mark.parametrize("code", [eval, exec, open, __import__, os.system, subprocess.run])
def test_a_checkpoint_that_asks_for_code_is_refused_and_not_read_around_it(tmp_path, code):
    torch.save({"state_dict": {"a": torch.zeros(3)}, "callbacks": [code]}, tmp_path / "model.ckpt")
    with pytest.raises(WeightsError, match=r"model\.ckpt cannot be read as a checkpoint \(it asks for "):
        read_tensors(tmp_path / "model.ckpt")


@pytest.mark.parametrize(("copies", "refused"), [(2, False), (3000, True)])
def test_tensors_of_a_checkpoint_share_what_is_stored_but_not_without_end(tmp_path, copies, refused):
    shared = torch.zeros(1000)
    torch.save({"state_dict": {f"x{number}": shared for number in range(copies)}}, tmp_path / "model.ckpt")
    told = pytest.raises(WeightsError, match=r"its tensors would take 12,000,000 bytes, the file has [\d,]{6,7}$")
    with told if refused else nullcontext():
        assert len(read_tensors(tmp_path / "model.ckpt")) == copies


@pytest.mark.parametrize("variant", ["fp16", "non_ema"])
@pytest.mark.parametrize("shards", ["1MB", "1GB"])
def test_a_folder_is_read_in_the_only_variant_that_it_has(parts, tmp_path, variant, shards):
    for part in PARTS:
        parts[part].save_pretrained(tmp_path / part, variant=variant, max_shard_size=shards)
    assert (len(list((tmp_path / "unet").glob("*.safetensors"))) > 1) == (shards == "1MB")
    for part in PARTS:
        _assert_equal(getattr(StableDiffusion(tmp_path), part)(), parts[part])


def test_a_folder_with_plain_names_and_variants_is_read_by_the_plain_ones(parts, tmp_path):
    parts["vae"].save_pretrained(tmp_path / "vae", max_shard_size="1MB")
    AutoencoderKL(**SIZES["vae"]).save_pretrained(tmp_path / "vae", variant="fp16")
    _assert_equal(StableDiffusion(tmp_path).vae(), parts["vae"])


def test_a_controlnet_is_the_same_in_every_form(parts, tmp_path):
    torch.manual_seed(0)
    net = ControlNetModel.from_unet(parts["unet"], conditioning_embedding_out_channels=(4, 8)).eval()
    net.save_pretrained(tmp_path / "plain")
    net.save_pretrained(tmp_path / "half", variant="fp16")
    torch.save(net.state_dict(), tmp_path / "net.pth")
    torch.save({"state_dict": net.state_dict(), "callbacks": {_Callback: _Callback()}}, tmp_path / "net.ckpt")
    plain = tmp_path / "plain" / "diffusion_pytorch_model.safetensors"
    for path in (tmp_path / "plain", tmp_path / "half", plain, tmp_path / "net.pth", tmp_path / "net.ckpt"):
        _assert_equal(load_controlnet(path).requires_grad_(False), net)
    other = load_file(plain)
    del other["controlnet_cond_embedding.conv_in.weight"]
    save_file(other, plain)
    with pytest.raises(ValueError, match=r"^controlnet: .* holds no ControlNet"):
        load_controlnet(plain)


def test_a_controlnet_of_the_first_code_is_the_same_as_a_pickle(tmp_path):
    path = save_tiny_controlnet(tmp_path / "net.safetensors")
    torch.save({name.removeprefix("control_model."): x for name, x in load_file(path).items()}, tmp_path / "net.pth")
    _assert_equal(load_controlnet(tmp_path / "net.pth").requires_grad_(False), load_controlnet(path))


def test_noise_schedule_is_that_of_stable_diffusion(folder, parts, tmp_path):
    single = StableDiffusion(str(save_single_file(parts, tmp_path / "model.safetensors")))
    for scheduler in (single.scheduler(), StableDiffusion(str(folder)).scheduler()):
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        torch.testing.assert_close(scheduler.alphas_cumprod, (1 - betas).cumprod(0).float(), rtol=1e-5, atol=0)
        assert scheduler.config.prediction_type == "epsilon"


def test_single_file_of_a_velocity_model_says_so(parts, tmp_path):
    path = save_single_file(parts, tmp_path / "model.safetensors")
    save_file({**load_file(path), "v_pred": torch.tensor([])}, path)
    assert StableDiffusion(str(path)).scheduler().config.prediction_type == "v_prediction"
    assert StableDiffusion(path).pipeline().scheduler.config.prediction_type == "v_prediction"


def test_a_full_size_file_has_the_official_sizes_and_every_tensor():
    expected = {"unet": (UNet2DConditionModel, 686, 859_520_964), "vae": (AutoencoderKL, 248, 83_653_863)}
    convert = {"unet": convert_ldm_unet_checkpoint, "vae": convert_ldm_vae_checkpoint}
    for part, (kind, tensors, parameters) in expected.items():
        sizes = OFFICIAL_SIZES[part]
        with torch.device("meta"):
            model = kind(**sizes)
        weights = model.state_dict()
        assert (len(weights), sum(p.numel() for p in model.parameters())) == (tensors, parameters)
        single = single_file_names(part, weights, sizes)
        assert len(single) == tensors
        found = unet_config(single, UNET, Path()) if part == "unet" else vae_config(single)
        with torch.device("meta"):
            config = kind.from_config(found).config
        for key in config.keys() - {"_use_default_values"}:
            assert config[key] == (list(x) if isinstance(x := model.config[key], tuple) else x), key
        back = convert[part](single, dict(model.config))
        assert back.keys() == weights.keys()
        if part == "unet":  # names that real files are known to have
            known = {f"output_blocks.{place}.conv.weight" for place in ("2.1", "5.2", "8.2")}
            known |= {"input_blocks.11.0.out_layers.3.weight", "middle_block.1.transformer_blocks.0.attn2.to_k.weight"}
            assert {f"model.diffusion_model.{name}" for name in known} <= single.keys()


def test_pictures_become_latents_of_the_recorded_distribution():
    for role in roles():
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(role.folder / "sd" / "vae"))
        weights = torch.load(role.folder / "checkpoint_final.pt", weights_only=True)["model"]
        own = {k.removeprefix("vae.vae."): v for k, v in weights.items() if k.startswith("vae.vae.")}
        vae.load_state_dict(own)
        images, recorded = role.tensors("inputs")["img_tgt_tokens"], role.tensors("expected_stage3")["latents"]
        with torch.no_grad():
            posterior = vae.encode(images).latent_dist
        noise = (recorded / 0.18215 - posterior.mean) / posterior.std

        class Recorded(RowRng):
            def normal(self, purpose, shape, device="cpu", noise=noise):
                return noise

        assert abs(float(noise.mean())) < 0.2
        assert abs(float(noise.std()) - 1) < 0.2
        torch.testing.assert_close(encode_images(vae, images, Recorded(0, 0)), recorded, rtol=1e-5, atol=1e-6)


def test_latents_of_a_row_depend_on_its_place_in_the_global_batch_only(parts):
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    whole = encode_images(parts["vae"], images, RowRng(seed=1, step=2))
    last = encode_images(parts["vae"], images[2:], RowRng(seed=1, step=2, first_row=2))
    torch.testing.assert_close(last, whole[2:])
    assert not torch.equal(whole, encode_images(parts["vae"], images, RowRng(seed=1, step=3)))


def test_recorded_clip_target_equals_the_loaded_text_encoder(tmp_path):
    """From a folder: heads of the recorded ones are narrower than any real CLIP's, which no single file would tell."""
    for role in roles():
        weights = torch.load(role.folder / "checkpoint_stage2.pt", weights_only=True)["model"]
        stem = "aligner.clip_encoder."
        weights = {k.removeprefix(stem): v for k, v in weights.items() if k.startswith(stem)}
        sizes = json.loads((role.folder / "sd" / "text_encoder" / "config.json").read_text())
        recorded = CLIPTextModel(CLIPTextConfig(**sizes))
        names = {name.removeprefix("text_model."): name for name in recorded.state_dict()}
        recorded.load_state_dict(
            {
                names[name.removeprefix("text_model.")]: weights[name]
                for name in weights
                if name.removeprefix("text_model.") in names
            }
        )
        path = tmp_path / f"{role.folder.parent.name}-{role.folder.name}"
        recorded.save_pretrained(path / "text_encoder")
        clip = StableDiffusion(str(path)).text_encoder(sizes["hidden_size"])
        with torch.no_grad():
            found = clip(role.tensors("inputs")["clip_tokens"]).last_hidden_state
        torch.testing.assert_close(found, role.tensors("expected_stage2")["clip_target"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", ["DiffusionPipeline", "ModularPipeline", "utils", "Nope", ["a"]])
def test_a_folder_names_no_class_but_a_samplers(tmp_path, kind):
    for part in ("unet", "scheduler"):
        (tmp_path / part).mkdir()
    (tmp_path / "scheduler/scheduler_config.json").write_text(json.dumps({"_class_name": kind}))
    with pytest.raises(ValueError, match="which is no sampler of diffusers"):
        StableDiffusion(str(tmp_path)).sampler()


@pytest.mark.parametrize(
    ("part", "file", "sizes", "said"),
    [
        ("scheduler", "scheduler_config.json", {"num_train_timesteps": 10**10}, "num_train_timesteps 1e+10"),
        ("unet", "config.json", {"block_out_channels": [32, 10**9]}, "block_out_channels 1e+09"),
        ("vae", "config.json", {"layers_per_block": 10**6}, "layers_per_block 1e+06"),
        ("text_encoder", "config.json", {"text_config": {"vocab_size": float("inf")}}, "vocab_size inf"),
    ],
)
def test_sizes_that_would_take_all_memory_are_a_sentence(folder, tmp_path, part, file, sizes, said):
    (tmp_path / part).mkdir()
    described = json.loads((folder / part / file).read_text())
    (tmp_path / part / file).write_text(json.dumps(described | sizes))
    with pytest.raises(ValueError, match=r"^sd: .* has .*fetch the model anew\.$") as caught:
        getattr(StableDiffusion(str(tmp_path), option="sd"), part)()
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ("missing", "does not exist"),
        ("lora", "holds no unet"),
        ("cut", "cannot be read as a checkpoint"),
        ("pickle", "give the .safetensors form"),
        ("incomplete", "lacks tensors of its UNet2DConditionModel"),
        ("folder", "has no folder 'unet'"),
        ("width", "conditions of width 32"),
        ("inpainting", "takes 9 latent channels"),
        ("", "no model given"),
    ],
)
def test_what_is_no_stable_diffusion_model_is_refused_with_a_sentence(parts, tmp_path, spoil, said):
    path = save_single_file(parts, tmp_path / "model.safetensors")
    if spoil == "missing":
        path = tmp_path / "absent.safetensors"
    elif spoil == "lora":
        save_file({"lora_unet_down.lora_up.weight": torch.zeros(2)}, path)
    elif spoil == "cut":
        path.write_bytes(path.read_bytes()[:5000])
    elif spoil == "pickle":
        path = tmp_path / "model.ckpt"
        torch.save({"state_dict": {}, "code": shutil.rmtree}, path)
    elif spoil == "incomplete":
        weights = load_file(path)
        save_file({k: v for k, v in weights.items() if not k.endswith("out.2.bias")}, path)
    elif spoil == "folder":
        path = tmp_path
    elif spoil == "width":
        narrow = UNet2DConditionModel(**{**SIZES["unet"], "cross_attention_dim": 32})
        path = save_single_file({**parts, "unet": narrow}, path)
    elif spoil == "inpainting":
        path = save_folder({**parts, "unet": UNet2DConditionModel(**{**SIZES["unet"], "in_channels": 9})}, tmp_path)
    task = instruct.Config(stable_diffusion="" if not spoil else str(path))
    with pytest.raises(ValueError, match=r"task\.stable_diffusion: .*\.$") as caught:
        configured_stable_diffusion(task, "cpu", "fp32").unet()
    assert said in str(caught.value)


def test_missing_clip_tokenizer_is_named_with_the_way_out(parts, tmp_path, monkeypatch):
    monkeypatch.setattr(stable_diffusion, "CLIP_TOKENIZER", str(tmp_path / "nothing"))
    task = align.Config(stable_diffusion=str(save_single_file(parts, tmp_path / "model.safetensors")))
    with pytest.raises(ValueError, match=r"task\.clip_tokenizer: .*give a folder with vocab\.json and merges\.txt"):
        configured_stable_diffusion(task, "cpu", "fp32").tokenizer()


@pytest.mark.parametrize("stage", ["align", "instruct"])
def test_a_run_names_its_key_for_what_is_no_stable_diffusion(smoke_stages, stage, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    save_file({"lora_unet_down.lora_up.weight": torch.zeros(2)}, tmp_path / "lora.safetensors")
    part = "text_encoder" if stage == "align" else "unet"
    for name, said in (
        ("gone/sd.safetensors", "does not exist: there is no such file or folder"),
        ("lora.safetensors", f"holds no {part}"),
        ("empty", f"has no folder '{part}'"),
    ):
        path = tmp_path / name
        arguments = smoke_stages.arguments(stage, tmp_path / "run", "--task.stable_diffusion", str(path))
        assert run.main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: --task.stable_diffusion: {path} {said}"), error
        assert error.count("\n") == 1
