"""Kosmos-G in diffusers: the original's latents, batches, guidance, and diffusers' own add-ons."""

import subprocess
import sys

import numpy
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from safetensors.torch import save_file

from kosmos_core import Reference, preprocess_image
from kosmos_core.diffusers.pipeline import KosmosGPipeline
from kosmos_core.diffusers.sampler import SCHEDULERS, named_scheduler, sample_latents
from kosmos_core.diffusers.stable_diffusion import pndm_scheduler
from kosmos_core.reference import Encoded, model_fingerprint, save_reference
from tests.core.golden_roles import Role, assert_close, roles
from tests.tiny.comfyui_files import save_tiny_checkpoint, save_tiny_controlnet, save_tiny_lora
from tests.tiny.stable_diffusion import SIZES, single_file_names

SMALL = {"height": 16, "width": 16, "num_inference_steps": 2, "output_type": "np"}


def image(seed: int, size: int = 40) -> Image.Image:
    pixels = numpy.random.default_rng(seed).integers(0, 255, (size, size, 3), dtype=numpy.uint8)
    return Image.fromarray(pixels)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def pipe(weights, sd) -> KosmosGPipeline:
    return KosmosGPipeline.from_files(weights, sd)


@pytest.mark.parametrize("role", roles(), ids=lambda role: f"{role.folder.parent.name}-{role.folder.name}")
def test_latents_of_the_three_samplers_equal_the_original(role: Role, tmp_path):
    """Five steps at guidance 6; the original tiles prompts (p0 p1 p0 p1), diffusers groups them (p0 p0 p1 p1)."""
    checkpoint = torch.load(role.folder / "checkpoint_final.pt", weights_only=True)["model"]
    parts = {}
    models = (("unet", "diffusion_unet.unet.", UNet2DConditionModel), ("vae", "vae.vae.", AutoencoderKL))
    for name, prefix, kind in models:
        parts[name] = kind.from_config(kind.load_config(role.folder / "sd" / name))
        own = {key.removeprefix(prefix): value for key, value in checkpoint.items() if key.startswith(prefix)}
        parts[name].load_state_dict(own)
    scheduler = PNDMScheduler.from_config(PNDMScheduler.load_config(role.folder / "sd" / "scheduler"))
    diffusion = StableDiffusionPipeline(
        **parts,
        scheduler=scheduler,
        text_encoder=None,
        tokenizer=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    diffusion.set_progress_bar_config(disable=True)
    pipe = KosmosGPipeline(role.model("checkpoint_final", tmp_path), diffusion)
    inputs, expected = role.tensors("inputs"), role.tensors("expected_infer")
    ids, pixels = inputs["src_tokens"], inputs.get("gpt_img_src_tokens")
    count, repeat = len(ids), role.config["num_images_per_prompt"]
    with torch.no_grad():
        conditions = pipe.encoder.encode_tokens(ids, pixels, None if pixels is None else inputs["img_gpt_input_mask"])
        negative = inputs["negative_tokens"] if inputs["negative_tokens"].shape[1] > 1 else torch.zeros(1, 1).long()
        negative = pipe.encoder.encode_tokens(negative).expand(count, -1, -1)
    grouped = torch.arange(count * repeat).view(repeat, count).T.flatten()
    for sampler, name in (("dpmsolver++", "dpms"), ("ddim", "ddim"), ("pndm", "pndm")):
        pipe.use_scheduler(sampler)
        latents = pipe(
            prompt_embeds=conditions,
            negative_prompt_embeds=negative,
            guidance_scale=6,
            num_inference_steps=5,
            num_images_per_prompt=repeat,
            latents=expected[f"sample.{name}.initial_latents"][grouped],
            output_type="latent",
        ).images
        assert_close(latents, expected[f"sample.{name}.latents"][grouped], f"latents of {sampler}")
        if name == "dpms":
            decoded = pipe.vae.decode(latents / 0.18215).sample.detach()
            found = (decoded / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
            assert_close(found, expected["sample.dpms.image"][grouped], "picture")


def test_prompts_with_different_numbers_of_pictures_share_a_batch(pipe):
    prompts = ["a red dog", "a <i> on the beach", "a <i> beside a <i>"]
    images = [[], [image(1)], [image(2), image(3)]]
    latents = torch.randn(3, 4, 8, 8, generator=seeded())
    together = pipe(prompts, images=images, negative_prompt="blue", latents=latents, **SMALL).images
    for index, prompt in enumerate(prompts):
        alone = pipe(
            prompt, images=images[index], negative_prompt="blue", latents=latents[index : index + 1], **SMALL
        ).images
        assert numpy.abs(alone[0] - together[index]).max() < 2e-3


def test_pictures_and_negative_prompts_change_the_result(pipe):
    def render(shown, **options):
        return pipe("a <i> on the beach", images=shown, generator=seeded(), **options, **SMALL).images

    plain = render([image(1)])
    assert numpy.array_equal(plain, render(image(1)))  # one picture may come without a list
    assert not numpy.array_equal(plain, render([image(2)]))
    assert not numpy.array_equal(plain, render([image(1)], negative_prompt="a wooden kettle"))
    assert numpy.array_equal(plain, render([image(1)], negative_prompt=""))


@pytest.mark.parametrize("guidance", [1.0, 0.0])
def test_without_guidance_there_is_one_picture_per_prompt(pipe, guidance):
    latents = torch.randn(2, 4, 8, 8, generator=seeded())
    options = {"latents": latents, "guidance_scale": guidance, **SMALL}
    images = pipe(["a red dog", "a blue cat"], **options).images
    assert len(images) == 2
    assert numpy.array_equal(images, pipe(["a red dog", "a blue cat"], negative_prompt="wooden", **options).images)


def test_pictures_of_one_prompt_stand_together(pipe):
    images = pipe(["a red dog", "a blue cat"], num_images_per_prompt=2, generator=seeded(), **SMALL).images
    assert len(images) == 4
    noise = torch.randn(4, 4, 8, 8, generator=seeded())
    second = pipe(["a blue cat"], num_images_per_prompt=2, latents=noise[2:], **SMALL).images
    assert numpy.abs(images[2:] - second).max() < 2e-3


def test_any_scheduler_of_diffusers_can_be_set(pipe):
    first = pipe("a red dog", generator=seeded(), **SMALL).images
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    assert isinstance(pipe.diffusion.scheduler, EulerDiscreteScheduler)
    assert not numpy.array_equal(first, pipe("a red dog", generator=seeded(), **SMALL).images)
    with pytest.raises(ValueError, match="unknown scheduler 'heun'; choose one of dpmsolver"):
        pipe.use_scheduler("heun")


@pytest.mark.parametrize("name", list(SCHEDULERS))
def test_the_projects_own_loop_samples_as_diffusers_does(pipe, name):
    noise = torch.randn(2, 4, 8, 8, generator=seeded())
    pipe.use_scheduler(name)
    embeds = pipe.encode_prompt(["a <i>", "a red dog"], [image(1)])
    null = embeds["negative_prompt_embeds"][:1]
    options = {**SMALL, "num_inference_steps": 4, "output_type": "latent", "guidance_scale": 3.0}
    theirs = pipe(**embeds, latents=noise, **options).images
    scheduler = named_scheduler(name, pipe.scheduler)
    ours = sample_latents(pipe.unet, scheduler, noise, embeds["prompt_embeds"], null, steps=4, guidance=3.0)
    assert torch.equal(ours, theirs)


def test_image_to_image_and_inpainting_take_the_condition(pipe):
    start, mask = image(5, 16), Image.new("L", (16, 16), 0)
    mask.paste(255, (0, 0, 8, 16))
    embeds = pipe.encode_prompt("a <i> on the beach", [image(1)], negative_prompt="blue")
    options = {"generator": seeded(), "num_inference_steps": 4, "strength": 0.8, "output_type": "np"}
    own = StableDiffusionImg2ImgPipeline.from_pipe(pipe.diffusion)
    direct = own(**embeds, image=start, guidance_scale=6.0, **options).images
    wrapped = KosmosGPipeline(pipe.encoder, own)
    options["generator"] = seeded()
    through = wrapped("a <i> on the beach", [image(1)], negative_prompt="blue", image=start, **options).images
    assert numpy.array_equal(direct, through)

    inpaint = KosmosGPipeline(pipe.encoder, StableDiffusionInpaintPipeline.from_pipe(pipe.diffusion))
    size = {"height": 16, "width": 16}
    options["generator"] = seeded()
    a = inpaint("a <i>", [image(1)], image=start, mask_image=mask, **size, **options).images
    options["generator"] = seeded()
    b = inpaint("a <i>", [image(2)], image=start, mask_image=mask, **size, **options).images
    assert not numpy.array_equal(a, b)


def test_one_or_several_controlnets_steer_the_result(weights, sd, pipe):
    torch.manual_seed(0)
    nets = [ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(4, 8)) for _ in range(2)]
    for net in nets:  # as after training: the zero convolutions are no longer zero
        zero = (net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out)
        for parameter in (parameter for part in zero for parameter in part.parameters()):
            torch.nn.init.normal_(parameter, std=0.5)
    one = KosmosGPipeline.from_files(weights, sd, controlnet=nets[0])
    size = {"num_inference_steps": 2, "output_type": "np"}

    def render(pipeline, hint, **options):
        return pipeline("a <i>", [image(1)], image=hint, generator=seeded(), **size, **options).images

    plain = render(one, image(7, 16), controlnet_conditioning_scale=0.0)
    steered = render(one, image(7, 16))
    assert not numpy.array_equal(plain, steered)
    assert not numpy.array_equal(steered, render(one, image(8, 16)))
    several = KosmosGPipeline.from_files(weights, sd, controlnet=nets)
    both = render(several, [image(7, 16), image(8, 16)], controlnet_conditioning_scale=[1.0, 0.5])
    assert not numpy.array_equal(steered, both)


def test_single_files_load_with_their_controlnet_and_lora(weights, tmp_path):
    """The least checkpoint that ComfyUI takes for SD1.5: 320 channels, one level, a TAESD as its autoencoder."""
    checkpoint = save_tiny_checkpoint(tmp_path / "sd.safetensors")
    controlnet = save_tiny_controlnet(tmp_path / "controlnet.safetensors")
    lora = save_tiny_lora(tmp_path / "lora.safetensors")
    pipe = KosmosGPipeline.from_files(weights, checkpoint, controlnet=controlnet)
    assert pipe.unet.config.block_out_channels == [320]

    def render():
        options = {"num_inference_steps": 2, "output_type": "np", "image": image(3, 64), "generator": seeded()}
        return pipe("a <i> on the beach", [image(1)], height=64, width=64, **options).images

    before = render()
    assert before.shape == (1, 64, 64, 3)
    assert before.std() > 0.01
    pipe.load_lora_weights(lora)
    after = render()
    assert not numpy.array_equal(before, after)
    pipe.unload_lora_weights()
    assert numpy.abs(render() - before).max() < 1e-5


def test_a_single_file_gives_the_same_pictures_as_its_folder(weights, tmp_path):
    torch.manual_seed(0)
    unet, vae = UNet2DConditionModel(**SIZES["unet"]), AutoencoderKL(**SIZES["vae"])
    parts = {"text_encoder": None, "tokenizer": None, "safety_checker": None, "feature_extractor": None}
    scheduler = pndm_scheduler()
    StableDiffusionPipeline(unet=unet, vae=vae, scheduler=scheduler, **parts).save_pretrained(tmp_path / "folder")
    names = single_file_names("unet", unet.state_dict(), SIZES["unet"])
    names |= single_file_names("vae", vae.state_dict(), SIZES["vae"])
    names = {name: tensor.contiguous() for name, tensor in names.items()}
    save_file(names, tmp_path / "file.safetensors")
    torch.save({"state_dict": names}, tmp_path / "file.ckpt")

    def render(source):
        pipe = KosmosGPipeline.from_files(weights, tmp_path / source)
        return pipe("a <i> on the beach", [image(1)], generator=seeded(), **SMALL).images

    expected = render("folder")
    assert numpy.abs(render("file.safetensors") - expected).max() < 1e-5
    assert numpy.abs(render("file.ckpt") - expected).max() < 1e-5


def test_offloading_takes_the_encoder_along_and_changes_no_pixel(weights, sd):
    expected = KosmosGPipeline.from_files(weights, sd)("a <i>", [image(1)], generator=seeded(), **SMALL).images
    pipe = KosmosGPipeline.from_files(weights, sd)
    pipe.enable_model_cpu_offload(device="cpu")
    for _ in range(2):  # the second call finds everything put away by the first
        assert numpy.array_equal(pipe("a <i>", [image(1)], generator=seeded(), **SMALL).images, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_and_slicing_are_diffusers_own(weights, sd, dtype):
    pipe = KosmosGPipeline.from_files(weights, sd, dtype=dtype)
    assert pipe.unet.dtype == pipe.encode_prompt("a dog")["prompt_embeds"].dtype == dtype
    latents = torch.randn(1, 4, 8, 8, generator=seeded()).to(dtype)
    plain = pipe("a <i>", [image(1)], latents=latents, **SMALL).images
    exact = KosmosGPipeline.from_files(weights, sd)("a <i>", [image(1)], latents=latents.float(), **SMALL).images
    assert numpy.abs(plain - exact).max() < 0.1
    pipe.enable_attention_slicing()
    assert numpy.abs(pipe("a <i>", [image(1)], latents=latents, **SMALL).images - plain).max() < 0.05
    pipe.to(torch.float32)
    assert pipe.encode_prompt("a dog")["prompt_embeds"].dtype == torch.float32


def test_a_tuned_reference_from_a_file_stands_in_the_place_of_a_picture(pipe, weights, tmp_path):
    """The file holds what the encoder makes of a picture, so that the picture gives the same."""
    numbers, whole = pipe.encoder.image_embeddings(preprocess_image(image(3))), model_fingerprint(weights, whole=True)
    file, latents = tmp_path / "rex.safetensors", torch.randn(1, 4, 2, 2, generator=seeded())
    save_reference(file, numbers, Reference(Encoded(numbers, whole, file.name, tuned=True), noun="dog"), whole)
    found = pipe("a <i> and a <i>", images=[Reference.load(file), image(2)], latents=latents, **SMALL).images
    same = pipe("a dog <i> and a <i>", images=[image(3), image(2)], latents=latents, **SMALL).images
    assert numpy.array_equal(found, same)
    file.unlink()
    save_reference(file, numbers, Reference(Encoded(numbers, "other", file.name, tuned=True)), "other")
    with pytest.raises(ValueError, match=r"rex\.safetensors was encoded by another Kosmos-G file"):
        pipe("a <i>", images=[Reference.load(file)], **SMALL)


def test_wrong_calls_get_a_sentence(pipe, weights, sd, tmp_path):
    with pytest.raises(ValueError, match="marks for 1 picture"):
        pipe("a <i>", images=[image(1), image(2)], **SMALL)
    with pytest.raises(ValueError, match="2 negative prompts for 3 prompts"):
        pipe(["a", "b", "c"], negative_prompt=["d", "e"], **SMALL)
    with pytest.raises(ValueError, match="has no option 'image'; reference pictures go to images="):
        pipe("a dog", image=image(1), **SMALL)
    with pytest.raises(ValueError, match="give a prompt"):
        pipe(images=[image(1)], **SMALL)
    with pytest.raises(ValueError, match=r"^sd: .* is no diffusers folder .*model_index\.json") as caught:
        KosmosGPipeline.from_files(weights, tmp_path)
    assert str(tmp_path) in str(caught.value)
    gone = tmp_path / "gone" / "sd.safetensors"
    with pytest.raises(ValueError, match=r"^sd: .* does not exist: there is no such file or folder") as caught:
        KosmosGPipeline.from_files(weights, gone)
    assert str(gone) in str(caught.value)
    with pytest.raises(ValueError, match=r"^controlnet: .* does not exist.*; give a ControlNet for Stable Diffusion"):
        KosmosGPipeline.from_files(weights, sd, controlnet=gone)
    lora = save_tiny_lora(tmp_path / "lora.safetensors")
    with pytest.raises(ValueError, match=r"^sd: .* holds no unet .* not a LoRA"):
        KosmosGPipeline.from_files(weights, lora)
    with pytest.raises(ValueError, match="nothing is downloaded"):
        KosmosGPipeline.from_files(weights, "no-such/repository")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\x00" * 64)
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        KosmosGPipeline.from_files(weights, broken)
    with pytest.raises(ValueError, match="holds no unet"):
        KosmosGPipeline.from_files(weights, weights)
    other = UNet2DConditionModel.from_config(pipe.unet.config, cross_attention_dim=1024)
    with pytest.raises(ValueError, match="width 768, but this U-Net expects 1024"):
        KosmosGPipeline(pipe.encoder, StableDiffusionPipeline(**{**pipe.diffusion.components, "unet": other}))


def test_importing_the_core_imports_no_diffusers():
    code = "import sys, kosmos_core; assert 'diffusers' not in sys.modules and 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_schedulers_keep_the_noise_schedule_of_the_model(pipe):
    for name, kind in (("ddim", DDIMScheduler), ("pndm", PNDMScheduler)):
        pipe.use_scheduler(name)
        assert isinstance(pipe.scheduler, kind)
        assert pipe.scheduler.config.beta_end == 0.012
