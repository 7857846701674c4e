"""Convert a checkpoint of the original implementation into a one-file Kosmos-G model.

    python -m kosmos_core.convert checkpoint_final.pt kosmos-g.safetensors --dict dict.txt --spm sentencepiece.bpe.model

Reads checkpoint_final.pt, checkpoint_stage2.pt and checkpoint_stage1.pt; never changes them. `--dry-run` only reports.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import KosmosGConfig
from ..model import KosmosG
from ..safetensors_file import WeightsError
from ..tokenizer import Tokenizer
from ..weights import save_weights
from .pickle_reader import read_checkpoint
from .tensor_names import deduce_config, ignored_reason, new_name

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Conversion:
    """What a checkpoint becomes: weights under their new names (still mapped), config, stage, what was left out."""

    weights: dict[str, Tensor]
    config: KosmosGConfig
    stage: str
    ignored: Counter[str]
    assumed: tuple[str, ...] = ()  # head counts that neither the checkpoint nor an override told

    def report(self) -> str:
        """What was read, what was left out and why, for people."""
        total = sum(tensor.numel() for tensor in self.weights.values())
        lines = [f"read      {len(self.weights):>5} tensors, {total / 1e6:,.1f} M parameters, stage {self.stage}"]
        lines += [f"ignored   {count:>5} tensors: {reason}" for reason, count in self.ignored.most_common()]
        lines.append("missing       0 tensors")
        if self.assumed:
            lines.append(f"assumed   {', '.join(self.assumed)}; if built otherwise: --override PART.heads=N")
        return "\n".join(lines)


def read_original(
    path: str | os.PathLike, *, half: str | None = None, overrides: dict[str, int] | None = None
) -> Conversion:
    """Map an original checkpoint; `half` "M" drops AlignerNet's training half, "MN" insists on it, None keeps what
    is there; `overrides` are sizes such as {"vision.heads": 2} that the tensors cannot tell.

    Raises WeightsError where tensors are missing, unknown or of the wrong shape.
    """
    state, told_heads = read_checkpoint(path)
    has_training_half = "aligner.decoder_query" in state
    if half == "MN" and not has_training_half:
        raise WeightsError(f"{path} has no training half of AlignerNet (a final file never has); leave out --half MN")
    training_half = has_training_half and half != "M"
    weights: dict[str, Tensor] = {}
    ignored: Counter[str] = Counter()
    unknown = []
    for name, tensor in state.items():
        if reason := ignored_reason(name, training_half=training_half):
            ignored[reason] += 1
        elif target := new_name(name):
            weights[target] = (
                tensor[None] if target == "vision.class_embedding.weight" else tensor
            )  # a table of one row
        else:
            unknown.append(name)
    if unknown:
        shown = ", ".join(unknown[:10]) + (", ..." if len(unknown) > 10 else "")
        ignored[f"not part of the original: {shown}"] = len(unknown)
    deduced = deduce_config(state, told_heads, training_half=training_half)
    config = _override(deduced, overrides or {})
    _check(path, weights, config)
    assumed = tuple(
        f"{part}.heads {getattr(config, part).heads}"
        for part in ("vision", "decoder", "aligner")
        if getattr(config, part) and f"{part}.heads" not in (overrides or {}) and not (part == "decoder" and told_heads)
    )
    stage = "lm" if config.aligner is None else "align" if has_training_half else "instruct"
    return Conversion(weights, config, stage, ignored, assumed)


def _override(config: KosmosGConfig, overrides: dict[str, int]) -> KosmosGConfig:
    changed = config.to_dict()
    for key, value in overrides.items():
        part, _, size = key.partition(".")
        if not isinstance(changed.get(part), dict) or size not in changed[part]:
            known = [f"{part}.{size}" for part, sizes in changed.items() if sizes for size in sizes]
            raise WeightsError(f"--override {key}={value}: there is no size '{key}'; known are {', '.join(known)}")
        changed[part][size] = value
    if "decoder.heads" in overrides and "resampler.heads" not in overrides:
        changed["resampler"]["heads"] = overrides["decoder.heads"]
    return KosmosGConfig.from_dict(changed)


def _check(path: Any, weights: dict[str, Tensor], config: KosmosGConfig) -> None:
    with torch.device("meta"):
        expected = KosmosG(config).state_dict()
    missing = sorted(expected.keys() - weights.keys())
    if missing:
        raise WeightsError(f"{path} lacks {len(missing)} tensors, among them {', '.join(missing[:10])}; copy it again")
    for name, tensor in weights.items():
        if name not in expected or tensor.shape != expected[name].shape:
            wanted = tuple(expected[name].shape) if name in expected else "no such tensor"
            raise WeightsError(f"{path}: {name} has shape {tuple(tensor.shape)}, expected {wanted}")


def convert(
    source: str | os.PathLike,
    target: str | os.PathLike,
    *,
    spm: str | None = None,
    dictionary: str | None = None,
    half: str | None = None,
    dtype: torch.dtype | None = None,
    overrides: dict[str, int] | None = None,
    dry_run: bool = False,
) -> Conversion:
    """Write `source` as a one-file model to `target`, atomically; raises WeightsError or OSError.

    Without `spm` and `dictionary` the file loads, but cannot encode strings. `dry_run` checks all and writes nothing.
    """
    if (spm is None) != (dictionary is None):
        raise WeightsError("give both --spm and --dict (they belong together), or neither")
    if Path(target).resolve() == Path(source).resolve():
        raise WeightsError(f"{target} is the source itself; give another name for the converted file")
    for option, path in (("--spm", spm), ("--dict", dictionary)):
        if path is not None and not Path(path).is_file():
            raise WeightsError(f"{option} {path}: there is no such file; it lies in the original's data folder")
    conversion = read_original(source, half=half, overrides=overrides)
    config = conversion.config
    tokenizer = Tokenizer.from_files(spm, dictionary, latents=config.resampler.latents) if spm else None
    if tokenizer is not None and tokenizer.vocabulary != config.decoder.vocabulary:
        raise WeightsError(
            f"{dictionary} makes a vocabulary of {tokenizer.vocabulary}, the checkpoint has "
            f"{config.decoder.vocabulary}; give the dict.txt that it was trained with"
        )
    if not dry_run:
        provenance = {"converted_from": Path(source).name}
        save_weights(
            target, conversion.weights, config, tokenizer, stage=conversion.stage, provenance=provenance, dtype=dtype
        )
    return conversion


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m kosmos_core.convert", description=__doc__.split("\n")[0])
    parser.add_argument("source", help="the original's checkpoint (.pt); it is never changed")
    parser.add_argument("target", help="the one-file model to write (.safetensors)")
    parser.add_argument("--spm", help="sentencepiece.bpe.model; without it the file cannot encode strings")
    parser.add_argument("--dict", dest="dictionary", help="dict.txt that belongs to it")
    parser.add_argument("--dtype", choices=DTYPES, help="type on disk; default: as in the checkpoint")
    parser.add_argument("--half", choices=("M", "MN"), help="drop (M) or insist on (MN) AlignerNet's training half")
    parser.add_argument(
        "--override",
        action="append",
        default=[],
        metavar="PART.SIZE=N",
        help="a size that the tensors cannot tell, such as vision.heads=2",
    )
    parser.add_argument("--dry-run", action="store_true", help="report only, write nothing")
    options = parser.parse_args(arguments)
    try:
        overrides = dict(_parse_override(entry) for entry in options.override)
        conversion = convert(
            options.source,
            options.target,
            spm=options.spm,
            dictionary=options.dictionary,
            half=options.half,
            dtype=DTYPES.get(options.dtype),
            overrides=overrides,
            dry_run=options.dry_run,
        )
    except (ValueError, OSError) as error:
        print(f"not converted: {error}", file=sys.stderr)
        return 1
    print(conversion.report())
    print("nothing written (--dry-run)" if options.dry_run else f"written   {options.target}")
    if not options.spm and not options.dry_run:
        print("without --spm and --dict this file cannot encode strings, only token ids")
    return 0


def _parse_override(entry: str) -> tuple[str, int]:
    key, _, value = entry.partition("=")
    if not value.isdecimal():
        raise WeightsError(f"--override {entry}: expected PART.SIZE=NUMBER, such as vision.heads=2")
    return key, int(value)


if __name__ == "__main__":
    sys.exit(main())
