"""The file that a model's weights were loaded from, by which references from files know the model."""

from __future__ import annotations

import os
from pathlib import Path

import safetensors
import torch
from torch import nn

from .reference import PICTURE_PARTS, PROMPT_PARTS, model_fingerprint
from .saved_clip import read_kosmos_header

SAMPLES = 4  # numbers of each tensor that are compared
TOLERANCE = 2.0**-7  # of a number that was rounded to bfloat16 on its way, the coarsest type a model is cast to


class WeightFile:
    """Where a model's weights are from, and whether they still are."""

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self._state = _state(self.path)

    @property
    def unchanged(self) -> bool:
        """Whether the file is still the one that was loaded."""
        return _state(self.path) == self._state

    def fingerprint(self, model: nn.Module, whole: bool = False) -> str:
        """Hash of the file's parts that make embeddings of pictures, or of the `whole` encoder.

        ValueError where the file is not the one that was loaded, or `model` has other weights by now.
        """
        if not self.unchanged:
            raise ValueError(
                f"{self.path} was replaced or removed after it was loaded, so that references from files cannot be "
                "told to belong to it or not; load the model anew"
            )
        self._check_weights(model, (*PICTURE_PARTS, *PROMPT_PARTS) if whole else PICTURE_PARTS)
        return model_fingerprint(self.path, whole)

    @torch.no_grad()
    def _check_weights(self, model: nn.Module, parts: tuple[str, ...]) -> None:
        _, prefix = read_kosmos_header(self.path)
        with safetensors.safe_open(self.path, framework="pt") as file:
            for name, tensor in model.state_dict().items():
                if not name.startswith(parts) or not tensor.numel():
                    continue
                places = torch.linspace(0, tensor.numel() - 1, SAMPLES).long()
                own = tensor.flatten()[places.to(tensor.device)].float().cpu()
                stored = file.get_tensor(prefix + name).flatten()[places].float()
                if not torch.allclose(own, stored, rtol=TOLERANCE, atol=1e-6):
                    raise ValueError(
                        f"the model has other weights than {self.path} by now ({name} differs), and references from "
                        "files belong to one file; save the model, load that file, and make the references again"
                    )


def _state(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
