"""Pictures from prompts: the world's U-Net behind Kosmos-G or behind its own CLIP."""

from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer

from kosmos_core import KosmosG, Reference
from kosmos_core.diffusers.stable_diffusion import StableDiffusion
from training.base.precision import Precision, faster_on_cpu

from .diffusion import text_states
from .sampling import sample

Pixels = np.ndarray


@dataclass
class EmojiGenerator:
    """A frozen U-Net with an encoder in front: Kosmos-G, or its own CLIP where `encoder` is None.

    Guidance leads away from the encoder's null condition. Only stage 3 trains it: earlier, `clip_null` takes CLIP's.
    """

    diffusion: StableDiffusion
    encoder: KosmosG | None
    size: int  # pixels of a side
    guidance: float
    steps: int = 20
    seed: int = 1
    clip_null: bool = False
    precision: Precision = field(default_factory=faster_on_cpu)
    clip_folder: str | None = None  # of CLIP, where the Stable Diffusion is a single file without one

    def __post_init__(self) -> None:
        self.unet, self.vae = self.diffusion.unet(), self.diffusion.vae()

    def clip(self) -> tuple[CLIPTextModel, CLIPTokenizer]:
        if self.clip_folder is None:
            return self.diffusion.text_encoder(), self.diffusion.tokenizer()
        return CLIPTextModel.from_pretrained(self.clip_folder).float(), CLIPTokenizer.from_pretrained(self.clip_folder)

    @torch.no_grad()
    def conditions(self, texts: list[str], images: list[list[Pixels | Reference]] | None = None) -> torch.Tensor:
        if self.encoder is None or (self.clip_null and texts == [""]):
            return text_states(*self.clip(), texts).float()
        found = []
        for start in range(0, len(texts), 16):
            own = None if images is None else [[as_image(x) for x in p] for p in images[start : start + 16]]
            found.append(self.encoder.encode(texts[start : start + 16], own))
        return torch.cat(found)

    def generate(self, texts: list[str], images: list[list[Pixels | Reference]] | None = None) -> np.ndarray:
        conditions, null = self.conditions(texts, images), self.conditions([""])
        settings = {"seed": self.seed, "guidance": self.guidance, "steps": self.steps, "precision": self.precision}
        return sample(self.unet, self.vae, conditions, null, self.size, **settings)


def as_image(image: Pixels | Reference) -> Image.Image | Reference:
    """What `encode` takes."""
    return image if isinstance(image, Reference) else Image.fromarray(image)
