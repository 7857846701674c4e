"""Safe reading of fairseq checkpoints: tensors and plain values only, whatever else the pickle asks for."""

from __future__ import annotations

import os
import types
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..safetensors_file import WeightsError, read_header
from .strict_pickle import LARGEST_PICKLE, Allowed, Refused, StrictUnpickler

# Classes of these packages describe the training run; a stand-in keeps what they hold and does nothing.
DESCRIPTIVE_PACKAGES = (
    "argparse",
    "collections",
    "enum",
    "fairseq",
    "omegaconf",
    "pathlib",
    "torchscale",
    "typing",
    "unilm",
)
# What omegaconf notes as the type of an option.
DESCRIPTIVE_TYPES = ("bool", "bytes", "dict", "float", "int", "list", "object", "set", "str", "tuple")


class StandIn:
    """In the place of a class of the training program, or of its instances: keeps what it is given, does nothing."""

    __slots__ = ("fields",)

    def __init__(self) -> None:
        self.fields: dict[str, Any] = {}


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    """A tensor that is no larger than what is stored of it."""
    if not isinstance(storage, torch.storage.TypedStorage):
        raise Refused(f"it makes a tensor of a {type(storage).__name__}")
    made = torch._utils._rebuild_tensor(storage, offset, size, stride)
    if made.numel() > storage._size():
        raise Refused(f"it holds a tensor of {made.numel():,} numbers of which {storage._size():,} are stored")
    return made


ALLOWED = {
    ("_codecs", "encode"): Allowed(lambda text, *_: text.encode("latin1")),  # bytes, as protocol 2 stores them
    ("collections", "OrderedDict"): Allowed(lambda *_: {}),
    ("torch", "Size"): Allowed(lambda sizes=(): tuple(sizes)),
    ("torch._utils", "_rebuild_tensor"): Allowed(_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): Allowed(_tensor),
    ("torch._utils", "_rebuild_parameter"): Allowed(lambda tensor, *_: tensor),
}


class CheckpointUnpickler(StrictUnpickler):
    """Reads tensors and plain values; what describes the training run becomes a stand-in, all else is refused."""

    stored_bytes: int  # of the whole file

    def find_class(self, module: str, name: str) -> Any:
        """An `Allowed`, a number format or a stand-in."""
        if (module, name) in ALLOWED:
            return ALLOWED[module, name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if module.split(".")[0] in DESCRIPTIVE_PACKAGES or (module == "builtins" and name in DESCRIPTIVE_TYPES):
            return StandIn()
        return super().find_class(module, name)

    def call(self, target: Any, arguments: tuple) -> Any:
        return StandIn() if type(target) is StandIn else super().call(target, arguments)

    def set_state(self, instance: Any, state: Any) -> None:
        if type(instance) is StandIn:
            for part in state if type(state) is tuple else (state,):  # attributes, or those and the ones in slots
                if type(part) is dict:
                    instance.fields.update(part)
        elif type(instance) is not dict:  # torch hangs remarks on the dictionaries that hold weights
            super().set_state(instance, state)

    def set_items(self, target: Any, pairs: list[tuple[Any, Any]]) -> None:
        super().set_items(target.fields if type(target) is StandIn else target, pairs)

    def check_key(self, key: Any) -> None:
        if type(key) is not StandIn:
            super().check_key(key)

    def extend(self, target: Any, values: list[Any]) -> None:
        if type(target) is not StandIn:
            super().extend(target, values)

    def persistent(self, identifier: Any) -> Any:
        kind, *rest = identifier if type(identifier) is tuple else (None,)
        if kind not in ("storage", b"storage"):  # older releases of torch would compare source code with this machine's
            raise Refused(f"it refers to a {kind!r:.40}, where only tensors are stored")
        storage, numbers = rest[0], rest[3]
        if type(numbers) is not int or not 0 <= numbers * storage.dtype.itemsize <= self.stored_bytes:
            raise Refused(f"it holds a tensor of {numbers!r:.40} numbers in a file of {self.stored_bytes:,} bytes")
        return self.persistent_load(identifier)


def read_checkpoint(path: str | os.PathLike) -> tuple[dict[str, Tensor], int | None]:
    """State dict of a fairseq checkpoint, tensors memory-mapped where the file allows, and the language model's heads
    where the description of the run tells them.

    Raises WeightsError: missing, damaged, code in the pickle, no model inside.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path} is {'a folder' if path.is_dir() else 'missing'}; give the original's .pt file")
    if _is_safetensors(path):
        raise WeightsError(f"{path} is no PyTorch checkpoint but a safetensors file; load it without converting")
    content = _read(path)
    model = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(model, dict) or not any(isinstance(value, Tensor) for value in model.values()):
        raise WeightsError(
            f"{path} holds no model (expected a dictionary with the key 'model'); give checkpoint_final.pt, "
            "checkpoint_stage2.pt or checkpoint_stage1.pt of the original"
        )
    for name, value in model.items():
        if not isinstance(name, str) or not name.isprintable():
            raise WeightsError(f"{path} is damaged: one of its tensors is called {name!r:.40}, expected a name")
        if not isinstance(value, Tensor):
            raise WeightsError(f"{path} is damaged: its '{name}' is a {type(value).__name__}, expected a tensor")
    size, told = path.stat().st_size, sum(tensor.nbytes for tensor in model.values())
    if told > 2 * size:  # embeddings may stand there twice, sharing what is stored
        raise WeightsError(f"{path} is damaged: its tensors would take {told:,} bytes, the file has {size:,}")
    return model, next(filter(None, (_told_heads(content.get(key)) for key in ("cfg", "args"))), None)


def read_pickle(path: Path, unpickler: type[CheckpointUnpickler]) -> Any:
    """What torch.save wrote, as `unpickler` reads it; tensors are memory-mapped where the file allows.

    Raises Refused, or what pickle, zip and torch raise for a damaged file.
    """

    class Unpickler(unpickler):
        stored_bytes = path.stat().st_size

    # What torch.load needs of a pickle module.
    restricted = types.ModuleType("kosmos_core restricted pickle")
    restricted.Unpickler = Unpickler
    restricted.load = lambda file, **options: Unpickler(file, **options).load()
    mapped = _check_container(path)
    return torch.load(path, map_location="cpu", mmap=mapped, weights_only=False, pickle_module=restricted)


def _read(path: Path) -> Any:
    try:
        return read_pickle(path, CheckpointUnpickler)
    except Refused as error:
        raise WeightsError(
            f"{path} was not opened: {error}, which no Kosmos-G checkpoint contains. It may do harm when it is "
            "loaded; get the file from a source that you trust"
        ) from error
    except Exception as error:  # pickle, zip and torch each raise errors of their own
        reason = str(error).split("\n")[0].split(". ")[0] or "it ends too early"
        raise WeightsError(
            f"{path} cannot be read ({reason:.200}); it is damaged or no PyTorch checkpoint: give the original's .pt "
            "file"
        ) from error


def _check_container(path: Path) -> bool:
    """Whether the file is a zip archive, whose tensors can be mapped; older files are read whole.

    Raises ValueError where torch would do more than to read a pickle and tensors, or where a few bytes become many.
    """
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            if file.read(1) != b"\x80":
                raise ValueError("it begins like no file of torch.save")
        return False
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            name = entry.filename.rpartition("/")[2]
            if name == "constants.pkl":
                raise ValueError("it is a TorchScript program")
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"its part {entry.filename!r:.80} is compressed, which torch.save never does")
            if name == "data.pkl" and entry.file_size > LARGEST_PICKLE:
                raise ValueError(f"its description takes {entry.file_size:,} bytes")
    return True


def _is_safetensors(path: Path) -> bool:
    try:
        return bool(read_header(path).shapes)
    except WeightsError:
        return False


def _told_heads(description: Any) -> int | None:
    """Heads that a run's options tell, or those of its model, as an argparse or omegaconf object keeps them."""
    options = _fields(description)
    for place in (_fields(options.get("model")), options):
        heads = place.get("decoder_attention_heads")
        heads = heads.fields.get("_val") if type(heads) is StandIn else heads  # an omegaconf leaf
        if type(heads) is int:
            return heads
    return None


def _fields(value: Any) -> dict[str, Any]:
    found = value.fields if type(value) is StandIn else value
    found = found.get("_content", found) if isinstance(found, dict) else {}  # omegaconf keeps its entries there
    return found if isinstance(found, dict) else {}
