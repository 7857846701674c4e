"""Part b: latency of encoding beside its floor, and memory; 1 to 8 pictures."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from kosmos_core import KosmosG, KosmosGConfig

from .context import DTYPES, Context, Line, gigabytes, milliseconds

ALLOWED = 4.0  # times the floor
WORDS = 10


def check(context: Context) -> Iterator[Line]:
    """Seconds of one prompt, eager and compiled, against reading the weights once and the bare matrix products."""
    config = KosmosGConfig.official() if context.official else KosmosGConfig.tiny()
    values = context.values["encode"] = {}
    bandwidth = _bandwidth(context)
    values["copy_bytes_per_second"] = bandwidth
    yield Line("memory bandwidth, copying", f"{bandwidth / 1e9:,.0f} GB/s")
    for name in ("bf16", "fp16") if context.device.type == "cuda" else ("fp32", "bf16"):
        context.in_time()
        model = _model(config, DTYPES[name], context.device)
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        values[name] = {"weights_bytes": weights}
        for images in (1, 2, 4, 8)[:: 1 if context.official else 3] if name == "bf16" else (1,):
            yield from _pictures(context, model, name, images, weights / bandwidth)
        if name == "bf16" and context.device.type == "cuda":  # on a CPU compiling gains nothing (measured)
            yield from _compiled(context, model, weights / bandwidth)
        del model


def _model(config: KosmosGConfig, dtype: torch.dtype, device: torch.device) -> KosmosG:
    with torch.device("meta"):
        model = KosmosG(config, dtype=dtype)
    return model.to_empty(device=device).initialize(0).eval()


def _bandwidth(context: Context) -> float:
    source = torch.empty(2**28 if context.official else 2**22, dtype=torch.float32, device=context.device)
    target = torch.empty_like(source)
    seconds = context.seconds(lambda: target.copy_(source))
    return 2 * source.numel() * source.element_size() / seconds


Inputs = tuple[Tensor, Tensor, Tensor]


def prompt(
    config: KosmosGConfig, images: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids (1, s), pixels (n, 3, S, S) and image mask (1, s) of a prompt of ten words and so many pictures."""
    ids, side = config.ids, config.vision.image_size
    picture, places = ids.image(config.resampler.latents)
    row = [ids.bos, *[4] * WORDS, *picture * images]
    mask = [False] * (1 + WORDS) + list(places) * images
    pixels = torch.rand(images, 3, side, side, device=device, dtype=dtype)
    return torch.tensor([row], device=device), pixels, torch.tensor([mask], device=device)


@torch.inference_mode()
def _pictures(context: Context, model: KosmosG, name: str, images: int, reading: float) -> Iterator[Line]:
    inputs = prompt(model.config, images, context.device, DTYPES[name])
    products = _products(model, inputs)
    bare = context.seconds(lambda: [torch.mm(x, weight.t()) for x, weight in products])
    memory = context.peak_memory(lambda: model.encode_tokens(*inputs))
    seconds = context.seconds(lambda: model.encode_tokens(*inputs))
    floor = max(bare, reading)
    context.values["encode"][name][f"{images}_pictures"] = {
        "seconds": seconds,
        "products_seconds": bare,
        "reading_seconds": reading,
        "peak_bytes": memory,
    }
    good = seconds <= ALLOWED * floor if context.official and name == "bf16" else None
    beside = f"{seconds / floor:.1f} x floor {milliseconds(floor)}"
    yield Line(f"{name}, {images} picture(s), eager", milliseconds(seconds), beside, good)
    if memory is not None:
        yield Line(f"{name}, {images} picture(s), memory", gigabytes(memory))


@torch.inference_mode()
def _compiled(context: Context, model: KosmosG, reading: float) -> Iterator[Line]:
    inputs = prompt(model.config, 1, context.device, torch.bfloat16)
    products = _products(model, inputs)
    floor = max(reading, context.seconds(lambda: [torch.mm(x, weight.t()) for x, weight in products]))
    for stack in (model.vision, model.decoder, model.aligner.source_encoder, model.aligner.query_decoder):
        for block in stack.blocks:
            block.compile()
    seconds = context.seconds(lambda: model.encode_tokens(*inputs), warm=4)
    context.values["encode"]["bf16"]["compiled_seconds"] = seconds
    good = seconds <= ALLOWED * floor if context.official else None
    yield Line("bf16, 1 picture(s), compiled", milliseconds(seconds), f"{seconds / floor:.1f} x floor", good)


@torch.inference_mode()
def _products(model: KosmosG, inputs: Inputs) -> list[tuple[Tensor, Tensor]]:
    """An input of noise and the weight of every linear layer that encoding uses, of the shapes it uses."""
    found: list[tuple[Tensor, Tensor]] = []

    def record(layer: nn.Module, given: tuple[Tensor], _: object) -> None:
        weight = layer.weight.flatten(1)
        rows = given[0].numel() // weight.shape[1]
        found.append((torch.randn(rows, weight.shape[1], device=weight.device, dtype=weight.dtype), weight))

    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    hooks = [layer.register_forward_hook(record) for layer in layers]
    model.encode_tokens(*inputs)
    for hook in hooks:
        hook.remove()
    return found
