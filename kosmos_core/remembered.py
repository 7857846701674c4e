"""What a remembered result depends on besides its input: two equal states give the same result for the same input."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

SAMPLES = 4  # numbers of each tensor that are looked at; all of a tensor would take as long as computing anew


def computation_state(device: Any, *parts: nn.Module) -> bytes | None:
    """Hash of all that decides what `parts` compute on `device`, or None where that cannot be told.

    Weights count by type, shape, torch's count of changes in place and a sample of their numbers: the count does not
    see changes through `.data`, the sample not those of a few numbers. Where the weights lie does not count, so that
    they may be moved out of the way and back. Takes a few milliseconds for a thousand tensors.
    """
    kind = torch.device(device).type
    modules = [module for part in parts for module in part.modules()]
    tensors = _tensors(modules)
    facts = (
        kind,
        torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind),
        torch.get_float32_matmul_precision(),
        [_behaviour(module) for module in modules],
        [(tensor.dtype, tensor.shape, _version(tensor)) for tensor in tensors],
    )
    sample = _sample(tensors)
    if sample is None:
        return None
    return hashlib.blake2b(repr(facts).encode() + sample, digest_size=16).digest()


def weight_sample(*parts: nn.Module) -> bytes | None:
    """A few numbers of every weight of `parts`, alike wherever they lie; None where they cannot be read."""
    return _sample(_tensors([module for part in parts for module in part.modules()]))


def _tensors(modules: list[nn.Module]) -> list[Tensor]:
    held = (tensor for module in modules for own in (module._parameters, module._buffers) for tensor in own.values())
    return [tensor for tensor in held if tensor is not None and tensor.numel()]


def _behaviour(module: nn.Module) -> tuple[Any, ...]:
    """What changes a module's result beside its weights: dropout, the type it computes in, what was hung on it."""
    return (
        module.training,
        getattr(module, "compute_dtype", None),
        id(vars(module).get("forward")),
        id(module._compiled_call_impl),
        *module._forward_pre_hooks,
        *module._forward_hooks,
    )


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


@torch.inference_mode()
def _sample(tensors: list[Tensor]) -> bytes | None:
    """A few numbers of each tensor, in the order of the tensors."""
    groups: dict[Any, list[int]] = defaultdict(list)
    for index, tensor in enumerate(tensors):
        groups[tensor.dtype, tensor.device].append(index)
    samples = [b""] * len(tensors)
    try:
        for indices in groups.values():
            dense = (tensors[index] for index in indices)
            dense = (tensor if tensor.is_contiguous() else tensor.flatten() for tensor in dense)
            picked = [tensor.as_strided((SAMPLES,), ((tensor.numel() - 1) // (SAMPLES - 1),)) for tensor in dense]
            for index, numbers in zip(indices, torch.stack(picked).cpu().view(torch.uint8).numpy(), strict=True):
                samples[index] = numbers.tobytes()
    except (RuntimeError, NotImplementedError):  # weights without numbers, or packed in a form of their own
        return None
    return b"".join(samples)
