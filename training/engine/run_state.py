"""The whole state of a run: what its checkpoints hold, under which names, and how it is taken up again.

model.NAME, average.NAME            parameters and buffers; the moving average of what trains
optimizer.state.NAME.exp_avg, ...   the optimiser's tensors
progress, data.STREAM               counters, and the position of each data stream: JSON as uint8
random.RANK.python, .numpy          states of Python's and numpy's generators: JSON as uint8
random.RANK.torch, .cuda.DEVICE     states of torch's generators: uint8
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from ..base.errors import CheckpointError
from .checkpoint_reader import from_tensor, load, placeholder, reading, stored, to_tensor, value_of
from .optimizer import MovingAverage
from .sharding.engine import Engine


def random_state() -> dict[str, Tensor]:
    """The state of every global random generator of this process."""
    return _in_tensors(
        {
            "python": random.getstate(),
            "numpy": numpy.random.get_state(),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }
    )


def set_random_state(state: dict[str, Tensor]) -> None:
    """Take up `random_state`; those of GPUs only where there are as many as before."""
    version, numbers, gauss = from_tensor(state["python"])
    random.setstate((version, tuple(numbers), gauss))
    numpy.random.set_state(tuple(from_tensor(state["numpy"])))
    torch.set_rng_state(state["torch"])
    cuda = [state[f"cuda.{device}"] for device in range(sum(name.startswith("cuda.") for name in state))]
    if cuda and len(cuda) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(cuda)


def _in_tensors(state: dict[str, Any]) -> dict[str, Tensor]:
    """The generators' own states, which older checkpoints hold as they are, in the form of `random_state`."""
    kind, keys, *rest = state["numpy"]
    return {
        "python": to_tensor(state["python"]),
        "numpy": to_tensor([kind, keys.tolist(), *rest]),
        "torch": state["torch"],
        **{f"cuda.{device}": generator for device, generator in enumerate(state["cuda"])},
    }


def gather_state(
    engine: Engine, average: MovingAverage | None, progress: dict[str, Any], streams: dict[int, Any]
) -> dict[str, Any]:
    """The whole state of a run as one dictionary for `Checkpoints.save`.

    Args:
        progress: counters, equal on all processes.
        streams: position of each data stream that this process owns.
    """
    state: dict[str, Any] = {
        "model": engine.model_state(),
        "optimizer": {"state": engine.optimizer_state()},
        "progress": to_tensor(progress),
        f"random.{engine.process_group.rank}": random_state(),
    }
    if average is not None:
        state["average"] = dict(average.average)
    return state | {f"data.{index}": to_tensor(position) for index, position in streams.items()}


def _check_fits(path: Path, found: dict[str, Any], state: dict[str, Any]) -> None:
    """Refuse a checkpoint of another model: one that is larger would load without a word."""
    expected = {f"model.{name}": tuple(tensor.shape) for name, tensor in state["model"].items()}
    for name, moments in state["optimizer"]["state"].items():
        expected |= {f"optimizer.state.{name}.{key}": tuple(tensor.shape) for key, tensor in moments.items()}
    found = {name: shape for name, shape in found.items() if name.startswith(("model.", "optimizer.state."))}
    if different := sorted(name for name, _ in expected.items() ^ found.items()):
        raise CheckpointError(
            f"{path} is of another model or trains other parts: {different[0]} and {len(set(different)) - 1} other "
            f"tensors differ from this configuration; resume with the config.yaml of its run folder."
        )


def restore_state(path: Path, engine: Engine, average: MovingAverage | None, streams: list[int]) -> dict[int, Any]:
    """Load a checkpoint into model, optimiser, moving average and random generators.

    Returns:
        the stored position of each data stream in `streams`.
    Raises:
        CheckpointError: it cannot be read, or belongs to another model.
    """
    found = stored(path)
    state: dict[str, Any] = {"model": engine.model_state(), "optimizer": {"state": engine.optimizer_state()}}
    _check_fits(path, found, state)
    averaged = average is not None and any(name.startswith("average.") for name in found)
    if averaged:
        state["average"] = dict(average.average)
    # Absent with more processes than saved it; all draws that matter are of (seed, step, row) anyway.
    own = f"random.{engine.process_group.rank}"
    generators = [name for name in found if name == own or name.startswith(f"{own}.")]
    with reading(path):
        for name in [*(f"data.{index}" for index in streams), *generators]:
            state[name] = placeholder(name, found)
    load(state, path, engine.process_group)
    engine.load_model_state(state["model"])
    engine.load_optimizer_state(state["optimizer"]["state"])
    if average is not None and not averaged:
        average.restart()
    with reading(path):
        if own in state:
            set_random_state(_in_tensors(value_of(state[own])))
        elif generators:
            set_random_state({name.removeprefix(f"{own}."): state[name] for name in generators})
        return {index: value_of(state[f"data.{index}"]) for index in streams}
