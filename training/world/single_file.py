"""The world's Stable Diffusion as one file for ComfyUI's CheckpointLoaderSimple, fp16.

    python -m training.world.single_file RUNS/sd/diffusers assets/world/emoji-world-sd.safetensors

The U-Net gets the names of the first Stable Diffusion code, the autoencoder those of TAESD. CLIP is left out: ComfyUI's
is of a fixed size that the world's does not have, and Kosmos-G takes its place.
"""

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, UNet2DConditionModel
from safetensors.torch import save_file

from kosmos_core.stable_diffusion import LATENT_SCALE, UNET, VAE

RESIDUAL = {
    "norm1.": "in_layers.0.", "conv1.": "in_layers.2.", "time_emb_proj.": "emb_layers.1.", "norm2.": "out_layers.0.",
    "conv2.": "out_layers.3.", "conv_shortcut.": "skip_connection.",
}  # fmt: skip
OUTSIDE = {
    "time_embedding.linear_1.": "time_embed.0.", "time_embedding.linear_2.": "time_embed.2.",
    "conv_in.": "input_blocks.0.0.", "conv_norm_out.": "out.0.", "conv_out.": "out.2.",
}  # fmt: skip
BLOCKS = {
    "down_blocks.0.resnets.0.": "input_blocks.1.0.", "down_blocks.0.attentions.0.": "input_blocks.1.1.",
    "mid_block.resnets.0.": "middle_block.0.", "mid_block.attentions.0.": "middle_block.1.",
    "mid_block.resnets.1.": "middle_block.2.",
    "up_blocks.0.resnets.0.": "output_blocks.0.0.", "up_blocks.0.attentions.0.": "output_blocks.0.1.",
    "up_blocks.0.resnets.1.": "output_blocks.1.0.", "up_blocks.0.attentions.1.": "output_blocks.1.1.",
}  # fmt: skip


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
    """Tensors of the checkpoint, fp16."""
    unet = UNet2DConditionModel.from_pretrained(folder / "unet").state_dict()
    tensors = {f"{UNET}{unet_name(name)}": tensor for name, tensor in unet.items()}
    vae = AutoencoderTiny.from_pretrained(folder / "vae").state_dict()
    tensors |= {autoencoder_name(name): tensor for name, tensor in vae.items()}
    tensors[f"{VAE}vae_scale"] = torch.tensor(LATENT_SCALE)
    tensors[f"{VAE}vae_shift"] = torch.tensor(0.0)
    return {name: tensor.half().contiguous() for name, tensor in tensors.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="diffusers folder")
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    save_file(single_file(arguments.folder), arguments.output, metadata={"format": "pt"})
    print(f"{arguments.output}: {arguments.output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
