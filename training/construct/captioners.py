"""Captions: BLIP-2 (Kosmos-G, arXiv 2310.02992, section 3.1: BLIP-2-OPT-6.7b), or those that came with the pictures."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from .chunks import SourceImage
from .construct_config import CaptionConfig
from .model_files import custom_class, device_and_dtype, find_model, load


class Captioner(Protocol):
    """A class of your own takes the `CaptionConfig` and gives every picture of a chunk one caption, "" for none."""

    def __call__(self, images: list[SourceImage]) -> list[str]: ...


class Blip2Captioner:
    """BLIP-2 without a prompt, greedy, in batches."""

    def __init__(self, config: CaptionConfig):
        from transformers import Blip2ForConditionalGeneration, Blip2Processor

        folder = find_model(config.model, "caption.model")
        self.config = config
        self.device, self.dtype = device_and_dtype(config.dtype)
        self.processor = load(Blip2Processor, folder, "caption.model")
        model = load(Blip2ForConditionalGeneration, folder, "caption.model", dtype=self.dtype)
        self.model = model.to(self.device).eval()

    @torch.inference_mode()
    def __call__(self, images: list[SourceImage]) -> list[str]:
        captions = []
        for begin in range(0, len(images), self.config.batch):
            views = [image.view for image in images[begin : begin + self.config.batch]]
            captions += self._captions(views)
        return captions

    def _captions(self, views: list[np.ndarray]) -> list[str]:
        # Pictures alone: with a text, even an empty one, the processor would build a prompt.
        inputs = self.processor(images=views, return_tensors="pt").to(self.device, self.dtype)
        written = self.model.generate(**inputs, max_new_tokens=self.config.max_new_tokens, do_sample=False, num_beams=1)
        return [" ".join(text.split()) for text in self.processor.batch_decode(written, skip_special_tokens=True)]


class GivenCaptions:
    """The captions beside the pictures: a .txt of the same name, or the `caption` of its json."""

    def __init__(self, config: CaptionConfig):
        pass

    def __call__(self, images: list[SourceImage]) -> list[str]:
        return [image.given_caption for image in images]


def build_captioner(config: CaptionConfig) -> Captioner:
    """The captioner that `caption.kind` names."""
    kinds = {"blip2": Blip2Captioner, "given": GivenCaptions}
    return (kinds.get(config.kind) or custom_class(config.kind, "caption.kind"))(config)
