"""Real models of tiny sizes with random weights, in the files and folders in which users have the real ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image, ImageDraw
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from kosmos_core import KosmosG, KosmosGConfig, Tokenizer, save_model
from kosmos_core.diffusers.stable_diffusion import SCHEDULER

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def save_kosmos_g(path: Path, tokenizer: Tokenizer, seed: int = 0) -> Path:
    """A Kosmos-G file of the tests' size, text included."""
    config = KosmosGConfig.tiny(vocabulary=tokenizer.vocabulary)
    model = KosmosG(config, tokenizer=tokenizer).initialize(seed)
    save_model(model, path, stage="instruct", provenance={"steps": 3})
    return path


def save_stable_diffusion(folder: Path, seed: int = 0) -> Path:
    """SD1.5 as a diffusers folder: 768 context channels, two levels, an autoencoder of factor 2, a tiny CLIP text."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=768,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=8,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        norm_num_groups=4,
        latent_channels=4,
        sample_size=16,
        scaling_factor=0.18215,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    text = CLIPTextConfig(
        vocab_size=len(LETTERS) * 2 + 2,
        hidden_size=768,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=52,
        eos_token_id=53,
        pad_token_id=53,
    )
    pipe = StableDiffusionPipeline(
        vae=vae,
        unet=unet,
        scheduler=PNDMScheduler(**SCHEDULER),
        text_encoder=CLIPTextModel(text),
        tokenizer=clip_tokenizer(folder / "letters"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder)
    return folder


def clip_tokenizer(folder: Path) -> CLIPTokenizer:
    """CLIP's own tokenizer class over single letters."""
    folder.mkdir(parents=True, exist_ok=True)
    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)


def save_dino(folder: Path, seed: int = 0) -> Path:
    """A DINO-shaped ViT (patches of 16 at 224) in the hub's folder layout."""
    torch.manual_seed(seed)
    config = ViTConfig(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=48)
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    ViTImageProcessor().save_pretrained(folder)
    return folder


def save_clip(folder: Path, seed: int = 0) -> Path:
    """A CLIP with both halves, its processor and tokenizer, in the hub's folder layout."""
    torch.manual_seed(seed)
    text = {
        "vocab_size": 54,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "bos_token_id": 52,
        "eos_token_id": 53,
        "pad_token_id": 53,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 224,
        "patch_size": 32,
    }
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)
    clip_tokenizer(folder / "letters").save_pretrained(folder)
    return folder


def drawing(seed: int, size: int = 96, view: int = 0) -> Image.Image:
    """A made-up thing before a made-up background: the thing depends on the seed, place and background on the view."""
    look, scene = numpy.random.default_rng(seed), numpy.random.default_rng(1000 * seed + view)
    top, bottom = scene.integers(90, 255, (2, 3))
    ramp = numpy.linspace(0, 1, size)[:, None, None]
    pixels = (top * (1 - ramp) + bottom * ramp) * numpy.ones((size, size, 1))
    image = Image.fromarray(pixels.astype(numpy.uint8))
    draw = ImageDraw.Draw(image)
    middle = scene.integers(size * 2 // 5, size * 3 // 5, 2)
    for radius in (0.3, 0.2, 0.1):
        reach = int(radius * size)
        box = [*(middle - reach), *(middle + reach)]
        colour = tuple(int(x) for x in look.integers(0, 220, 3))
        (draw.ellipse, draw.rectangle, draw.rounded_rectangle)[int(look.integers(3))](box, fill=colour)
    return image


def save_subjects(folder: Path, counts: dict[str, int]) -> Path:
    """Subjects in DreamBooth's layout: folder/dataset/<subject>/00.jpg and so on, `counts` pictures of each."""
    for seed, (name, count) in enumerate(counts.items()):
        place = folder / "dataset" / name
        place.mkdir(parents=True)
        for view in range(count):
            drawing(seed, view=view).save(place / f"{view:02d}.jpg", quality=92)
    return folder
