"""Where the original's recorded outputs lie, and how a recorded checkpoint becomes a model."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from kosmos_core import KosmosG, load_model
from kosmos_core.original.converter import convert

COPIED = Path(__file__).parents[1] / "golden"
SHARED = Path(__file__).parents[2].parent / "shared" / "golden"


@dataclass(frozen=True)
class Role:
    """One recorded run of the original at a small size."""

    folder: Path

    @property
    def config(self) -> dict:
        return json.loads((self.folder / "config.json").read_text())

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(self.folder / f"{name}.safetensors")

    def model(self, checkpoint: str, folder: Path) -> KosmosG:
        """The recorded checkpoint through the converter and the loader."""
        dims = self.config["dims"]
        overrides = {
            "vision.heads": dims["vit"]["width"] // dims["vit"]["head_width"],
            "aligner.heads": dims["aligner"]["heads"],
        }
        target = folder / f"{checkpoint}.safetensors"
        convert(self.folder / f"{checkpoint}.pt", target, overrides=overrides)
        return load_model(target)


def roles() -> list[Role]:
    """The copied roles, and every other one where the full recordings lie beside the checkout."""
    copied = sorted(COPIED.glob("seed_*"))
    shared = [
        role
        for role in sorted(SHARED.glob("seed_*/*"))
        if f"{role.parent.name}_{role.name}" not in {folder.name for folder in copied}
    ]
    return [Role(folder) for folder in [*copied, *shared]]


def assert_close(found: torch.Tensor, expected: torch.Tensor, what: str, tolerance: float = 2e-5) -> None:
    """Equal within `tolerance` of the expected tensor's largest absolute value."""
    assert found.shape == expected.shape, f"{what}: shape {tuple(found.shape)}, expected {tuple(expected.shape)}"
    error = (found.double() - expected.double()).abs().max() / expected.double().abs().max()
    assert error <= tolerance, f"{what} is off by {error:.2e} of its largest value"
