"""The world's Stable Diffusion as one file for ComfyUI's CheckpointLoaderSimple, and back.

    python -m emoji_world.single_file RUNS/sd/diffusers assets/world/emoji-world-sd.safetensors assets/world/clip
    python -m emoji_world.single_file --back RUNS/sd/diffusers SD.safetensors CLIP-FOLDER

The U-Net gets the names of the first Stable Diffusion code, the autoencoder those of TAESD. The U-Net's matrices are
fp8 (pictures differ by less than one of 255 steps), all else fp16. CLIP goes into a folder of its own: ComfyUI's is of
a fixed size that the world's does not have, and Kosmos-G takes its place. `--back` makes the diffusers folder again,
from which the U-Net and stages 2 and 3 can be trained on and the evaluation runs.
"""

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from safetensors.torch import save
from transformers import CLIPTextModel, CLIPTokenizer

from kosmos_core.atomic import write_file
from kosmos_core.diffusers.single_file import LATENT_SCALE, UNET, VAE, SingleFile

from .diffusion import save_pipeline
from .options import refused_by, require_file

LATENTS = 8  # of a side of the world's pictures

RESIDUAL = {
    "norm1.": "in_layers.0.",
    "conv1.": "in_layers.2.",
    "time_emb_proj.": "emb_layers.1.",
    "norm2.": "out_layers.0.",
    "conv2.": "out_layers.3.",
    "conv_shortcut.": "skip_connection.",
}
OUTSIDE = {
    "time_embedding.linear_1.": "time_embed.0.",
    "time_embedding.linear_2.": "time_embed.2.",
    "conv_in.": "input_blocks.0.0.",
    "conv_norm_out.": "out.0.",
    "conv_out.": "out.2.",
}
BLOCKS = {
    "down_blocks.0.resnets.0.": "input_blocks.1.0.",
    "down_blocks.0.attentions.0.": "input_blocks.1.1.",
    "mid_block.resnets.0.": "middle_block.0.",
    "mid_block.attentions.0.": "middle_block.1.",
    "mid_block.resnets.1.": "middle_block.2.",
    "up_blocks.0.resnets.0.": "output_blocks.0.0.",
    "up_blocks.0.attentions.0.": "output_blocks.0.1.",
    "up_blocks.0.resnets.1.": "output_blocks.1.0.",
    "up_blocks.0.attentions.1.": "output_blocks.1.1.",
}


def unet_name(name: str) -> str:
    """The first code's name of a tensor of the one-level U-Net."""
    for here, there in OUTSIDE.items():
        if name.startswith(here):
            return there + name.removeprefix(here)
    for here, there in BLOCKS.items():
        if name.startswith(here):
            rest = name.removeprefix(here)
            for inside, outside in RESIDUAL.items():
                if ".resnets." in here and rest.startswith(inside):
                    return there + outside + rest.removeprefix(inside)
            return there + rest
    raise ValueError(f"{name} is no tensor of a U-Net with one level and one residual block per level")


def autoencoder_name(name: str) -> str:
    """TAESD's name of a tensor of AutoencoderTiny."""
    part, _, number, rest = name.split(".", 3)
    place = int(number) + (part == "decoder")  # TAESD's decoder begins with a clamp that has no weights
    return f"{VAE}taesd_{part}.{place}.{rest}"


def single_file(folder: Path) -> dict[str, torch.Tensor]:
    """Tensors of the checkpoint, in their types on disk."""
    unet = UNet2DConditionModel.from_pretrained(folder / "unet").state_dict()
    tensors = {f"{UNET}{unet_name(name)}": tensor for name, tensor in unet.items()}
    vae = AutoencoderTiny.from_pretrained(folder / "vae").state_dict()
    tensors |= {autoencoder_name(name): tensor for name, tensor in vae.items()}
    tensors[f"{VAE}vae_scale"] = torch.tensor(LATENT_SCALE)
    tensors[f"{VAE}vae_shift"] = torch.tensor(0.0)

    def stored(name: str, tensor: torch.Tensor) -> torch.Tensor:
        small = name.startswith(UNET) and tensor.ndim > 1
        return tensor.to(torch.float8_e4m3fn if small else torch.float16).contiguous()

    return {name: stored(name, tensor) for name, tensor in tensors.items()}


def save_clip(folder: Path, output: Path) -> None:
    """CLIP's text half, fp16, and its tokenizer, in one folder of transformers' layout."""
    CLIPTextModel.from_pretrained(folder / "text_encoder").half().save_pretrained(output)
    CLIPTokenizer.from_pretrained(folder / "tokenizer").save_pretrained(output)


def save_diffusers(checkpoint: Path, clip: Path, folder: Path) -> None:
    """The diffusers folder of a checkpoint and its CLIP, float32."""
    file, tokenizer = SingleFile(checkpoint), CLIPTokenizer.from_pretrained(clip)
    unet, vae = file.unet(), file.vae()
    unet.register_to_config(sample_size=LATENTS)
    vae.register_to_config(scaling_factor=1.0)  # the file's is rounded
    save_pipeline(unet, vae, CLIPTextModel.from_pretrained(clip).float(), tokenizer, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="diffusers folder")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("clip", type=Path, help="folder of CLIP's text half and tokenizer")
    parser.add_argument("--back", action="store_true", help="make the diffusers folder of the checkpoint")
    arguments = parser.parse_args()
    if arguments.back:
        require_file(parser, "CLIP", arguments.clip, "config.json", "the folder of CLIP's text half and tokenizer")
        with refused_by(parser):
            save_diffusers(arguments.checkpoint, arguments.clip, arguments.folder)
        return
    require_file(parser, "FOLDER", arguments.folder, "model_index.json", "the diffusers folder of a Stable Diffusion")
    arguments.checkpoint.parent.mkdir(parents=True, exist_ok=True)
    write_file(arguments.checkpoint, save(single_file(arguments.folder), metadata={"format": "pt"}))
    save_clip(arguments.folder, arguments.clip)
    print(f"{arguments.checkpoint}: {arguments.checkpoint.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
