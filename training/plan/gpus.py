"""GPUs that can be rented: memory, published peaks, and a price to reckon with until yours is stated."""

from __future__ import annotations

from dataclasses import dataclass

from ..base.errors import ConfigError
from ..engine.metrics import PEAKS

# What a plan does not count: the CUDA context, libraries' workspaces, and 5 % of fragmentation.
CONTEXT, FRAGMENTATION = 1.0e9, 1.05


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU."""

    name: str
    memory: float  # bytes
    peak: float  # FLOP/s of bf16 products, from the vendor's data sheet
    tf32: float  # FLOP/s of float32 products in TF32
    price: float  # dollars an hour, of the order that providers asked in 2026; --price states yours
    bandwidth: float  # GB/s that one GPU sends to others of its machine: PCIe 4.0 for cards, NVLink else

    def holds(self, peak: float) -> bool:
        """Whether a plan's peak fits beside what a plan does not count."""
        return peak * FRAGMENTATION + CONTEXT <= self.memory


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("4090", 25.7e9, PEAKS["bf16"]["4090"], 82.6e12, 0.45, 12),
        Gpu("a100", 85.8e9, PEAKS["bf16"]["A100"], 156e12, 1.5, 200),
        Gpu("h100", 85.5e9, PEAKS["bf16"]["H100"], 494e12, 2.5, 300),
        Gpu("h200", 150.7e9, PEAKS["bf16"]["H200"], 494e12, 3.5, 300),
        Gpu("b200", 192e9, PEAKS["bf16"]["B200"], 1100e12, 5.0, 600),
    )
}


def gpu_named(name: str) -> Gpu:
    """The GPU of that name.

    Raises:
        ConfigError: none is called so; names those that there are.
    """
    try:
        return GPUS[name.lower()]
    except KeyError:
        raise ConfigError(
            f"--gpu: {name!r} is none of {', '.join(GPUS)}; for another one take the nearest and state --tflops, "
            f"--bandwidth and --price."
        ) from None
