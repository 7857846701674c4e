"""What people do with a diffusers pipeline works with Kosmos-G inside as well, or is answered by a sentence."""

import json
import logging
from contextlib import nullcontext, suppress
from types import SimpleNamespace

import pytest
import torch
from diffusers import ControlNetModel, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from kosmos_core.diffusers.no_text_encoder import refuse_text_encoder_options, without_text_encoder_scale
from kosmos_core.diffusers.pipeline import KosmosGPipeline
from kosmos_core.diffusers.stable_diffusion import StableDiffusion
from tests.evaluate.test_pipeline import image, seeded
from tests.tiny.stable_diffusion import tiny_parts
from training.engine.trainable import comfyui_lora

SMALL = {"height": 16, "width": 16, "num_inference_steps": 1}
KOHYA = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
KOHYA_TEXT = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"


@pytest.fixture
def pipe(weights, sd) -> KosmosGPipeline:
    return KosmosGPipeline.from_files(weights, sd)


@pytest.fixture(scope="module")
def encoder(weights, sd):
    return KosmosGPipeline.from_files(weights, sd).encoder


def latents(pipe, prompt="a cat", **options):
    return pipe(prompt, generator=seeded(), output_type="latent", **SMALL, **options).images


def test_what_is_set_on_the_pipeline_is_what_diffusers_uses(pipe, caplog):
    before = pipe("a cat", generator=seeded(), output_type="pt", **SMALL).images
    other = tiny_parts(seed=7)
    pipe.vae = other["vae"]
    assert pipe.vae is pipe.diffusion.vae is other["vae"]
    assert "vae" not in vars(pipe)
    assert not torch.equal(before, pipe("a cat", generator=seeded(), output_type="pt", **SMALL).images)
    first = latents(pipe)
    pipe.unet = other["unet"]
    assert not torch.equal(first, latents(pipe))
    compiled = torch.compile(other["unet"].to(torch.bfloat16))
    pipe.unet = compiled
    assert pipe.diffusion.unet is compiled
    assert pipe.encode_prompt("a cat")["prompt_embeds"].dtype == torch.bfloat16
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    assert isinstance(pipe.diffusion.scheduler, DDIMScheduler)
    pipe.register_modules(vae=other["vae"])
    assert pipe.vae is other["vae"]
    pipe.text_encoder = other["text_encoder"]
    assert "text_encoder has no effect on prompts" in caplog.text
    pipe.encoder = pipe.encoder.train()
    assert not any(module.training for module in pipe.encoder.modules())


def test_what_cannot_be_set_is_refused_by_name(pipe):
    wide = UNet2DConditionModel.from_config(pipe.unet.config, cross_attention_dim=1024)
    narrow = ControlNetModel.from_unet(wide, conditioning_embedding_out_channels=(4,))
    unet = pipe.unet
    with pytest.raises(ValueError, match="width 768, but this U-Net expects 1024"):
        pipe.unet = wide
    with pytest.raises(ValueError, match=r"no component 'controlnet', so this ControlNetModel .* no effect"):
        pipe.controlnet = narrow
    with pytest.raises(ValueError, match="no component 'sheduler'"):
        pipe.sheduler = pipe.scheduler
    assert pipe.unet is unet
    assert not hasattr(pipe, "controlnet")
    pipe.register_modules(unet=wide)
    with pytest.raises(ValueError, match="width 768, but this U-Net expects 1024"):
        pipe("a cat", **SMALL)


def test_conditions_that_are_given_are_used_and_what_is_missing_is_encoded(pipe):
    blurry = pipe.encode_prompt("a cat", negative_prompt="blurry")
    cat, negative = blurry["prompt_embeds"], blurry["negative_prompt_embeds"]
    expected = latents(pipe, negative_prompt="blurry")
    plain = latents(pipe)
    assert not torch.equal(expected, plain)
    assert torch.equal(latents(pipe, negative_prompt_embeds=negative), expected)
    assert torch.equal(latents(pipe, None, prompt_embeds=cat), plain)
    assert torch.equal(latents(pipe, None, prompt_embeds=cat, negative_prompt="blurry"), expected)
    two = latents(pipe, ["a cat", "a dog"], negative_prompt_embeds=negative, num_images_per_prompt=2)
    same = latents(pipe, ["a cat", "a dog"], negative_prompt="blurry", num_images_per_prompt=2)
    assert torch.equal(two, same)
    each = pipe.encoder.encode(["blurry", "a hat"])
    assert torch.equal(
        latents(pipe, ["a cat", "a dog"], negative_prompt_embeds=each),
        latents(pipe, ["a cat", "a dog"], negative_prompt=["blurry", "a hat"]),
    )


def test_contradictions_are_refused_by_name(pipe, caplog):
    condition = pipe.encode_prompt("a cat")["prompt_embeds"]
    for options, said in (
        ({"prompt_embeds": condition}, "either a prompt or prompt_embeds"),
        (
            {"negative_prompt": "x", "negative_prompt_embeds": condition},
            "either a negative_prompt or negative_prompt_em",
        ),
        ({"prompt": None, "prompt_embeds": condition, "images": [image(1)]}, "leave out images"),
        ({"negative_prompt_embeds": condition, "negative_images": [image(1)]}, "leave out negative_images"),
        ({"negative_prompt_embeds": condition[0]}, r"negative_prompt_embeds have shape \(77, 768\), expected \(1, 77"),
        ({"negative_prompt_embeds": condition.expand(3, -1, -1)}, r"shape \(3, 77, 768\), expected \(1, 77, 768\)"),
        ({"prompt": None, "prompt_embeds": condition[..., :5]}, r"prompt_embeds have shape \(1, 77, 5\)"),
        ({"negative_images": [image(1)]}, "negative_prompt with negative_images: .* marks for 0 picture"),
        ({"negative_prompt": "<i>"}, "negative_prompt with negative_images: .* marks for 1 picture"),
        ({"clip_skip": 2}, "clip_skip=2 skips layers of CLIP's text encoder"),
        ({"ip_adapter_image": image(1)}, "ip_adapter_image is for an IP-Adapter, and none is loaded"),
    ):
        with pytest.raises(ValueError, match=said):
            pipe(**{"prompt": "a cat", **options}, **SMALL)
    with pytest.raises(ValueError, match="a textual inversion is a word of CLIP's text encoder"):
        pipe.load_textual_inversion("style.pt")
    assert torch.equal(latents(pipe, clip_skip=None), latents(pipe))
    assert not caplog.text
    latents(pipe, guidance_scale=1.0, negative_prompt="blurry")
    assert "what is given as negative has no effect" in caplog.text


@pytest.mark.parametrize("image_encoder", [None, nn.Identity()])
def test_an_ip_adapters_embeddings_need_no_image_encoder_and_its_images_do(image_encoder):
    loaded = SimpleNamespace(unet=SimpleNamespace(encoder_hid_proj=nn.Identity()), image_encoder=image_encoder)
    refuse_text_encoder_options(loaded, {"ip_adapter_image_embeds": [torch.zeros(1)], "ip_adapter_image": None})
    with nullcontext() if image_encoder else pytest.raises(ValueError, match="needs the IP-Adapter's image encoder"):
        refuse_text_encoder_options(loaded, {"ip_adapter_image": image(1)})


def test_a_method_that_a_user_has_put_in_its_place_is_there_again_after_a_call_and_after_an_error():
    def own(*arguments, **options):
        return arguments, options

    changed, plain = SimpleNamespace(encode_prompt=own), StableDiffusionPipeline.__new__(StableDiffusionPipeline)
    for pipeline in (changed, plain):
        before = dict(vars(pipeline))
        with without_text_encoder_scale(pipeline):
            assert vars(pipeline)["encode_prompt"] is not own
            if pipeline is changed:
                assert pipeline.encode_prompt("a", lora_scale=0.5, b=1) == (("a",), {"b": 1})
        assert vars(pipeline) == before
        with suppress(KeyError), without_text_encoder_scale(pipeline):
            raise KeyError
        assert vars(pipeline) == before


def test_pictures_can_be_negative(pipe):
    plain = latents(pipe, negative_prompt="a")
    dog, cup = image(1), image(2)
    away = latents(pipe, negative_prompt="a <i>", negative_images=[dog])
    assert torch.equal(away, latents(pipe, negative_prompt="a <i>", negative_images=dog))
    assert not torch.equal(away, plain)
    assert not torch.equal(away, latents(pipe, negative_prompt="a <i>", negative_images=[cup]))
    condition = pipe.encoder.encode(["a <i>"], [dog])
    assert torch.equal(away, latents(pipe, negative_prompt_embeds=condition))
    both = pipe.encode_prompt(
        ["a <i>", "a hat"], [[cup], []], ["<i> on <i>", "blurry"], negative_images=[[dog, cup], []]
    )
    assert torch.equal(both["negative_prompt_embeds"], pipe.encoder.encode(["<i> on <i>", "blurry"], [dog, cup]))


def save_lora(folder, sd, text=False, unet=True, name="pytorch_lora_weights.safetensors", **options):
    """A LoRA as diffusers saves it: only the file's header tells its scale."""
    config = {"r": 4, "lora_alpha": 32, "init_lora_weights": False, **options}
    saved = {}
    if unet:
        torch.manual_seed(5)
        module, adapter = StableDiffusion(sd).unet(), LoraConfig(target_modules=["to_q", "to_k"], **config)
        module.add_adapter(adapter)
        saved["unet_lora_layers"] = get_peft_model_state_dict(module, adapter_name="default")
        saved["unet_lora_adapter_metadata"] = adapter.to_dict()
    if text:
        layer = "text_model.encoder.layers.0.self_attn.q_proj.lora_{}.weight"
        saved["text_encoder_lora_layers"] = {
            layer.format("A"): torch.ones(4, 768),
            layer.format("B"): torch.ones(768, 4),
        }
        saved["text_encoder_lora_adapter_metadata"] = LoraConfig(target_modules=["q_proj"], **config).to_dict()
    StableDiffusionPipeline.save_lora_weights(folder, weight_name=name, **saved)
    return folder / name


def load_by_diffusers(reference, source, adapter_name=None, **options):
    """diffusers' own loader, but for the text encoder's half, which there is none for."""
    options["return_lora_metadata"] = True
    source = dict(source) if isinstance(source, dict) else str(source)
    tensors, alphas, metadata = reference.lora_state_dict(source, **options)
    part = {"unet": reference.unet, "adapter_name": adapter_name}
    reference.load_lora_into_unet(tensors, network_alphas=alphas, metadata=metadata, **part)


def unet_output(pipe):
    torch.manual_seed(3)
    with torch.no_grad():
        return pipe.unet(torch.randn(1, 4, 8, 8), 10, torch.randn(1, 5, 768)).sample


def test_a_lora_is_the_same_as_diffusers_loads_it_in_every_form(encoder, sd, tmp_path, caplog):
    path = save_lora(tmp_path, sd, text=True)
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dictionary)
        assert json.loads(file.metadata()["lora_adapter_metadata"])["unet.lora_alpha"] == 32
    torch.save(tensors, tmp_path / "lora.bin")
    kohya = {f"{KOHYA}.lora_down.weight": torch.randn(4, 768), f"{KOHYA}.lora_up.weight": torch.randn(32, 4)}
    kohya |= {f"{KOHYA}.alpha": torch.tensor(2.0), f"{KOHYA}.dora_scale": torch.ones(32, 1)}
    kohya |= {f"{KOHYA_TEXT}.lora_down.weight": torch.ones(4, 768), f"{KOHYA_TEXT}.alpha": torch.tensor(2.0)}
    kohya |= {f"{KOHYA_TEXT}.lora_up.weight": torch.ones(768, 4)}
    save_file(kohya, tmp_path / "kohya.safetensors")
    reference = StableDiffusion(sd).pipeline()
    pipe = KosmosGPipeline(encoder, StableDiffusion(sd).pipeline())
    plain = unet_output(pipe)
    found = {}
    for form, (source, options) in {
        "file": (path, {}),
        "name of the file": (str(path), {"adapter_name": "style"}),
        "folder": (tmp_path, {}),
        "folder and name": (tmp_path, {"weight_name": path.name}),
        "tensors": (tensors, {}),
        "pickle": (tmp_path / "lora.bin", {}),
        "kohya": (tmp_path / "kohya.safetensors", {}),
        "kohya's tensors": (kohya, {}),
    }.items():
        caplog.clear()
        pipe.load_lora_weights(source, **options)
        assert "belong to CLIP's text encoder" in caplog.text, form
        load_by_diffusers(reference, source, **options)
        found[form] = unet_output(pipe)
        assert torch.equal(found[form], unet_output(reference)), form
        assert pipe.get_list_adapters() == {"unet": [options.get("adapter_name", "default_0")]}
        pipe.unload_lora_weights()
        reference.unload_lora_weights()
        assert torch.equal(unet_output(pipe), plain)
    assert not torch.equal(found["file"], found["tensors"])  # 8 times the scale
    assert torch.equal(found["file"], found["folder"])


def test_adapters_by_name_and_their_scales_are_diffusers_own(encoder, sd, tmp_path, caplog):
    first = save_lora(tmp_path, sd, text=True, name="first.safetensors")
    second = save_lora(tmp_path, sd, name="second.safetensors", r=2, lora_alpha=6, use_dora=True)
    reference = StableDiffusion(sd).pipeline()
    pipe = KosmosGPipeline(encoder, StableDiffusion(sd).pipeline())
    for source, name in ((first, "first"), (second, "second")):
        pipe.load_lora_weights(source, adapter_name=name)
        load_by_diffusers(reference, source, adapter_name=name)
        assert ("belong to CLIP's text encoder" in caplog.text) == (name == "first")
        caplog.clear()
    for loaded in (pipe, reference):
        loaded.set_adapters(["first", "second"], [0.5, 1.5])
    both = unet_output(pipe)
    assert torch.equal(both, unet_output(reference))
    embeds = pipe.encode_prompt("a cat")
    full = latents(pipe)
    scaled = latents(pipe, cross_attention_kwargs={"scale": 0.5})
    reference.scheduler = pipe.scheduler
    reference.set_adapters(["first", "second"], [0.25, 0.75])
    options = {"generator": seeded(), "output_type": "latent", "guidance_scale": 6.0, **SMALL}
    assert torch.allclose(scaled, reference(**embeds, **options).images, atol=1e-5)
    assert not torch.equal(scaled, full)
    assert torch.equal(latents(pipe), full)  # the scale was for one call
    assert "encode_prompt" not in vars(pipe.diffusion)
    pipe.fuse_lora(lora_scale=0.5)
    pipe.unfuse_lora()
    pipe.set_adapters("first")
    pipe.disable_lora()
    pipe.delete_adapters("second")
    assert pipe.get_list_adapters() == {"unet": ["first"]}


def test_a_lora_that_has_no_effect_says_so(pipe, sd, tmp_path, caplog):
    path = save_lora(tmp_path, sd, text=True, unet=False)
    other = {"transformer.block.lora_A.weight": torch.zeros(2, 2), "transformer.block.lora_B.weight": torch.zeros(2, 2)}
    plain = unet_output(pipe)
    for source, said in (
        (path, "belong to CLIP's text encoder"),
        (tmp_path, "belong to CLIP"),
        (other, "another kind"),
    ):
        caplog.clear()
        pipe.load_lora_weights(source)
        assert any(x.levelno == logging.WARNING and said in x.getMessage() for x in caplog.records)
        assert "has no effect" in caplog.text
        assert torch.equal(unet_output(pipe), plain)
    for source, options in (
        (tmp_path / "gone.safetensors", {}),
        ("gone.safetensors", {}),
        (tmp_path, {"weight_name": "x.bin"}),
    ):
        with pytest.raises(ValueError, match=r"the LoRA .* does not exist"):
            pipe.load_lora_weights(source, **options)
    own = comfyui_lora(
        ["decoder.x"], {"decoder.x.lora_A.weight": torch.ones(2, 3), "decoder.x.lora_B.weight": torch.ones(3, 2)}
    )
    save_file(own, tmp_path / "style.safetensors")
    for source, options in (
        (own, {}),
        (tmp_path / "style.safetensors", {}),
        (tmp_path, {"weight_name": "style.safetensors"}),
    ):
        with pytest.raises(ValueError, match=r"adds to Kosmos-G .* with the additions merged"):
            pipe.load_lora_weights(source, **options)


def test_saving_and_moving_are_diffusers_own(pipe, weights, tmp_path, caplog):
    expected = latents(pipe)
    assert pipe.to("cpu", silence_dtype_warnings=True) is pipe
    pipe.save_pretrained(tmp_path / "sd")
    assert "Kosmos-G stays in its own file" in caplog.text
    assert torch.equal(latents(KosmosGPipeline.from_files(weights, tmp_path / "sd")), expected)
    seen = []
    latents(
        pipe,
        callback_on_step_end=lambda *x: seen.append(x[3]) or {},
        callback_on_step_end_tensor_inputs=["prompt_embeds"],
    )
    assert seen[0]["prompt_embeds"].shape == (2, 77, 768)
    lists = latents(pipe, "a cat", num_images_per_prompt=1)
    assert torch.equal(lists, pipe(["a cat"], generator=[seeded()], output_type="latent", **SMALL).images)
