"""Find each entity in its picture: CLIPSeg (section 3.1), GroundingDINO with SAM 2, or SAM 3.

All take pairs of picture and words, batched across pictures, and give a `Region` or None for "not there".
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from .chunks import SourceImage
from .construct_config import SegmentConfig
from .masks import Region
from .model_files import custom_class, device_and_dtype, find_model, load

Pair = tuple[SourceImage, str]


class Segmenter(Protocol):
    """A class of your own takes the `SegmentConfig`; maps may have any size, they stand for the centre square."""

    def __call__(self, pairs: list[Pair]) -> list[Region | None]: ...


class _Batched:
    """Cuts the pairs into batches of `segment.batch`."""

    config: SegmentConfig

    @torch.inference_mode()
    def __call__(self, pairs: list[Pair]) -> list[Region | None]:
        regions: list[Region | None] = []
        for begin in range(0, len(pairs), self.config.batch):
            batch = pairs[begin : begin + self.config.batch]
            regions += self._segment([image.view for image, _ in batch], [words for _, words in batch])
        return regions

    def _segment(self, views: list[np.ndarray], words: list[str]) -> list[Region | None]:
        raise NotImplementedError


class ClipSeg(_Batched):
    """CLIPSeg's logits at 352 x 352; the score is the mean probability of the pixels above the threshold."""

    def __init__(self, config: SegmentConfig):
        from transformers import CLIPSegForImageSegmentation, CLIPSegProcessor

        folder = find_model(config.model, "segment.model")
        self.config = config
        self.device, self.dtype = device_and_dtype(config.dtype)
        self.processor = load(CLIPSegProcessor, folder, "segment.model")
        model = load(CLIPSegForImageSegmentation, folder, "segment.model", dtype=self.dtype)
        self.model = model.to(self.device).eval()

    def _segment(self, views: list[np.ndarray], words: list[str]) -> list[Region | None]:
        inputs = self.processor(text=words, images=views, padding=True, truncation=True, return_tensors="pt")
        inputs = inputs.to(self.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self.dtype)
        logits = self.model(**inputs).logits.float()
        if logits.ndim == 2:  # older releases drop the batch axis of a single pair
            logits = logits[None]
        return [Region(one.numpy(), _mean_probability(one, self.config.threshold)) for one in logits.cpu()]


def _mean_probability(logits: torch.Tensor, threshold: float) -> float:
    probability = torch.sigmoid(logits)
    inside = probability > threshold
    return round(float(probability[inside].mean()), 4) if inside.any() else 0.0


class GroundedSam2(_Batched):
    """GroundingDINO's surest box for the words, SAM 2's mask inside it; the score is the box's."""

    def __init__(self, config: SegmentConfig):
        from transformers import AutoProcessor, GroundingDinoForObjectDetection, Sam2Model, Sam2Processor

        detector = find_model(config.detector, "segment.detector")
        folder = find_model(config.model, "segment.model")
        self.config = config
        self.device, self.dtype = device_and_dtype(config.dtype)
        self.detector_processor = load(AutoProcessor, detector, "segment.detector")
        self.detector = load(GroundingDinoForObjectDetection, detector, "segment.detector", dtype=self.dtype)
        self.processor = load(Sam2Processor, folder, "segment.model")
        self.model = load(Sam2Model, folder, "segment.model", dtype=self.dtype)
        for model in (self.detector, self.model):
            model.to(self.device).eval()

    def _segment(self, views: list[np.ndarray], words: list[str]) -> list[Region | None]:
        boxes = self._boxes(views, words)
        found = [i for i, (_, score) in enumerate(boxes) if score > self.config.detector_threshold]
        regions: list[Region | None] = [None] * len(views)
        if found:
            inputs = self.processor(
                images=[views[i] for i in found], input_boxes=[[boxes[i][0]] for i in found], return_tensors="pt"
            ).to(self.device)
            inputs["pixel_values"] = inputs["pixel_values"].to(self.dtype)
            inputs["input_boxes"] = inputs["input_boxes"].to(self.dtype)
            masks = self.model(**inputs, multimask_output=False).pred_masks.float().cpu()
            for i, logits in zip(found, masks, strict=True):
                regions[i] = Region(logits[0, 0].numpy(), boxes[i][1])
        return regions

    def _boxes(self, views: list[np.ndarray], words: list[str]) -> list[tuple[list[float], float]]:
        """The surest box (left, top, right, bottom in pixels of the view) and its score per pair."""
        # The detector was trained on lower-case phrases that end with a dot.
        texts = [f"{text.lower().strip()}." for text in words]
        inputs = self.detector_processor(images=views, text=texts, padding=True, return_tensors="pt").to(self.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self.dtype)
        found = self.detector(**inputs)
        scores, best = torch.sigmoid(found.logits.float()).amax(-1).max(dim=1)
        boxes = []
        for view, score, box in zip(views, scores, found.pred_boxes[torch.arange(len(views)), best], strict=True):
            height, width = view.shape[:2]
            x, y, w, h = box.float().tolist()
            corners = [(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height]
            boxes.append((corners, round(float(score), 4)))
        return boxes


class Sam3(_Batched):
    """SAM 3 finds all instances of the words by itself; the mask is their union, the score the surest one's."""

    def __init__(self, config: SegmentConfig):
        from transformers import Sam3Model, Sam3Processor

        folder = find_model(config.model, "segment.model")
        self.config = config
        self.device, self.dtype = device_and_dtype(config.dtype)
        self.processor = load(Sam3Processor, folder, "segment.model")
        self.model = load(Sam3Model, folder, "segment.model", dtype=self.dtype).to(self.device).eval()

    def _segment(self, views: list[np.ndarray], words: list[str]) -> list[Region | None]:
        inputs = self.processor(images=views, text=words, return_tensors="pt").to(self.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self.dtype)
        found = self.model(**inputs)
        scores = torch.sigmoid(found.pred_logits.float())
        if found.presence_logits is not None:  # the chance that the words are in the picture at all
            scores = scores * torch.sigmoid(found.presence_logits.float())
        regions: list[Region | None] = []
        for score, masks in zip(scores.cpu(), found.pred_masks.float().cpu(), strict=True):
            sure = score > self.config.detector_threshold
            surest = round(float(score.max()), 4)
            regions.append(Region(masks[sure].amax(0).numpy(), surest) if sure.any() else None)
        return regions


def build_segmenter(config: SegmentConfig) -> Segmenter:
    """The segmenter that `segment.kind` names."""
    kinds = {"clipseg": ClipSeg, "grounded-sam2": GroundedSam2, "sam3": Sam3}
    return (kinds.get(config.kind) or custom_class(config.kind, "segment.kind"))(config)
