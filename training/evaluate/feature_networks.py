"""Feature networks of subject fidelity (DINO, CLIP-I) and text fidelity (CLIP-T), from local folders or the hub cache.

DINO: `facebook/dino-vits16`, shorter side 256, centre 224, class token after the last norm. CLIP:
`openai/clip-vit-base-patch32`, shorter side 224, centre 224, projected features. Both as in the evaluations of
DreamBooth (arXiv 2208.12242) and Kosmos-G; resizing is Pillow's bicubic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from kosmos_core.images import CLIP_MEAN, CLIP_STD, planes, resize_and_crop

from ..base.errors import ConfigError
from .subjects import open_image

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE = 224  # pixels that both networks see
FOREGROUND = 0.6  # share of the class token's attention that makes the foreground, as in the DINO paper's figures

T = TypeVar("T")


@dataclass(frozen=True)
class ImageFeatures:
    """Unit-length features of n pictures, (n, width) each; `foreground` is DINO of the foreground on white."""

    dino: Tensor
    clip: Tensor
    foreground: Tensor

    def __getitem__(self, rows: Any) -> ImageFeatures:
        return ImageFeatures(self.dino[rows], self.clip[rows], self.foreground[rows])


def prepare(image: Image.Image, resize: int, mean: Sequence[float], deviation: Sequence[float]) -> Tensor:
    """RGB picture -> (3, 224, 224): shorter side to `resize`, centre cut out, normalised."""
    edge = (resize - SIDE) // 2
    pixels = planes(resize_and_crop(image, resize).crop((edge, edge, edge + SIDE, edge + SIDE)))
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (mean, deviation))
    return (pixels / 255 - mean) / deviation


class FeatureNets:
    """DINO and CLIP on one device. `dino` and `clip` are folders, or names whose files are in the hub cache; `names` is
    what the user calls them.

    ConfigError where one of them is not there or is something else; nothing is downloaded.
    """

    def __init__(
        self,
        dino: str | Path,
        clip: str | Path,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        names: tuple[str, str] = ("--dino", "--clip"),
    ):
        from transformers import CLIPModel, CLIPTokenizer, ViTModel

        self.dino = _local(names[0], ViTModel, dino, add_pooling_layer=False).to(device, dtype).eval()
        self._attention = ClassAttention(self.dino)
        self.clip = _local(names[1], CLIPModel, clip).to(device, dtype).eval()
        self.tokenizer = _local(names[1], CLIPTokenizer, clip)
        self.device, self.dtype = device, dtype
        mean, deviation = (
            torch.tensor(values, device=device)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD)
        )
        self._white = ((1 - mean) / deviation).to(dtype)

    def prepare(self, source: Path | Image.Image) -> tuple[Tensor, Tensor]:
        """What DINO and what CLIP see of a picture, each (3, 224, 224)."""
        image = source if isinstance(source, Image.Image) else open_image(source)
        return prepare(image, 256, IMAGENET_MEAN, IMAGENET_STD), prepare(image, SIDE, CLIP_MEAN, CLIP_STD)

    @torch.inference_mode()
    def of_prepared(self, prepared: Sequence[tuple[Tensor, Tensor]]) -> ImageFeatures:
        """Features of one batch of prepared pictures."""
        for_dino, for_clip = (torch.stack(part).to(self.device, self.dtype) for part in zip(*prepared, strict=True))
        whole = self.dino(pixel_values=for_dino)
        mask = foreground_mask(self._attention.weights(), for_dino.shape[-1]).to(self.dtype)
        masked = self.dino(pixel_values=for_dino * mask + self._white * (1 - mask))
        clip = self.clip.get_image_features(pixel_values=for_clip)
        return ImageFeatures(
            _unit(whole.last_hidden_state[:, 0]),
            _unit(clip if isinstance(clip, Tensor) else clip.pooler_output),
            _unit(masked.last_hidden_state[:, 0]),
        )

    def of_images(self, sources: Sequence[Path | Image.Image], batch_size: int = 32, threads: int = 1) -> ImageFeatures:
        """Features of many pictures; reading and resizing run in threads beside the networks."""
        prepared = prefetched(self.prepare, sources, threads)
        found = [self.of_prepared(batch) for batch in batches(prepared, batch_size)]
        parts = (torch.cat([getattr(part, name) for part in found]) for name in ("dino", "clip", "foreground"))
        return ImageFeatures(*parts)

    @torch.inference_mode()
    def of_texts(self, texts: Sequence[str], batch_size: int = 64) -> Tensor:
        """Unit-length CLIP features (n, width) of prompts, cut at CLIP's 77 tokens."""
        found = []
        for batch in batches(texts, batch_size):
            tokens = self.tokenizer(batch, padding=True, truncation=True, max_length=77, return_tensors="pt")
            features = self.clip.get_text_features(**tokens.to(self.device))
            found.append(_unit(features if isinstance(features, Tensor) else features.pooler_output))
        return torch.cat(found)


class ClassAttention:
    """What the class token of a vision transformer attends to in its last layer.

    Fast attention never forms these weights, and asking transformers for them makes every layer slow. So hooks keep the
    last layer's queries and keys, under either of the names that versions of transformers give its modules.
    """

    def __init__(self, model: nn.Module) -> None:
        self.heads, self._last = model.config.num_attention_heads, {}
        for kind, names in (("query", ("query", "q_proj")), ("key", ("key", "k_proj"))):
            last = [module for name, module in model.named_modules() if name.rpartition(".")[2] in names][-1]
            last.register_forward_hook(partial(self._keep, kind))

    def _keep(self, kind: str, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        self._last[kind] = output

    def weights(self) -> Tensor:
        """Attention (n, heads, patches) in the last batch, without the class token's to itself."""
        query, key = (rearrange(self._last[x], "n t (h d) -> n h t d", h=self.heads).float() for x in ("query", "key"))
        scores = (query[:, :, :1] @ key.transpose(-1, -2)).squeeze(2) / query.shape[-1] ** 0.5
        return scores.softmax(-1)[..., 1:]


def foreground_mask(attention: Tensor, side: int) -> Tensor:
    """The class token's attention (n, heads, patches) -> mask (n, 1, side, side) of the foreground.

    It is 1 on the patches with the largest weights, which together hold `FOREGROUND` of the whole weight (arXiv
    2104.14294, section 4.2.2).
    """
    weights = attention.float().mean(1)
    weights = weights / weights.sum(1, keepdim=True)
    ordered, places = weights.sort(dim=1, descending=True)
    before = ordered.cumsum(1) - ordered
    chosen = torch.zeros_like(weights).scatter(1, places, (before < FOREGROUND).to(weights.dtype))
    patches = round(weights.shape[1] ** 0.5)
    return functional.interpolate(chosen.view(-1, 1, patches, patches), size=(side, side), mode="nearest")


def prefetched(work: Callable[[Any], T], items: Iterable[Any], threads: int, ahead: int = 64) -> Iterator[T]:
    """`work` of each item in order, done by threads up to `ahead` items before it is asked for."""
    with ThreadPoolExecutor(max(1, threads)) as pool:
        items = iter(items)
        pending = [pool.submit(work, item) for item in islice(items, ahead)]
        while pending:
            yield pending.pop(0).result()
            pending += [pool.submit(work, item) for item in islice(items, 1)]


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items in lists of `size`, the last one as long as it comes."""
    items = iter(items)
    while batch := list(islice(items, size)):
        yield batch


def _unit(features: Tensor) -> Tensor:
    return functional.normalize(features.float(), dim=-1).cpu()


def _local(option: str, kind: Any, source: str | Path, **options: Any) -> Any:
    try:
        return kind.from_pretrained(str(source), local_files_only=True, **options)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        reason = str(error).split("\n")[0]
        raise ConfigError(
            f"{option}: no {kind.__name__} at {source} ({reason}); give a folder with its config and weights, or "
            "fetch it into the hub cache beforehand (nothing is downloaded here)"
        ) from error


def network_folder(source: str | Path) -> Path:
    """Where the files of a network that has been loaded lie: the folder itself, or that in the hub's cache."""
    from transformers.utils import cached_file

    return Path(cached_file(str(source), "config.json", local_files_only=True)).parent
