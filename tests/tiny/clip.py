"""CLIP and DINO as folders in the hub's layout: the real classes, tiny sizes, random weights; CLIP's tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTokenizer,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
BYTES = sorted(ByteLevel.alphabet())
PIECES = [*BYTES, *(f"{byte}</w>" for byte in BYTES), "<|startoftext|>", "<|endoftext|>"]
# What a text encoder has to know of the tokenizer below.
VOCABULARY = {
    "vocab_size": len(PIECES),
    "bos_token_id": len(PIECES) - 2,
    "eos_token_id": len(PIECES) - 1,
    "pad_token_id": len(PIECES) - 1,
}


def letter_tokenizer(folder: Path) -> CLIPTokenizer:
    """CLIP's own tokenizer class, which reads letter by letter; its files are written to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({piece: number for number, piece in enumerate(PIECES)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=77)


def save_clip(folder: Path, seed: int = 0) -> Path:
    """A CLIP with both halves (patches of 32 at 224), its processor and tokenizer."""
    torch.manual_seed(seed)
    vision = {"image_size": 224, "patch_size": 32}
    config = CLIPConfig(text_config=SIZES | VOCABULARY, vision_config=SIZES | vision, projection_dim=16)
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)
    letter_tokenizer(folder / "letters").save_pretrained(folder)
    return folder


def save_dino(folder: Path, seed: int = 0) -> Path:
    """A ViT of DINO's shape (patches of 16 at 224)."""
    torch.manual_seed(seed)
    ViTModel(ViTConfig(**SIZES), add_pooling_layer=False).save_pretrained(folder)
    ViTImageProcessor().save_pretrained(folder)
    return folder
