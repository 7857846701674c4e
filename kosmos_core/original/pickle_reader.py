"""Safe reading of fairseq checkpoints: tensors and plain values only, whatever else the pickle asks for."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from ..safetensors_file import WeightsError, read_header

# Classes of these packages describe the training run; they are replaced by stubs that keep values and do nothing.
DESCRIPTIVE_PACKAGES = ("argparse", "omegaconf", "fairseq", "unilm", "torchscale", "enum", "typing", "pathlib")

ALLOWED = {
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): lambda *_: OrderedDict(),
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch", "Size"): torch.Size,
    **{("builtins", kind.__name__): kind for kind in (int, float, str, bool, list, dict, tuple, set)},
}


class StubObject:
    """Stand-in for an object of the training program: it keeps what it was given and runs nothing."""

    def __init__(self, *values: Any, **named: Any) -> None:
        self.__dict__.update(named)
        self.values = values

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {"values": state})

    def __setitem__(self, key: Any, value: Any) -> None:
        self.__dict__[str(key)] = value

    def append(self, value: Any) -> None:
        """Pickle fills list-like objects through this."""
        self.values = (*self.values, value)

    def extend(self, values: Any) -> None:
        """Pickle fills list-like objects through this."""
        self.values = (*self.values, *values)


class _Refused(pickle.UnpicklingError):
    """The pickle names something that is neither a tensor, a plain value nor a description of the run."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in ALLOWED:
            return ALLOWED[module, name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if module.split(".")[0] in DESCRIPTIVE_PACKAGES:
            return type(name.rsplit(".", 1)[-1], (StubObject,), {})
        raise _Refused(f"it asks for {module}.{name}")


class _RestrictedPickle:
    """What torch.load needs of a pickle module, with the restricted unpickler in both places."""

    __name__ = "kosmos_core restricted pickle"
    Unpickler = _Unpickler
    UnpicklingError = pickle.UnpicklingError

    @staticmethod
    def load(file: Any, **options: Any) -> Any:
        return _Unpickler(file, **options).load()


def read_checkpoint(path: str | os.PathLike) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """State dict and run description of a fairseq checkpoint, tensors memory-mapped where the file allows.

    torch's own safe loader is tried first; files that hold Namespace or omegaconf objects go through an allow-list.
    Raises WeightsError: missing, damaged, code in the pickle, no model inside.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path} is {'a folder' if path.is_dir() else 'missing'}; give the original's .pt file")
    if _is_safetensors(path):
        raise WeightsError(f"{path} is no PyTorch checkpoint but a safetensors file; load it without converting")
    mapped = zipfile.is_zipfile(path)  # only the zip form can be mapped; older files are read whole
    try:
        content = torch.load(path, map_location="cpu", mmap=mapped, weights_only=True)
    except pickle.UnpicklingError:
        content = _read_with_allow_list(path, mapped)
    except Exception as error:  # pickle, zip and torch each raise errors of their own
        raise WeightsError(_damaged(path, error)) from error
    model = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(model, dict) or not any(isinstance(value, torch.Tensor) for value in model.values()):
        raise WeightsError(
            f"{path} holds no model (expected a dictionary with the key 'model'); give checkpoint_final.pt, "
            "checkpoint_stage2.pt or checkpoint_stage1.pt of the original"
        )
    for name, value in model.items():
        if not isinstance(value, torch.Tensor):
            raise WeightsError(f"{path} is damaged: its '{name}' is a {type(value).__name__}, expected a tensor")
    descriptions = (_plain(content.get("cfg")), _plain(content.get("args")))
    return model, next((found for found in descriptions if found and isinstance(found, dict)), {})


def _read_with_allow_list(path: Path, mapped: bool) -> Any:
    try:
        return torch.load(path, map_location="cpu", mmap=mapped, weights_only=False, pickle_module=_RestrictedPickle)
    except _Refused as error:
        raise WeightsError(
            f"{path} was not opened: {error}, which no Kosmos-G checkpoint contains. It may run code when it is "
            "loaded; get the file from a source that you trust"
        ) from error
    except Exception as error:  # pickle, zip and torch each raise errors of their own
        raise WeightsError(_damaged(path, error)) from error


def _is_safetensors(path: Path) -> bool:
    try:
        return bool(read_header(path).shapes)
    except WeightsError:
        return False


def _damaged(path: Path, error: Exception) -> str:
    reason = str(error).split("\n")[0].split(". ")[0] or "it ends too early"
    return f"{path} cannot be read ({reason}); it is damaged or no PyTorch checkpoint: give the original's .pt file"


def _plain(value: Any) -> Any:
    """Stubs and their attributes as nested dictionaries."""
    if isinstance(value, StubObject):
        value = value.__dict__.get("_content", value.__dict__)  # omegaconf keeps its entries there
    if isinstance(value, StubObject):
        return _plain(value)
    if isinstance(value, dict):
        if set(value) >= {"_val"}:  # an omegaconf leaf
            return _plain(value["_val"])
        return {str(key): _plain(entry) for key, entry in value.items()}
    return value
