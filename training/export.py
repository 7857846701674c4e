"""Turn a run's checkpoint into the one-file weights that ComfyUI and `kosmos_core.load_model` read.

    python -m training.export runs/instruct kosmos-g.safetensors
    python -m training.export runs/instruct kosmos-g.safetensors --ema --dtype bfloat16 --step 20000
    python -m training.export runs/align kosmos-g.safetensors --half M
    python -m training.export runs/several kosmos-g.safetensors --model-card card.md
    python -m training.export runs/style style.safetensors --lora

A run with trainable.lora is exported merged, or with --lora as its low-rank additions alone: a file that ComfyUI's Load
LoRA applies, by its strength, to the CLIP of Load Kosmos-G.

The file carries the model's sizes, its tokenizer and where it came from: configuration, steps, data, git commit and
library versions.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from kosmos_core import KosmosG, KosmosGConfig, Tokenizer
from kosmos_core.atomic import write_file
from kosmos_core.safetensors_file import write
from kosmos_core.weights import save_weights

from .base.display import printable
from .base.errors import CheckpointError
from .base.signals import stoppable
from .base.yaml_text import load_yaml
from .engine.trainable import comfyui_lora, empty_additions, low_rank_layers, merge, stored_names
from .weights.fp8 import unbiased_fp8
from .weights.model_card import model_card, refuse_other_file
from .weights.provenance import TOKENIZER_FILES, TOKENIZER_FOLDER

FP8 = "float8_e4m3fn"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, FP8: None}


def narrowed(name: str, tensor: torch.Tensor, unbiased: bool = False) -> torch.Tensor:
    """A tensor of an fp8 file: the blocks' matrices, which are most and bear it, are fp8, all else is fp16."""
    if ".blocks." not in name or tensor.ndim < 2:
        return tensor.to(torch.float16)
    return unbiased_fp8(name, tensor) if unbiased else tensor.to(torch.float8_e4m3fn)


def _damaged(run_folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{run_folder} is no run folder that a training left ({type(error).__name__}: {' '.join(str(error).split())}); "
        f"copy config.yaml, starts.jsonl and tokenizer/ anew."
    )


def export(
    run_folder: str | Path,
    output: str | Path,
    *,
    ema: bool = False,
    step: int | None = None,
    dtype: str = "float32",
    half: str = "MN",
    lora: bool = False,
    unbiased: bool = False,
) -> dict[str, Any]:
    """Write the weights of a run's checkpoint to `output`, atomically; returns the provenance stored in the file.

    Args:
        ema: the moving average of the trained weights instead of their last values.
        step: which checkpoint; None takes the latest.
        dtype: float32, bfloat16, float16, or float8_e4m3fn: the blocks' matrices in fp8, the rest in float16.
        lora: the low-rank additions of a run with trainable.lora alone, as a LoRA file.
        half: M leaves out AlignerNet's training half, which stage 2 needs and nothing else; MN keeps what there is.
        unbiased: round to fp8 up or down by chance, so that weights that were fp8 before keep what they learned since.
    Raises:
        CheckpointError: there is no such run, checkpoint or moving average, one of its files cannot be read, or two
            of the arguments do not go together.
    """
    from .engine.checkpoint import latest_checkpoint  # late: torch's checkpoints take long to load
    from .engine.checkpoint_reader import load, read_progress, stored

    if unbiased and dtype != FP8:
        raise CheckpointError(f"--unbiased: rounds to {FP8}, and --dtype is {dtype}; leave it out.")
    if lora and DTYPES[dtype] is None:
        raise CheckpointError(f"--dtype: {dtype} is for whole weights, not for --lora's; choose bfloat16 or float16.")
    run_folder, output = Path(run_folder), Path(output)
    try:
        config = load_yaml((run_folder / "config.yaml").read_text())
        starts = [json.loads(line) for line in (run_folder / "starts.jsonl").read_text().splitlines()]
    except OSError as error:
        raise CheckpointError(
            f"{run_folder} is no run folder ({error.strerror}: {error.filename}); give the --run_folder of a training, "
            f"which holds config.yaml, starts.jsonl and checkpoints."
        ) from None
    except (ValueError, RecursionError) as error:
        raise _damaged(run_folder, error) from error
    folder = run_folder / "checkpoints"
    path = latest_checkpoint(folder) if step is None else folder / f"step-{step:08d}"
    if path is None or not path.is_dir():
        found = ", ".join(sorted(p.name for p in folder.glob("step-*[0-9]"))) or "none"
        raise CheckpointError(
            f"{folder} has no checkpoint{'' if step is None else f' of step {step}'}; found: {found}."
        )
    step = read_progress(path)["step"]
    try:
        sizes = KosmosGConfig.from_dict(config["model"])
        provenance = {
            "stage": str(config["stage"]),
            "step": step,
            "weights": "moving average" if ema else "last",
            "data": sorted((config.get("data") or {}).get("sources") or {}),
            "config": config,
            "git": starts[-1]["git"],
            "versions": starts[-1]["versions"],
            "starts": len(starts),
        }
        files = [run_folder / TOKENIZER_FOLDER / name for name in TOKENIZER_FILES]
        tokenizer = Tokenizer.from_files(*files, latents=sizes.resampler.latents) if files[0].is_file() else None
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise _damaged(run_folder, error) from error
    if (half == "M" or lora) and sizes.aligner:  # ComfyUI loads no training half that a LoRA could be added to
        sizes = replace(sizes, aligner=replace(sizes.aligner, reconstruction=False))
    with torch.device("meta"):
        names = KosmosG(sizes).state_dict()
    found = stored(path)
    prefix = "model."
    own = {name.removeprefix(prefix): shape for name, shape in found.items() if name.startswith(prefix)}
    places = stored_names(names, own)
    layers = [layer for layer in low_rank_layers(own) if f"{layer}.weight" in names]
    if lora and not layers:
        raise CheckpointError(
            f"--lora: {path} holds no low-rank additions; train with trainable.lora above 0, or leave it out."
        )
    if different := [name for name, tensor in names.items() if own.get(places[name]) != tuple(tensor.shape)]:
        raise CheckpointError(
            f"{path} is of another model than {run_folder / 'config.yaml'} describes: {different[0]} and "
            f"{len(different) - 1} other tensors differ; give the run folder as the training left it."
        )
    weights = {name: torch.empty_like(tensor, device="cpu") for name, tensor in names.items()}
    wanted = {} if lora else {places[name]: tensor for name, tensor in weights.items()}
    wanted |= (additions := empty_additions(layers, own.__getitem__))
    averaged = {name: tensor for name, tensor in wanted.items() if ema and f"average.{name}" in found}
    if ema and not averaged:
        raise CheckpointError(f"--ema: {path} holds no moving average; train with optim.ema above 0, or leave it out.")
    plain = {name: tensor for name, tensor in wanted.items() if name not in averaged}
    load({"model": plain, "average": averaged}, path)
    if lora:
        entries = [(name, tensor, DTYPES[dtype]) for name, tensor in comfyui_lora(layers, additions).items()]
        write(output, entries, {"format": "pt", "provenance": json.dumps(provenance, default=str)})
        return provenance
    merge(weights, layers, additions)
    if dtype == FP8:
        weights = {name: narrowed(name, tensor, unbiased) for name, tensor in weights.items()}
    save_weights(
        output, weights, sizes, tokenizer, stage=provenance["stage"], provenance=provenance, dtype=DTYPES[dtype]
    )
    return provenance


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser("python -m training.export", description=__doc__.split("\n\n")[0])
    parser.add_argument("run_folder", metavar="RUN", help="the run folder of a training")
    parser.add_argument("output", metavar="FILE", help="the .safetensors file to write")
    parser.add_argument("--ema", action="store_true", help="the moving average instead of the last weights")
    parser.add_argument("--step", type=int, help="the step of the checkpoint; default: the latest")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="number format of the file")
    parser.add_argument(
        "--unbiased", action="store_true", help="of fp8, for weights that were fp8 before this training"
    )
    parser.add_argument("--lora", action="store_true", help="the low-rank additions alone, for ComfyUI's Load LoRA")
    parser.add_argument("--half", choices=("M", "MN"), default="MN", help="M leaves out AlignerNet's training half")
    parser.add_argument("--model-card", type=Path, metavar="CARD", help="also write a card of the weights, Markdown")
    options = vars(parser.parse_args(arguments))
    card, options = options.pop("model_card"), argparse.Namespace(**options)
    try:
        if card and options.lora:
            raise CheckpointError(f"--model-card: {card} would describe whole weights, not --lora's; leave one out.")
        if card:
            refuse_other_file(card, options.output)
        provenance = export(**vars(options))
        if card:
            write_file(card, model_card(Path(options.output), Path(options.run_folder), provenance))
    except (CheckpointError, OSError) as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 1
    size = options.output and Path(options.output).stat().st_size / 1e6
    print(f"{options.output}: {provenance['stage']}, step {provenance['step']}, {size:.1f} MB")
    if card:
        print(f"{card}: the model card; complete its licence and its second paragraph before you publish it")
    return 0


if __name__ == "__main__":
    sys.exit(stoppable(main, "the file is as it was before."))
