"""The tensors of a Stable Diffusion `.ckpt` (a pickle), whatever a training program has put beside them.

Trainers such as Lightning store callbacks, optimisers and settings as objects of their own classes. Each becomes a
stand-in that does nothing: no class is looked up and no function called but those that make tensors and plain values.
"""

from __future__ import annotations

import re
import sys
from _compat_pickle import IMPORT_MAPPING
from pathlib import Path
from typing import Any

from torch import Tensor

from ..original.pickle_reader import CheckpointUnpickler, StandIn, read_pickle
from ..original.strict_pickle import PLAIN_KEYS, Refused
from ..safetensors_file import WeightsError

PLACES = ("state_dict", "model", "module")  # where programs put the weights, if not at the top
# Modules of Python itself whose objects describe a run. Whatever asks for another of them means harm.
DESCRIPTIVE = {"builtins", "copyreg", "datetime", "decimal", "fractions", "functools", "uuid"}
CODE = {"__import__", "breakpoint", "compile", "eval", "exec", "input", "open"}


class _Unpickler(CheckpointUnpickler):
    def find_class(self, module: str, name: str) -> Any:
        module = IMPORT_MAPPING.get(module, module)  # torch.save gives modules the names that they had in Python 2
        package = module.split(".")[0]
        if package in sys.stdlib_module_names - DESCRIPTIVE or (package == "builtins" and name in CODE):
            return super().find_class(module, name)
        try:
            return super().find_class(module, name)
        except Refused:
            return StandIn()

    def set_state(self, instance: Any, state: Any) -> None:
        if type(instance) is StandIn:
            super().set_state(instance, state)

    def set_items(self, target: Any, pairs: list[tuple[Any, Any]]) -> None:
        # No weight has another kind of key, and hashing some kinds takes forever.
        super().set_items(target, [(key, value) for key, value in pairs if isinstance(key, (*PLAIN_KEYS, StandIn))])


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, memory-mapped where the file allows; nothing of the file is executed.

    Raises WeightsError, in one sentence, where the file is damaged, asks for harm or holds no tensors.
    """
    try:
        content = read_pickle(path, _Unpickler)
    except Exception as error:  # pickle, zip and torch each raise errors of their own
        reason = first_line(error) or "it ends too early"
        raise WeightsError(
            f"{path} cannot be read as a checkpoint ({reason:.200}); give the .safetensors form of the model"
        ) from error
    content = content if isinstance(content, dict) else {}
    for place in (*(content.get(name) for name in PLACES), content):
        if isinstance(place, dict):
            found = {name: value for name, value in place.items() if isinstance(name, str)}
            found = {name: value for name, value in found.items() if isinstance(value, Tensor)}
            if found:
                break
    else:
        raise WeightsError(f"{path} holds no weights; give a checkpoint of the Stable Diffusion 1.x family")
    size, told = path.stat().st_size, sum(tensor.nbytes for tensor in found.values())
    if told > 2 * size:  # tensors may share what is stored, but not without end
        raise WeightsError(f"{path} is damaged: its tensors would take {told:,} bytes, the file has {size:,}")
    return found


def first_line(error: BaseException) -> str:
    """What another library says in its first line, without colours; the rest is often a page of names."""
    return re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().split("\n")[0]
