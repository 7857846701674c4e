"""Average weight files of one layout, tensor by tensor: what a training forgot comes back from the weights before it.

    python -m training.average align.safetensors instruct.safetensors --weights 0.75 0.25 --output mean.safetensors

For Kosmos-G files of the same sizes and tokenizer, and for any others whose tensors have the same names and shapes.
Metadata and number formats are the first file's; what was averaged is told in the metadata.
Weight averaging along a fine-tuning: arXiv 2109.01903.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import safetensors
import torch

from kosmos_core.safetensors_file import DTYPES, Header, WeightsError, read_header, write

from .base.display import printable
from .base.errors import ConfigError
from .base.signals import stoppable
from .weights.warm_start import FREE_SIZES

FORMATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def average(
    files: Sequence[str | Path], output: str | Path, weights: Sequence[float] | None = None, dtype: str | None = None
) -> None:
    """Write the weighted mean of several safetensors files to `output`, atomically.

    Floating-point tensors are averaged in float64; all others, such as a tokenizer's bytes, have to be equal.

    Args:
        weights: of the files, 1 together; None takes the same for each. Beyond 0 and 1 it extrapolates.
        dtype: float32, bfloat16 or float16 for what is averaged; None takes the first file's formats.
    Raises:
        ConfigError: the files or weights do not fit together.
        WeightsError: a file cannot be read.
        OSError: the output cannot be written.
    """
    paths, output = [Path(file) for file in files], Path(output)
    shares = _shares(len(paths), weights)
    if output.exists() and any(path.exists() and path.samefile(output) for path in paths):
        raise ConfigError(f"--output: {output} is one of the files to average; give another name.")
    headers = [read_header(path) for path in paths]
    for path, header in zip(paths[1:], headers[1:], strict=True):
        _compare(paths[0], headers[0], path, header)
    try:
        with ExitStack() as opened:
            read = [opened.enter_context(safetensors.safe_open(path, framework="pt")) for path in paths]
            entries = []
            for name, kind in headers[0].dtypes.items():
                found = [file.get_tensor(name) for file in read]
                if not DTYPES[kind].is_floating_point:
                    if different := [p for p, tensor in zip(paths, found, strict=True) if not tensor.equal(found[0])]:
                        raise ConfigError(_other(paths[0], different[0], f"{name}, which holds no weights, differs"))
                    entries.append((name, found[0], found[0].dtype))
                    continue
                mean = sum(share * tensor.double() for share, tensor in zip(shares, found, strict=True))
                entries.append((name, mean.float(), FORMATS[dtype] if dtype else found[0].dtype))
            write(output, entries, _metadata(headers[0], paths, shares, dtype))
    except safetensors.SafetensorError as error:
        raise WeightsError(f"{' or '.join(map(str, paths))} is damaged ({error}); copy it again") from error


def _shares(count: int, weights: Sequence[float] | None) -> list[float]:
    if count < 2:
        raise ConfigError(f"FILE: {count} given; name at least two files to average.")
    if weights is None:
        return [1 / count] * count
    told = " ".join(f"{weight:g}" for weight in weights)
    if len(weights) != count:
        raise ConfigError(f"--weights: {told} for {count} files; give one for each.")
    if not math.isclose(total := sum(weights), 1, abs_tol=1e-6):
        raise ConfigError(f"--weights: {told} are {total:g} together; they must be 1.")
    return list(weights)


def _other(first: Path, path: Path, difference: str) -> str:
    return f"{path} is of another layout than {first}: {difference}; only weights of one layout have a mean."


def _compare(first: Path, header: Header, path: Path, other: Header) -> None:
    """ConfigError where two files do not hold the same tensors of the same model."""
    if unknown := sorted(kind for kind in {*header.dtypes.values(), *other.dtypes.values()} if kind not in DTYPES):
        raise ConfigError(
            f"{path} and {first} hold numbers of format {unknown[0]}; expected one of {', '.join(DTYPES)}."
        )
    if different := sorted(header.shapes.keys() ^ other.shapes.keys()):
        where = path if different[0] in other.shapes else first
        raise ConfigError(_other(first, path, f"only {where} has {different[0]}, one of {len(different)} tensors"))
    for name, shape in header.shapes.items():
        if other.shapes[name] != shape:
            raise ConfigError(_other(first, path, f"{name} is {other.shapes[name]} and not {shape}"))
        if DTYPES[header.dtypes[name]].is_floating_point != DTYPES[other.dtypes[name]].is_floating_point:
            raise ConfigError(_other(first, path, f"{name} is {other.dtypes[name]} and not {header.dtypes[name]}"))
    sizes, others = _sizes(header), _sizes(other)
    for size in sizes.keys() | others.keys():
        if size not in FREE_SIZES and sizes.get(size) != others.get(size):
            raise ConfigError(_other(first, path, f"its {size} is {others.get(size)} and not {sizes.get(size)}"))


def _sizes(header: Header) -> dict[str, Any]:
    """The sizes that a Kosmos-G file tells, such as decoder.heads; of other files their kind alone."""
    try:
        parts = json.loads(header.metadata["config"])
        return {f"{part}.{name}": size for part, sizes in parts.items() for name, size in (sizes or {}).items()}
    except (KeyError, ValueError, AttributeError, RecursionError):
        return {"format": header.metadata.get("format")}


def _metadata(header: Header, paths: list[Path], shares: list[float], dtype: str | None) -> dict[str, str]:
    """The first file's metadata with what was averaged; in a Kosmos-G file inside of its provenance."""
    told = [{"file": path.name, "weight": share} for path, share in zip(paths, shares, strict=True)]
    metadata = dict(header.metadata)
    if dtype and "dtype" in metadata:
        metadata["dtype"] = dtype
    try:
        provenance = json.loads(metadata["provenance"])
        return metadata | {"provenance": json.dumps({**provenance, "average": told})}
    except (KeyError, ValueError, TypeError, RecursionError):
        return metadata | {"average": json.dumps(told)}


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code: 1 where a file cannot be read or written, 2 where they do not fit."""
    parser = argparse.ArgumentParser("python -m training.average", description=__doc__.split("\n\n")[0])
    parser.add_argument("files", nargs="+", metavar="FILE", help="safetensors files of one layout")
    parser.add_argument("--weights", nargs="+", type=float, metavar="W", help="one for each file, 1 together")
    parser.add_argument("--output", required=True, metavar="FILE", help="the .safetensors file to write")
    parser.add_argument("--dtype", choices=FORMATS, help="number format; default: that of the first file")
    options = parser.parse_args(arguments)
    try:
        average(**vars(options))
    except ConfigError as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 2
    except (WeightsError, OSError) as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 1
    print(f"{options.output}: mean of {len(options.files)} files, {Path(options.output).stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(stoppable(main, "the file is as it was before."))
