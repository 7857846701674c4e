"""Frechet Inception Distance by torch-fidelity, with the statistics of the real pictures cached for the next run.

Two protocols that differ in what happens to pictures before the Inception network (arXiv 2310.02992, section 4.2):
    kosmosg   as the original's script: reals at 256 by tensor resizing, fakes as generated (512); sizes are unequal
    clean     both at 256 by Pillow's antialiased bicubic
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from kosmos_core.images import planes, resize_and_crop

from ..base.content_digest import content_digest
from ..base.errors import ConfigError
from .subjects import open_image

PROTOCOLS = ("kosmosg", "clean")
INCEPTION = "inception-v3-compat"
LAYER = "2048"
SIDE = 256
ENOUGH = 10_000  # pictures on each side, as the authors of FID advise
FEATURES = 2048


class ImageFiles(Dataset):
    """Picture files as uint8 tensors (3, h, w) for torch-fidelity.

    `treatment` says how the shorter side is brought to 256 pixels, of which the centre square stays: by "tensor" or by
    "pillow"; None leaves a picture as it is.
    """

    def __init__(self, paths: Sequence[Path], treatment: str | None) -> None:
        self.paths, self.treatment = list(paths), treatment

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        image = open_image(self.paths[index])
        if self.treatment == "pillow":
            image = resize_and_crop(image, SIDE)
        pixels = planes(image)
        if self.treatment == "tensor":
            size = [int(SIDE * length / min(image.size)) for length in (image.height, image.width)]
            # Without antialiasing, as the torchvision of its time (0.14) resized tensors.
            floats = functional.interpolate(pixels[None] / 255, size=size, mode="bilinear", align_corners=False)
            top, left = (round((length - SIDE) / 2) for length in size)
            pixels = (floats[0] * 255).to(torch.uint8)[:, top : top + SIDE, left : left + SIDE].contiguous()
        return pixels


def treatments(protocol: str) -> tuple[str | None, str | None]:
    """How a protocol treats fakes and reals before the network."""
    return {"kosmosg": (None, "tensor"), "clean": ("pillow", "pillow")}[protocol]


def frechet_distance(
    fakes: Dataset,
    reals: Dataset,
    *,
    inception: str | Path | None,
    cache: str | Path,
    reals_name: str,
    device: torch.device,
    extractor: str = INCEPTION,
    layer: str = LAYER,
    batch_size: int = 64,
) -> float:
    """FID of two sets of uint8 pictures; the reals' statistics are stored in the folder `cache` under `reals_name`.

    `inception` is the file of torch-fidelity's Inception weights (weights-inception-2015-12-05-6726825d.pth); None
    takes torch's hub cache. ConfigError where there is no such file, or fewer than two pictures on a side.
    """
    import torch_fidelity

    for name, images in (("generated", fakes), ("real", reals)):
        if len(images) < 2:
            raise ConfigError(f"FID needs at least 2 {name} pictures, there are {len(images)}")
    inception = check_extractor(inception, extractor, layer)
    found = torch_fidelity.calculate_metrics(
        input1=fakes,
        input2=reals,
        fid=True,
        cuda=device.type == "cuda",
        batch_size=batch_size,
        verbose=False,
        feature_extractor=extractor,
        feature_extractor_weights_path=None if inception is None else str(inception),
        feature_layer_fid=layer,
        cache=True,
        cache_root=str(cache),
        input2_cache_name=reals_name,
    )
    return float(found["frechet_inception_distance"])


def check_extractor(inception: str | Path | None, extractor: str = INCEPTION, layer: str = LAYER) -> Path | None:
    """Open the network that FID compares with, and return the file of its weights; None where it needs none.

    ConfigError where there is no such file, extractor or layer, or the file holds something else.
    """
    from torch_fidelity.utils import create_feature_extractor

    if extractor == INCEPTION and inception is None:
        inception = Path(torch.hub.get_dir(), "checkpoints", "weights-inception-2015-12-05-6726825d.pth")
    if inception is not None and not Path(inception).is_file():
        raise ConfigError(
            f"--inception: {inception} is no file; give torch-fidelity's Inception weights "
            "(weights-inception-2015-12-05-6726825d.pth), which are not downloaded here"
        )
    if inception is not None:
        _check_weights(inception)
    weights = None if inception is None else str(inception)
    try:
        create_feature_extractor(extractor, [layer], cuda=False, verbose=False, feature_extractor_weights_path=weights)
    except Exception as error:  # torch-fidelity asserts, and what is wrong with a file can be anything
        reason = str(error).split("\n")[0]
        where = f"--inception: {inception}" if inception is not None else f"--extractor: {extractor}"
        raise ConfigError(f"{where} cannot be used as {extractor} with --layer {layer}: {reason:.200}") from error
    return None if inception is None else Path(inception)


def warning_of_size(fakes: int, reals: int) -> str:
    """A sentence where there are too few pictures for FID to mean what people take it for; "" where there are enough.

    FID is biased upwards by the number of pictures (arXiv 1911.07023, section 3): on few of them it says more of their
    number than of the model. Below as many as the network has features, the covariance has no full rank either.
    """
    fewest = min(fakes, reals)
    if fewest >= ENOUGH:
        return ""
    rank = f", and below {FEATURES:,} the covariance of the features has no full rank" if fewest < FEATURES else ""
    return (
        f"Warning: FID of {fakes:,} generated and {reals:,} real pictures is no figure to publish or to compare with "
        f"others: below {ENOUGH:,} on each side it grows as pictures get fewer{rank}."
    )


def _check_weights(path: str | Path) -> None:
    """torch-fidelity unpickles its weights without restriction: only hand it what also loads as plain tensors."""
    try:
        torch.load(path, weights_only=True, mmap=True)
    except Exception as error:  # pickle, zip and torch raise errors of their own
        reason = str(error).split("\n")[0]
        raise ConfigError(f"--inception: {path} is no plain weight file: {reason}") from error


def name_of_reals(paths: Sequence[Path], protocol: str, inception: str | Path | None) -> str:
    """A name for the reals' statistics that changes with the pictures' content, their treatment and the network's."""
    told = f"{treatments(protocol)[1]} {content_digest(paths, [path.name for path in paths])}"
    if inception is not None and Path(inception).is_file():
        told += content_digest([inception], [""])
    return f"reals-{protocol}-{hashlib.sha256(told.encode()).hexdigest()[:16]}"
