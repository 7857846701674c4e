"""A stage made ready to train: what the training loop calls, whatever the sharding."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from ...base.processes import ProcessGroup
from ..adamw_8bit import in_plain_tensors, of_plain_tensors
from ..optimizer import OptimConfig, build_optimizer, parameter_groups, rate_factor
from ..stage import Stage


class StepModule(nn.Module):
    """The stage's work as one module's forward: what DDP and fully_shard need to see to gather and reduce."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.model = stage.model
        object.__setattr__(self, "stage", stage)  # not a submodule: frozen modules are never wrapped

    def forward(self, method: str, *arguments: Any) -> Any:
        return getattr(self.stage, method)(self.model, *arguments)


def row_norms(gradient: Tensor) -> Tensor:
    """The 2-norms of a gradient's rows, or a vector itself.

    On CPUs torch adds up the squares of a whole tensor one after the other, and float32 loses 1e-5 of a million of
    them, more of the whole tensor than of its shards.
    """
    return torch.linalg.vector_norm(gradient, dim=-1) if gradient.ndim > 1 else gradient


def norm_of_rows(norms: Iterable[Tensor]) -> Tensor:
    """The 2-norm of all gradients together from their `row_norms`."""
    return torch.nn.utils.get_total_norm(list(norms))


def total_norm(gradients: Iterable[Tensor]) -> Tensor:
    """The 2-norm of all gradients together."""
    return norm_of_rows(row_norms(g) for g in gradients)


class Engine:
    """The engine of one process, and the base of those of several.

    Attributes:
        stage: the stage as it was built; its model is changed in place where the sharding asks for it.
        module: what runs the stage's methods in its forward; wraps the model or is hooked into it.
        parameters: what trains, by its name in the model, in the order of the optimiser's groups.
        full_precision: float32 values of frozen weights that the model holds in another format, by name.
    """

    full_precision: Mapping[str, Tensor] = MappingProxyType({})

    def __init__(self, root: StepModule, optim: OptimConfig, process_group: ProcessGroup) -> None:
        self.stage, self.process_group, self.module = root.stage, process_group, root
        trained = {name: p for name, p in root.model.named_parameters() if p.requires_grad}
        factors = {name: rate_factor(name, optim.rates) for name in trained}
        order = {factor: place for place, factor in enumerate(dict.fromkeys(factors.values()))}
        self.parameters = {name: trained[name] for name in sorted(trained, key=lambda name: order[factors[name]])}
        self.optimizer = self._optimizer(optim, fused=process_group.device.type in ("cpu", "cuda"))

    def _optimizer(self, optim: OptimConfig, fused: bool) -> torch.optim.Optimizer:
        return build_optimizer(optim, parameter_groups(self.parameters, optim.rates), fused)

    def step(self, method: str, *arguments: Any) -> Any:
        """Run one of the stage's methods, with its gradients averaged over processes in the backward pass."""
        return self.module(method, *arguments)

    def gradient_sync(self, last: bool) -> AbstractContextManager:
        """The context of each micro-batch's forward and backward; processes average gradients in the step's `last`."""
        return nullcontext()

    def gradients(self) -> list[Tensor]:
        """The gradients that this process holds."""
        return [p.grad for p in self.parameters.values() if p.grad is not None]

    def zero_grad(self) -> None:
        """Clear the gradients before the next step."""
        self.optimizer.zero_grad(set_to_none=True)

    def gradient_norm(self) -> Tensor:
        """The 2-norm of the whole averaged gradient, equal on all processes."""
        return total_norm(self.gradients())

    def model_state(self) -> dict[str, Tensor]:
        """Parameters and buffers by name, float32 also where the model holds another format; under fsdp2 shards."""
        return {**get_model_state_dict(self.stage.model), **self.full_precision}

    def load_model_state(self, state: dict[str, Tensor]) -> None:
        """Take over tensors in the form of `model_state`."""
        for name, full in self.full_precision.items():
            full.copy_(state[name])
        set_model_state_dict(self.stage.model, state)

    def optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        """The optimiser's tensors by parameter name, the same for every sharding; under fsdp2 this process's shards."""
        return in_plain_tensors(get_optimizer_state_dict(self.stage.model, self.optimizer)["state"])

    def load_optimizer_state(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Take over tensors in the form of `optimizer_state`; learning rate, betas and the like stay as configured."""
        own = get_optimizer_state_dict(self.stage.model, self.optimizer)
        filled = of_plain_tensors(own["state"], state)
        set_optimizer_state_dict(self.stage.model, self.optimizer, {**own, "state": filled})
