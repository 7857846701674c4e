"""Sizes of a Kosmos-G model: one frozen dataclass per part, convertible to and from plain dictionaries (JSON)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from .special_tokens import SpecialTokens


@dataclass(frozen=True)
class VisionConfig:
    """CLIP vision transformer that turns a square picture into patch features."""

    image_size: int = 224  # pixels of a side
    patch_size: int = 14  # pixels of a side
    width: int = 1024
    layers: int = 24
    heads: int = 16
    ffn_width: int = 4096

    @property
    def tokens(self) -> int:
        """Features per picture: the class token and one per patch."""
        return 1 + (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class ResamplerConfig:
    """Attentive resampler that turns the patch features into a fixed number of language-model inputs."""

    latents: int = 64
    heads: int = 32
    attention_dropout: float = 0.1


@dataclass(frozen=True)
class DecoderConfig:
    """Causal Magneto language model."""

    vocabulary: int = 64007
    width: int = 2048
    layers: int = 24
    heads: int = 32
    ffn_width: int = 8192
    dropout: float = 0.1


@dataclass(frozen=True)
class AlignerConfig:
    """AlignerNet, from the language model's space to CLIP's text space (half M) and, for training, back (half N)."""

    width: int = 768
    heads: int = 12
    ffn_width: int = 3072
    encoder_layers: int = 12
    decoder_layers: int = 12
    queries: int = 77
    positions: int = 32768
    reconstruction: bool = False  # half N is present


# The special tokens need ten ids, the sinusoidal positions two frequencies.
SMALLEST = {"decoder.vocabulary": 10, "decoder.width": 4}
PARTS = (VisionConfig, ResamplerConfig, DecoderConfig, AlignerConfig)


@dataclass(frozen=True)
class KosmosGConfig:
    """Sizes of the whole model. `aligner` is None for a file of the first training stage.

    Raises ValueError that names the size: not a whole number from 1, a share outside 0..1, heads that do not divide.
    """

    vision: VisionConfig = field(default_factory=VisionConfig)
    resampler: ResamplerConfig = field(default_factory=ResamplerConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    aligner: AlignerConfig | None = field(default_factory=AlignerConfig)

    def __post_init__(self) -> None:
        for part in fields(self):
            _check_sizes(part.name, getattr(self, part.name))
        for part, width, heads in (
            ("vision", self.vision.width, self.vision.heads),
            ("resampler", self.decoder.width, self.resampler.heads),
            ("decoder", self.decoder.width, self.decoder.heads),
            *([("aligner", self.aligner.width, self.aligner.heads)] if self.aligner else []),
        ):
            if width % heads:
                raise ValueError(
                    f"{part}.heads is {heads}, but the width {width} must be a multiple of it; "
                    f"set {part}.heads to a divisor of {width}"
                )

    @property
    def ids(self) -> SpecialTokens:
        """Ids of the special tokens of this vocabulary."""
        return SpecialTokens.of_vocabulary(self.decoder.vocabulary)

    @classmethod
    def official(cls, *, reconstruction: bool = False) -> KosmosGConfig:
        """Sizes of the paper (arXiv 2310.02992, appendix A): 1.9 billion parameters."""
        return cls(aligner=AlignerConfig(reconstruction=reconstruction))

    @classmethod
    def medium(cls, *, reconstruction: bool = False) -> KosmosGConfig:
        """Sizes of the benchmarks: about 60 million parameters, seconds on one CPU core."""
        return cls(
            VisionConfig(width=256, layers=6, heads=4, ffn_width=1024),
            ResamplerConfig(latents=64, heads=8),
            DecoderConfig(vocabulary=8007, width=512, layers=8, heads=8, ffn_width=2048),
            AlignerConfig(
                width=384, heads=6, ffn_width=1536, encoder_layers=6, decoder_layers=6, reconstruction=reconstruction
            ),
        )

    @classmethod
    def tiny(cls, *, vocabulary: int = 107, reconstruction: bool = False) -> KosmosGConfig:
        """Sizes of the tests: milliseconds; the condition keeps Stable Diffusion 1.5's 77 x 768."""
        return cls(
            VisionConfig(image_size=224, patch_size=56, width=32, layers=2, heads=2, ffn_width=64),
            ResamplerConfig(latents=4, heads=2),
            DecoderConfig(vocabulary=vocabulary, width=32, layers=2, heads=2, ffn_width=64),
            AlignerConfig(
                width=768,
                heads=12,
                ffn_width=128,
                encoder_layers=1,
                decoder_layers=1,
                positions=512,
                reconstruction=reconstruction,
            ),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dictionary, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> KosmosGConfig:
        """Config from `to_dict`'s form; ValueError names an unknown part or size, or a wrong value."""
        parts = {f.name: kind for f, kind in zip(fields(cls), PARTS, strict=True)}
        if not isinstance(values, dict):
            raise ValueError(f"the config is {values!r}, expected a dictionary of {', '.join(parts)}")
        built: dict[str, Any] = {}
        for part, sizes in values.items():
            if part not in parts:
                raise ValueError(f"the config has an unknown part '{part}'; known are {', '.join(parts)}")
            if sizes is None and part == "aligner":
                built[part] = None
                continue
            if not isinstance(sizes, dict):
                raise ValueError(f"the config's part '{part}' is {sizes!r}, expected a dictionary of sizes")
            known = {f.name for f in fields(parts[part])}
            if unknown := sorted(set(sizes) - known):
                raise ValueError(f"the config has an unknown size '{part}.{unknown[0]}'; known are {sorted(known)}")
            built[part] = parts[part](**sizes)
        return cls(**built)


def _check_sizes(part: str, sizes: Any) -> None:
    for size in fields(sizes) if sizes is not None else ():
        value, name = getattr(sizes, size.name), f"{part}.{size.name}"
        if size.type == "bool":
            if not isinstance(value, bool):
                raise ValueError(f"{name} is {value!r}, expected true or false")
        elif size.type == "float":
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
                raise ValueError(f"{name} is {value!r}, expected a number from 0 to below 1")
        elif isinstance(value, bool) or not isinstance(value, int) or value < SMALLEST.get(name, 1):
            raise ValueError(f"{name} is {value!r}, expected a whole number of at least {SMALLEST.get(name, 1)}")
