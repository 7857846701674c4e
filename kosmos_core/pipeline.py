"""The pipeline's short address: `from kosmos_core.pipeline import KosmosGPipeline` (needs diffusers).

Its code is in `diffusers/`, which the registry's archive leaves out.
"""

try:
    from .diffusers.pipeline import KosmosGPipeline
    from .diffusers.sampler import SCHEDULERS, named_scheduler
except ModuleNotFoundError as error:
    if error.name != f"{__package__}.diffusers":
        raise
    raise ModuleNotFoundError(
        "The pipeline needs the folder kosmos_core/diffusers, which the registry's archive leaves out; clone the "
        "repository and import it from there.",
        name=error.name,
    ) from None

__all__ = ["SCHEDULERS", "KosmosGPipeline", "named_scheduler"]
