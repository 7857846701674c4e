"""Optimiser state and gradients sharded by fairscale (OSS and ShardedDataParallel); parameters stay whole."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ...base.processes import ProcessGroup
from ..optimizer import OptimConfig, build_optimizer, parameter_groups
from .engine import Engine, StepModule, total_norm


class Fairscale(Engine):
    """The engine of `sharding: fairscale`."""

    def __init__(self, root: StepModule, optim: OptimConfig, process_group: ProcessGroup) -> None:
        from fairscale.nn.data_parallel import ShardedDataParallel

        super().__init__(root, optim, process_group)
        self.module = ShardedDataParallel(root, self.optimizer, broadcast_buffers=False)

    def _optimizer(self, optim: OptimConfig, fused: bool) -> torch.optim.Optimizer:
        from fairscale.optim.oss import OSS

        def own_part(params: list[dict[str, Any]], **_: Any) -> torch.optim.Optimizer:
            return build_optimizer(optim, params, fused)

        return OSS(parameter_groups(self.parameters, optim.rates), optim=own_part, lr=optim.lr)

    def gradient_sync(self, last: bool) -> AbstractContextManager:
        # Without no_sync, ShardedDataParallel reduces sums that it has already reduced: silently wrong (measured).
        return nullcontext() if last else self.module.no_sync()

    def gradients(self) -> list[Tensor]:
        own = self.optimizer.partition_parameters()[self.process_group.rank]
        return [p.grad for partition in own for p in partition["params"] if p.grad is not None]

    def zero_grad(self) -> None:
        # ShardedDataParallel's gradients are views of its buckets: without them it would reduce stale buckets ever
        # after, silently wrong (measured).
        self.optimizer.zero_grad(set_to_none=False)

    def gradient_norm(self) -> Tensor:
        return self.process_group.sum(total_norm(self.gradients()).square()).sqrt()

    def optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        self.optimizer.consolidate_state_dict(recipient_rank=-1)
        whole = self.optimizer.state_dict()["state"]
        return {
            name: whole.get(number)
            or {key: torch.zeros_like(p) for key in ("exp_avg", "exp_avg_sq")} | {"step": torch.zeros(())}
            for number, (name, p) in enumerate(self.parameters.items())
        }

    def load_optimizer_state(self, state: dict[str, dict[str, Tensor]]) -> None:
        numbered = {number: state[name] for number, name in enumerate(self.parameters)}
        numbers = iter(numbered)
        groups = [
            {**group, "params": list(islice(numbers, len(group["params"])))} for group in self.optimizer.param_groups
        ]
        self.optimizer.load_state_dict({"state": numbered, "param_groups": groups})
