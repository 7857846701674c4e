"""Training in pieces of minutes on any device: what the autoencoder, CLIP, the U-Net and the image words share."""

import argparse
import copy
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn

from kosmos_core.atomic import write_file
from training.base.precision import Precision, autocast, choose_precision

from .options import positive_number, whole_number

SHARD = "15MB"  # of every file, so that a piece can be carried between machines file by file
SAVE_EVERY, TELL_EVERY = 120.0, 20.0  # seconds


@dataclass(frozen=True)
class Schedule:
    """How long a training goes on in all its pieces, and the rate at each step."""

    samples: int
    batch: int
    rate: float
    warmup: int = 50  # steps
    fall: float = 0.3  # share of the steps, at the end, in which the rate falls in a line

    @property
    def steps(self) -> int:
        return -(-self.samples // self.batch)

    def at(self, step: int) -> float:
        left = 1 - step / self.steps
        return self.rate * min(1, (step + 1) / self.warmup, max(0.03, left / self.fall))


def add_options(parser: argparse.ArgumentParser, samples: int, batch: int, rate: float) -> None:
    """The options that every training in pieces has, with a command's own defaults."""
    parser.add_argument("--samples", type=whole_number(1), default=samples, help="in all pieces together")
    parser.add_argument("--batch", type=whole_number(1), default=batch)
    parser.add_argument("--rate", type=positive_number, default=rate)
    parser.add_argument("--minutes", type=positive_number, help="at most, of this piece; default: to the end")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda ...")


class PieceTraining:
    """A module with its optimiser, and with a running mean where one is asked for; goes on from what `folder` holds."""

    def __init__(
        self,
        module: nn.Module,
        folder: Path,
        schedule: Schedule,
        device: torch.device | str = "cpu",
        precision: Precision | None = None,
        mean: bool = False,
    ):
        self.device = torch.device(device)
        self.module, self.folder, self.schedule = module.to(self.device), folder, schedule
        self.precision = precision or choose_precision("auto", self.device)
        self.mean = copy.deepcopy(module).requires_grad_(False) if mean else None
        self.trained = {name: own for name, own in module.named_parameters() if own.requires_grad}
        self.optimizer = torch.optim.AdamW(
            self.trained.values(), lr=0.0, betas=(0.9, 0.99), weight_decay=0.01, fused=True
        )
        self.step = 0
        self.resume()

    @property
    def done(self) -> bool:
        return self.step >= self.schedule.steps

    @property
    def samples(self) -> int:
        return self.step * self.schedule.batch

    def generator(self) -> torch.Generator:
        """The draws of the present step, the same however often a training was stopped before it."""
        return torch.Generator(self.device).manual_seed(self.step)

    def train_step(self, loss_of: Callable[[], Tensor]) -> Tensor:
        """One step on what `loss_of` returns, which is computed in the format of this training; returns it detached."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.at(self.step)
        with autocast(self.precision, self.device):
            loss = loss_of()
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained.values(), 1.0)
        self.optimizer.step()
        self.step += 1
        if self.mean is not None:
            decay = min(0.999, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                torch._foreach_lerp_(list(self.mean.parameters()), list(self.module.parameters()), 1 - decay)
        return loss.detach()

    def run(
        self, loss_of: Callable[[], Tensor], minutes: float | None = None, told: Callable[[], str] = lambda: ""
    ) -> bool:
        """Steps until the schedule or so many minutes end, with a line now and then; True when the schedule is done."""
        began = last_told = last_saved = time.monotonic()
        first, loss = self.step, torch.tensor(torch.nan)
        while not self.done and (minutes is None or time.monotonic() - began < 60 * minutes):
            loss = self.train_step(loss_of)
            now = time.monotonic()
            if now - last_told > TELL_EVERY or self.done:
                last_told, speed = now, (self.step - first) * self.schedule.batch / (now - began)
                share = f"{self.samples:,} of {self.schedule.samples:,} samples"
                print(f"step {self.step}, {share} ({speed:.0f}/s) loss {loss.item():.4f} {told()}".rstrip(), flush=True)
            if now - last_saved > SAVE_EVERY:
                last_saved = now
                self.save()
        if self.step > first:
            self.save()
        return self.done

    def save(self) -> None:
        """All that going on needs, in files of at most SHARD; the state before is kept until the new one is whole."""
        tensors = {f"module.{name}": tensor for name, tensor in self.module.state_dict().items()}
        if self.mean is not None:
            tensors |= {f"mean.{name}": tensor for name, tensor in self.mean.state_dict().items()}
        for name, parameter in self.trained.items():
            own = self.optimizer.state[parameter]
            tensors |= {f"{moment}.{name}": own[moment] for moment in ("exp_avg", "exp_avg_sq") if moment in own}
        new, present = self.folder / "state.new", self.folder / "state"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        tensors = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
        }
        save_torch_state_dict(tensors, new, max_shard_size=SHARD)
        write_file(new / "progress.json", json.dumps({"step": self.step, "samples": self.samples}))
        shutil.rmtree(present, ignore_errors=True)
        new.rename(present)

    def resume(self) -> None:
        """Take over the state of an earlier piece, where there is one."""
        new, present = self.folder / "state.new", self.folder / "state"
        if not present.exists() and (new / "progress.json").exists():
            new.rename(present)  # stopped between two lines of `save`
        if not present.exists():
            return
        found: dict[str, dict[str, Tensor]] = {}
        for path in sorted(present.glob("*.safetensors")):
            for name, tensor in load_file(path, device=str(self.device)).items():
                kind, own = name.split(".", 1)
                found.setdefault(kind, {})[own] = tensor
        self.module.load_state_dict(found["module"])
        if self.mean is not None:
            self.mean.load_state_dict(found["mean"])
        self.step = json.loads((present / "progress.json").read_text())["step"]
        for name, parameter in self.trained.items():
            moments = {moment: found[moment][name] for moment in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[parameter] = {"step": torch.tensor(float(self.step), device=self.device), **moments}
