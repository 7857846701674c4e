"""The engine of one process on a CPU: of long tables it makes gradients of those rows alone that a step uses."""

from __future__ import annotations

import torch
from torch import Tensor

from ...base.processes import ProcessGroup
from ..optimizer import OptimConfig, parameter_groups
from ..table_gradients import TableAdamW, keep_table_gradients
from .engine import Engine, StepModule, norm_of_rows, row_norms


class Single(Engine):
    """The engine of `sharding: single` where weights and gradients are on the CPU; its numbers are `Engine`'s."""

    def __init__(self, root: StepModule, optim: OptimConfig, process_group: ProcessGroup) -> None:
        self.tables = keep_table_gradients(root.model)
        super().__init__(root, optim, process_group)

    def _optimizer(self, optim: OptimConfig, fused: bool) -> torch.optim.Optimizer:
        if optim.name != "adamw" or not self.tables:
            return super()._optimizer(optim, fused)
        options = {"lr": optim.lr, "betas": optim.betas, "eps": optim.eps, "weight_decay": optim.weight_decay}
        return TableAdamW(parameter_groups(self.parameters, optim.rates), self.tables, **options)

    def gradients(self) -> list[Tensor]:
        kept = {id(table.weight): table.part for table in self.tables.values() if table.known}
        return [kept.get(id(p), p.grad) for p in self.parameters.values() if p.grad is not None]

    def gradient_norm(self) -> Tensor:
        kept = {id(table.weight): table.row_norms() for table in self.tables.values() if table.known}
        return norm_of_rows(
            kept[id(p)] if id(p) in kept else row_norms(p.grad) for p in self.parameters.values() if p.grad is not None
        )
