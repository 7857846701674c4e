"""The pipeline's short address: `from kosmos_core.pipeline import KosmosGPipeline` (needs diffusers)."""

from .diffusers.pipeline import KosmosGPipeline
from .diffusers.sampler import SCHEDULERS, named_scheduler

__all__ = ["SCHEDULERS", "KosmosGPipeline", "named_scheduler"]
