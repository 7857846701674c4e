"""Floating-point operations of a training step as torch counts them: what the utilisation (MFU) is measured against.

Matrix products, convolutions and attention, two operations per multiply-add. Causal attention counts whole, and what is
computed a second time in the backward pass (activation checkpointing, fused attention's scores) does not count, as is
usual for MFU: an option that saves memory must not look like speed.

Counting slows a micro-batch down, and rows of varying length make nearly every one a new shape. But the operations of
any stage are a sum of parts that grow with the sizes listed in `batch_sizes`, so a few counted micro-batches tell those
of all others exactly: `OperationCount` asks for another one only where a batch's sizes do not follow from those before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

aten = torch.ops.aten
TOLERANCE = 1e-9  # of the sizes of a batch against a combination of counted ones; both are small whole numbers


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_backward(_: Tensor, query: Tensor, key: Tensor, value: Tensor, *__: Any, **___: Any) -> int:
    # Twice the forward pass. torch's own formula adds the scores, which fused kernels compute a second time.
    return 2 * sdpa_flop_count(query.shape, key.shape, value.shape)


# torch has no formula for the CPU's kernel.
FUSED_ATTENTION = ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention")


def _formulas() -> dict[Any, Callable[..., int]]:
    formulas = dict(flop_registry)
    for name in FUSED_ATTENTION:
        formulas[getattr(aten, f"_scaled_dot_product_{name}")] = _attention
        formulas[getattr(aten, f"_scaled_dot_product_{name}_backward")] = _attention_backward
    return formulas


class OperationCounter(TorchDispatchMode):
    """While active, `total` is the number of operations by torch's formulas.

    torch's FlopCounterMode besides attributes them to modules, by hooks that keep activations alive which activation
    checkpointing frees: a counted step would take more memory than any other.

    Compiled modules run as they are meanwhile: a module that torch.compile first meets under such a mode would stay
    uncompiled for good (measured).
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self.formulas = _formulas()

    def __enter__(self) -> OperationCounter:
        self.uncompiled = torch.compiler.set_stance("force_eager")
        self.uncompiled.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.uncompiled.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = self.formulas.get(func._overloadpacket)
        # Only activation checkpointing records a graph inside of a backward pass.
        if formula is not None and not (torch._C._current_graph_task_id() != -1 and torch.is_grad_enabled()):
            self.total += formula(*args, **kwargs, out_val=out)
        return out


def batch_sizes(batch: Mapping[str, Any], pad: int) -> Tensor:
    """What the operations of a micro-batch grow with, float64; for a batch on the CPU, so that nothing waits.

    Rows, their tokens and the squares of their lengths, each with and without padding (`pad` is its token id); squares
    of the packed documents' lengths; images, and whether there are none; target tokens; captions;
    captions and target images that frozen models have still to encode. With replayed captions also their rows, tokens
    and squares of lengths.
    """
    token_ids = batch["token_ids"]
    rows, length = token_ids.shape
    lengths = (token_ids != pad).sum(1).double()
    images = 0 if batch.get("pixels") is None else len(batch["pixels"])
    documents, targets, captions = (batch.get(name) for name in ("document_ids", "loss_mask", "clip_ids"))
    squares = 0.0
    if documents is not None:
        runs = [torch.unique_consecutive(row, return_counts=True)[1] for row in documents]
        squares = float(torch.cat(runs).double().square().sum())
    sizes = [rows, rows * length, rows * length**2, lengths.sum(), lengths.square().sum(), squares]
    sizes += [images, images == 0, 0 if targets is None else targets[:, 1:].sum()]
    known = batch["stated"].sum() if "stated" in batch else 0  # their states were read
    captions = 0 if captions is None else len(captions)
    sizes += [captions, captions - known, len(batch["target"]) if "target" in batch else 0]
    if "replay_ids" in batch:
        rows, length = batch["replay_ids"].shape
        sizes += [rows, rows * length, rows * length**2]
    return torch.tensor([float(size) for size in sizes], dtype=torch.float64)


class OperationCount:
    """The operations of micro-batches whose sizes are known, learned from those that were counted.

    counted: for each of these its `batch_sizes` and its operations, in one list of numbers. Part of a checkpoint: since
    a counted micro-batch runs uncompiled, a resumed run has to count the very ones that an unbroken run counts.
    """

    def __init__(self, counted: list[list[float]]) -> None:
        self.counted = counted

    def of(self, sizes: Tensor) -> float | None:
        """Operations of a micro-batch of these sizes; None where it has to be counted."""
        self.counted[:] = [row for row in self.counted if len(row) == len(sizes) + 1]  # an older release's have fewer
        if not self.counted:
            return None
        known, counts = torch.tensor(self.counted, dtype=torch.float64).split((len(sizes), 1), dim=1)
        scale = torch.maximum(known.amax(0), sizes).clamp(min=1)
        columns, wanted = (known / scale).T, (sizes / scale)[:, None]
        shares = torch.linalg.lstsq(columns, wanted, driver="gelsd").solution
        told = float((columns @ shares - wanted).abs().max()) <= TOLERANCE
        return float(shares[:, 0] @ counts[:, 0]) if told else None

    def learn(self, sizes: Tensor, operations: float) -> None:
        """Take over the count of a micro-batch, unless the counts before already told it."""
        if self.of(sizes) is None:
            self.counted.append([*sizes.tolist(), float(operations)])

    def merge(self, counted: list[list[float]]) -> None:
        """Learn what another process has counted."""
        for *sizes, operations in counted:
            self.learn(torch.tensor(sizes, dtype=torch.float64), operations)
