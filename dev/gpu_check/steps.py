"""Part c: one training step of each stage at full size with random weights, beside its plan; also part f's steps."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .context import Context, Line, Skipped, gigabytes, require

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "training" / "configs"
NEEDS = ("jsonargparse", "rich")
TINY_NEEDS = ("megatron.energon", "diffusers")  # which write what the small trainings read
# The recipe's own files where it has the stage: the rates are then those of its steps. `words` of training.run.
OFFICIAL = {
    "lm": ["--config", str(CONFIGS / "lm.yaml"), "--batch.size", "3"],
    "align": [
        *("--config", str(CONFIGS / "kosmos2" / "align.yaml")),
        *("--config", str(CONFIGS / "kosmos2" / "align-1x80gb.yaml")),
    ],
    "instruct": [
        *("--config", str(CONFIGS / "kosmos2" / "single.yaml")),
        *("--config", str(CONFIGS / "kosmos2" / "single-1x80gb.yaml")),
    ],
}
GOALS = {"lm": 0.45, "align": 0.40, "instruct": 0.35}  # of the peak, lm compiled
MEMORY = 0.10  # how far from the plan a measured peak may be
VARIANTS = {
    "kept activations": ["--parallel.activation_checkpointing", "false"],
    "checkpointing": ["--parallel.activation_checkpointing", "true"],
    "compiled": ["--parallel.compile", "true"],
}


def check(context: Context, folder: Path) -> Iterator[Line]:
    """Seconds, share of the peak and memory of the stages' steps; every variant that fits."""
    require(*NEEDS, *(() if context.official else TINY_NEEDS))
    rates = context.values["rates"] = {}
    context.values["steps"] = {}
    for stage, words in OFFICIAL.items():
        if not context.official:
            words = tiny_words(stage, folder)
        try:
            yield from _stage(context, stage, words, rates)
        except Skipped as reason:
            context.skipped[f"steps, {stage}"] = str(reason)


def tiny_words(stage: str, folder: Path) -> list[str]:
    """The smoke configuration of a stage, with a tiny Stable Diffusion that is described below `folder`."""
    words = ["--config", str(CONFIGS / stage / "smoke.yaml"), "--batch.size", "2", "--batch.micro", "2"]
    if stage == "lm":
        return words
    return [*words, "--task.stable_diffusion", str(folder / "stable-diffusion"), "--data.pad_to", "40"]


def _stage(context: Context, stage: str, words: list[str], rates: dict[str, float]) -> Iterator[Line]:
    from training.engine.metrics import peak_flops

    if stage == "instruct":
        require("diffusers")
    peak = peak_flops(context.device, torch.bfloat16)
    variants = VARIANTS if context.official else {"kept activations": VARIANTS["kept activations"]}
    for name, options in variants.items():
        context.in_time()
        try:
            found = measure(context, [*words, *options])
        except torch.cuda.OutOfMemoryError:
            yield Line(f"{stage}, {name}", "does not fit")
            continue
        context.values["steps"].setdefault(stage, {})[name] = asdict(found)
        rates[stage] = max(rates.get(stage, 0.0), found.operations / found.seconds)
        share = found.operations / found.seconds / peak if peak else None
        reached = None if share is None else share >= GOALS[stage]
        shown = f"{found.operations / found.seconds / 1e12:.2f} TFLOP/s" + (
            "" if share is None else f", MFU {share:.0%}"
        )
        goal = f"goal {GOALS[stage]:.0%}" if peak else ""
        decides = name == ("compiled" if stage == "lm" else "checkpointing")
        yield Line(f"{stage}, {name}", f"{found.seconds:.3f} s, {shown}", goal, reached if decides else None)
        if found.memory is not None:
            near = abs(found.memory / found.planned - 1) <= MEMORY
            beside = f"plan {gigabytes(found.planned)}"
            yield Line(f"{stage}, {name}, memory", gigabytes(found.memory), beside, near if decides else None)


@dataclass
class Step:
    """A measured step of one micro-batch."""

    rows: int
    seconds: float  # of a step, its micro-batches and one update
    micro_batch_seconds: float
    update_seconds: float
    operations: float
    memory: float | None
    planned: float


def measure(context: Context, words: list[str]) -> Step:
    """Run the steps of a configuration, words of training.run, on random weights and one made-up micro-batch."""
    from training.base.precision import autocast
    from training.base.processes import ProcessGroup
    from training.base.rng import RowRng
    from training.data.batch_stream import to_device
    from training.engine.run_config import parse
    from training.engine.sharding.parallelize import parallelize
    from training.plan.longest_batch import batch_shape, longest_batch
    from training.plan.memory import plan

    device = context.device
    config = parse([*words, "--run_folder", "unused", "--device", device.type])
    if context.official:
        config.precision = "bf16"
    expected = plan(config, 1)
    gc.collect()
    stage = random_stage(config, device)
    stage.set_trainable()
    engine = parallelize(stage, "single", config.parallel, config.optim, config.precision, ProcessGroup(0, 1, device))
    batch = to_device(_filled(longest_batch(config, *batch_shape(config, None, None))), device)

    def micro_batch() -> None:
        with autocast(config.precision, device):
            losses = engine.step("training_step", batch, RowRng(config.seed, step=0))
        (losses.total / config.batch.micro).backward()

    def update() -> None:
        norm = float(engine.gradient_norm())
        torch._foreach_mul_(engine.gradients(), min(1.0, 2.0 / (norm + 1e-6)))
        engine.optimizer.step()

    def whole() -> None:
        micro_batch()
        update()
        engine.zero_grad()

    whole()  # the optimiser's state exists from the first update on
    memory = context.peak_memory(whole)
    rounds = 3 if context.official else 1
    micro = context.seconds(micro_batch, rounds, warm=(1 + config.parallel.compile) if context.official else 0)
    updating = context.seconds(update, rounds, warm=0)
    seconds = expected.micro_batches * micro + updating
    return Step(config.batch.micro, seconds, micro, updating, expected.operations, memory, expected.peak)


def random_stage(config: Any, device: torch.device) -> Any:
    """The stage of a configuration with random weights, Stable Diffusion's parts too, on the device."""
    from kosmos_core import KosmosG
    from training.base.precision import DTYPES
    from training.plan.unread_stable_diffusion import UnreadStableDiffusion
    from training.stages import stage_module

    diffusion = None
    if config.stage != "lm":
        only_clip = config.stage == "align"
        diffusion = UnreadStableDiffusion(
            config.task.stable_diffusion, DTYPES[config.precision], text_encoder_only=only_clip
        )
    with torch.device("meta"):
        model = KosmosG(config.model)
    model.to_empty(device=device).initialize(config.seed)
    with torch.device(device):
        return stage_module(config.stage).assemble(config, diffusion, model, [])


def _filled(batch: dict[str, Any]) -> dict[str, Any]:
    """Noise where a plan's micro-batch has zeros: a product of zeros takes less power and time."""

    def noise(value: Any) -> Any:
        return torch.randn_like(value) if isinstance(value, Tensor) and value.is_floating_point() else value

    return {key: noise(value) for key, value in batch.items()}
