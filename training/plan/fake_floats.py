"""Fake floating-point tensors beside real integers: a training step of any size in seconds, without memory.

A stage's shapes follow from token ids, masks and lengths, so these keep their values; of weights, images and
activations only the shape is kept (torch's FakeTensorMode). Code that runs here needs no knowledge of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

from kosmos_core.decoder import sinusoidal_positions

aten = torch.ops.aten
INDEXING = frozenset((aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index))


class _RealIntegers(TorchDispatchMode):
    """Above a FakeTensorMode: what takes and gives integers or truth values only is computed for real."""

    def __init__(self, fake: FakeTensorMode) -> None:
        super().__init__()
        self.fake = fake

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:
            return func(*args)
        kwargs = kwargs or {}
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented
        tensors = [value for value in tree_iter((args, kwargs)) if isinstance(value, Tensor)]
        if any(isinstance(tensor, FakeTensor) for tensor in tensors):
            if func is aten._local_scalar_dense.default:  # the value of float(x): shapes never follow from one
                return 1.0
            if func.overloadpacket in INDEXING:
                args = (args[0], self._numbers(args[1]), *args[2:])
            return func(*args, **kwargs)
        if not tensors:
            made = func(*args, **kwargs)
            if all(tensor.is_floating_point() for tensor in tree_iter(made) if isinstance(tensor, Tensor)):
                return made
        with unset_fake_temporarily():
            made = func(*args, **kwargs)
        return tree_map_only(Tensor, self.of, made)

    def of(self, tensor: Tensor) -> Tensor:
        """A real tensor as the simulation has it: fake where it holds floating-point numbers."""
        return self.fake.from_tensor(tensor) if tensor.is_floating_point() else tensor

    def _numbers(self, indices: list[Tensor | None]) -> list[Tensor | None]:
        """Masks as the numbers of the places that they mark: how many these are decides a shape."""
        found: list[Tensor | None] = []
        for index in indices:
            if isinstance(index, Tensor) and index.dtype == torch.bool:
                with unset_fake_temporarily():
                    found += index.nonzero(as_tuple=True)
            else:
                found.append(index)
        return found


@contextmanager
def fake_floats() -> Iterator[Callable[[Tensor], Tensor]]:
    """Inside, new floating-point tensors are fake; yields a function that makes a real tensor one of the simulation."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with fake, _RealIntegers(fake) as mode:
            yield mode.of
    finally:
        sinusoidal_positions.cache_clear()  # its tables are fake ones now
