"""Random stand-ins for a Stable Diffusion 1.5 checkpoint, a ControlNet and a LoRA that ComfyUI takes for the real ones.

ComfyUI recognises SD1.5 by 320 model channels and 768 context channels, and reads the number of levels and blocks from
the keys. One level with one residual block is the least it accepts. The pictures they make are coloured noise, but
noise that depends on the conditioning, the hint and the LoRA as a trained model's pictures do.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
from safetensors.torch import save_file

CHANNELS = 320
CONTEXT = 768
TIME = 4 * CHANNELS


class RandomWeights:
    """A state dict filled layer by layer with seeded random numbers of the usual scale (variance 1 / fan-in)."""

    def __init__(self, seed: int) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self.generator = torch.Generator().manual_seed(seed)

    def _random(self, *shape: int, scale: float) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator) * scale

    def linear(self, name: str, inputs: int, outputs: int, bias: bool = True) -> None:
        self.tensors[f"{name}.weight"] = self._random(outputs, inputs, scale=inputs**-0.5)
        if bias:
            self.tensors[f"{name}.bias"] = self._random(outputs, scale=0.02)

    def convolution(
        self, name: str, inputs: int, outputs: int, size: int = 3, bias: bool = True, gain: float = 1.0
    ) -> None:
        scale = gain * (inputs * size * size) ** -0.5
        self.tensors[f"{name}.weight"] = self._random(outputs, inputs, size, size, scale=scale)
        if bias:
            self.tensors[f"{name}.bias"] = self._random(outputs, scale=0.02)

    def norm(self, name: str, width: int) -> None:
        self.tensors[f"{name}.weight"] = torch.ones(width)
        self.tensors[f"{name}.bias"] = torch.zeros(width)

    def residual_block(self, name: str, inputs: int) -> None:
        self.norm(f"{name}.in_layers.0", inputs)
        self.convolution(f"{name}.in_layers.2", inputs, CHANNELS)
        self.linear(f"{name}.emb_layers.1", TIME, CHANNELS)
        self.norm(f"{name}.out_layers.0", CHANNELS)
        self.convolution(f"{name}.out_layers.3", CHANNELS, CHANNELS)
        if inputs != CHANNELS:
            self.convolution(f"{name}.skip_connection", inputs, CHANNELS, size=1)

    def transformer(self, name: str) -> None:
        self.norm(f"{name}.norm", CHANNELS)
        self.convolution(f"{name}.proj_in", CHANNELS, CHANNELS, size=1)
        block = f"{name}.transformer_blocks.0"
        for attention, context in (("attn1", CHANNELS), ("attn2", CONTEXT)):
            self.linear(f"{block}.{attention}.to_q", CHANNELS, CHANNELS, bias=False)
            self.linear(f"{block}.{attention}.to_k", context, CHANNELS, bias=False)
            self.linear(f"{block}.{attention}.to_v", context, CHANNELS, bias=False)
            self.linear(f"{block}.{attention}.to_out.0", CHANNELS, CHANNELS)
        for index in (1, 2, 3):
            self.norm(f"{block}.norm{index}", CHANNELS)
        self.linear(f"{block}.ff.net.0.proj", CHANNELS, 8 * CHANNELS)
        self.linear(f"{block}.ff.net.2", 4 * CHANNELS, CHANNELS)
        self.convolution(f"{name}.proj_out", CHANNELS, CHANNELS, size=1)

    def down_path(self, prefix: str) -> None:
        """Time embedding, first convolution, one block and the middle: what U-Net and ControlNet share."""
        self.linear(f"{prefix}time_embed.0", CHANNELS, TIME)
        self.linear(f"{prefix}time_embed.2", TIME, TIME)
        self.convolution(f"{prefix}input_blocks.0.0", 4, CHANNELS)
        self.residual_block(f"{prefix}input_blocks.1.0", CHANNELS)
        self.transformer(f"{prefix}input_blocks.1.1")
        self.residual_block(f"{prefix}middle_block.0", CHANNELS)
        self.transformer(f"{prefix}middle_block.1")
        self.residual_block(f"{prefix}middle_block.2", CHANNELS)

    def autoencoder(self, prefix: str) -> None:
        """The two halves of TAESD, which ComfyUI accepts as a checkpoint's VAE (2.4 M parameters instead of 83 M)."""

        def block(name: str) -> None:
            for index in (0, 2, 4):
                self.convolution(f"{name}.conv.{index}", 64, 64)

        self.convolution(f"{prefix}taesd_encoder.0", 3, 64)
        for index in (1, 3, 4, 5, 7, 8, 9, 11, 12, 13):
            block(f"{prefix}taesd_encoder.{index}")
        for index in (2, 6, 10):
            self.convolution(f"{prefix}taesd_encoder.{index}", 64, 64, bias=False)
        self.convolution(f"{prefix}taesd_encoder.14", 64, 4)

        self.convolution(f"{prefix}taesd_decoder.1", 4, 64)
        for index in (3, 4, 5, 8, 9, 10, 13, 14, 15, 18):
            block(f"{prefix}taesd_decoder.{index}")
        for index in (7, 12, 17):
            self.convolution(f"{prefix}taesd_decoder.{index}", 64, 64, bias=False)
        self.convolution(f"{prefix}taesd_decoder.19", 64, 3)
        # Ten random residual blocks leave values of several tens: bring the picture back into 0..1.
        self.tensors[f"{prefix}taesd_decoder.19.weight"] *= 0.15
        self.tensors[f"{prefix}taesd_decoder.19.bias"] += 0.5
        self.tensors[f"{prefix}vae_scale"] = torch.tensor(1.0)
        self.tensors[f"{prefix}vae_shift"] = torch.tensor(0.0)

    def text_encoder(self, prefix: str) -> None:
        """CLIP ViT-L's text part: its size cannot be chosen. Its blocks add nothing, its embeddings are random."""
        width = CONTEXT
        self.tensors[f"{prefix}embeddings.token_embedding.weight"] = self._random(49408, width, scale=1.0)
        self.tensors[f"{prefix}embeddings.position_embedding.weight"] = self._random(77, width, scale=1.0)
        self.norm(f"{prefix}final_layer_norm", width)
        for layer in range(12):
            block = f"{prefix}encoder.layers.{layer}"
            self.norm(f"{block}.layer_norm1", width)
            self.norm(f"{block}.layer_norm2", width)
            sizes = {f"self_attn.{name}_proj": (width, width) for name in ("q", "k", "v", "out")}
            sizes |= {"mlp.fc1": (width, 4 * width), "mlp.fc2": (4 * width, width)}
            for name, (inputs, outputs) in sizes.items():
                self.tensors[f"{block}.{name}.weight"] = torch.zeros(outputs, inputs, dtype=torch.float16)
                self.tensors[f"{block}.{name}.bias"] = torch.zeros(outputs)

    def save(self, path: Path) -> Path:
        """Write the tensors in half precision to `path` and return it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.half().contiguous() for name, tensor in self.tensors.items()}, path)
        return path


def save_tiny_checkpoint(path: Path, seed: int = 1, text_encoder: bool = False) -> Path:
    """Write a checkpoint (U-Net and VAE; 55 MB) that CheckpointLoaderSimple takes for SD1.5.

    With `text_encoder` it also has a CLIP, which takes 246 MB more.
    """
    weights = RandomWeights(seed)
    unet = "model.diffusion_model."
    weights.down_path(unet)
    for index in (0, 1):
        weights.residual_block(f"{unet}output_blocks.{index}.0", 2 * CHANNELS)
        weights.transformer(f"{unet}output_blocks.{index}.1")
    weights.norm(f"{unet}out.0", CHANNELS)
    weights.convolution(f"{unet}out.2", CHANNELS, 4)
    weights.autoencoder("first_stage_model.")
    if text_encoder:
        weights.text_encoder("cond_stage_model.transformer.text_model.")
    return weights.save(path)


def save_tiny_controlnet(path: Path, seed: int = 2) -> Path:
    """Write a ControlNet for the checkpoint above; its output convolutions are not zero, as after training."""
    weights = RandomWeights(seed)
    prefix = "control_model."
    weights.down_path(prefix)
    widths = (3, 16, 16, 32, 32, 96, 96, 256, CHANNELS)
    for index, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        # The activations in between halve the signal; without a gain nothing of the hint would be left at the end.
        weights.convolution(f"{prefix}input_hint_block.{2 * index}", inputs, outputs, gain=2.5)
    for index in (0, 1):
        weights.convolution(f"{prefix}zero_convs.{index}.0", CHANNELS, CHANNELS, size=1)
    weights.convolution(f"{prefix}middle_block_out.0", CHANNELS, CHANNELS, size=1)
    return weights.save(path)


def save_tiny_lora(path: Path, seed: int = 3) -> Path:
    """Write a LoRA in kohya's naming with one U-Net layer and one text encoder layer, rank 4."""
    weights = RandomWeights(seed)
    unet = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    text = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    for name, outputs in ((unet, CHANNELS), (text, CONTEXT)):
        weights.linear(f"{name}.lora_down", CONTEXT, 4, bias=False)
        weights.linear(f"{name}.lora_up", 4, outputs, bias=False)
        weights.tensors[f"{name}.alpha"] = torch.tensor(4.0)
    return weights.save(path)
