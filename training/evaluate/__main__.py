"""Measure Kosmos-G as its paper does, and look at what is measured.

python -m training.evaluate dreambench --data dreambooth --weights kosmos-g.safetensors --sd stable-diffusion-v1-5 \\
    --protocol kosmosg --output results/dreambench
python -m training.evaluate coco --annotations captions_val2014.json --images val2014 --weights kosmos-g.safetensors \\
    --sd stable-diffusion-v1-5 --inception weights-inception-2015-12-05-6726825d.pth --output results/coco
python -m training.evaluate compare --weights lm.safetensors align.safetensors instruct.safetensors \\
    --sd stable-diffusion-v1-5 --prompts prompts.yaml --output results/compare
torchrun --nproc-per-node 8 -m training.evaluate dreambench ...     splits the prompts over eight GPUs
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ..base.display import printable
from ..base.errors import ConfigError, TrainingStopped
from ..base.processes import join_process_group
from ..base.signals import stoppable

MOST_STEPS = 1000
TIMEOUT = 7 * 24 * 3600  # seconds that a finished process waits for the others


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m training.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = top.add_subparsers(dest="command", required=True)
    bench = commands.add_parser("dreambench", help="subject-driven pictures: DINO, CLIP-I, CLIP-T, copies")
    bench.add_argument("--data", required=True, help="a clone of google/dreambooth, or one folder per subject")
    bench.add_argument("--protocol", required=True, choices=("kosmosg", "dreambooth"))
    bench.add_argument("--pairs", help="several subjects per picture: UNO's dreambench_multiip.json, or YAML of pairs")
    bench.add_argument("--subjects", help="YAML of your own subjects and prompts instead of DreamBench's")
    bench.add_argument("--tuned", help="folder of tuned references, SUBJECT.safetensors: a row beside the zero-shot")
    bench.add_argument("--only-subjects", nargs="+", metavar="NAME", help="these subjects alone")
    bench.add_argument("--copy-threshold", type=float, help="default: 95th percentile among the real pictures")
    coco = commands.add_parser("coco", help="FID of captioned pictures, beside Stable Diffusion's own")
    coco.add_argument("--annotations", required=True, help="captions_val2014.json")
    coco.add_argument("--images", required=True, help="the folder of all val2014 pictures")
    coco.add_argument("--captions", type=int, help="how many captions to sample; default 30,000")
    coco.add_argument("--rows", nargs="+", choices=("kosmosg", "sd15"), default=["kosmosg", "sd15"])
    coco.add_argument("--inception", help="torch-fidelity's Inception weights; default: torch's hub cache")
    coco.add_argument("--statistics", help="folder that keeps the real pictures' statistics; default: in --output")
    coco.add_argument("--extractor", default="inception-v3-compat", help="a feature extractor of torch-fidelity")
    coco.add_argument("--layer", default="2048", help="its layer")
    pages = commands.add_parser("compare", help="models side by side on one page")
    pages.add_argument("--prompts", required=True, help="YAML: a list of {prompt, images}")
    pages.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    for command in (bench, coco, pages):
        several = {"nargs": "+", "required": True} if command is pages else {}
        command.add_argument("--weights", help="Kosmos-G file (compare: several, or sd15)", **several)
        command.add_argument("--sd", help="Stable Diffusion 1.5: diffusers folder or single file")
        command.add_argument("--output", required=True, help="folder of pictures, records and results")
        command.add_argument("--resume", action="store_true", help="go on where an earlier run was stopped")
        command.add_argument("--scheduler", choices=("dpmsolver++", "ddim", "pndm"))
        command.add_argument("--steps", type=int)
        command.add_argument("--guidance", type=float)
        command.add_argument("--size", type=int, default=512, help="pixels of a side")
        command.add_argument("--batch-size", type=int, default=16 if command is coco else 4, help="pictures at once")
        command.add_argument(
            "--dtype", choices=("fp32", "fp16", "bf16"), default="fp32", help="of the models that generate"
        )
        command.add_argument("--device", default="auto")
    for command in (coco, pages):
        command.add_argument("--clip-tokenizer", help="folder with vocab.json, merges.txt: for sd15 from a single file")
    for command in (bench, coco):
        command.add_argument("--only", choices=("generate", "score"), help="one of the two steps alone")
    for command, dino, clip in ((bench, "facebook/dino-vits16", "openai/clip-vit-base-patch32"), (pages, None, None)):
        command.add_argument("--dino", default=dino, help="folder or cached name of DINO ViT-S/16")
        command.add_argument("--clip", default=clip, help="folder or cached name of CLIP ViT-B/32")
        command.add_argument("--scoring-dtype", choices=("fp32", "fp16", "bf16"), default="fp32")
    bench.add_argument("--threads", type=int, default=1, help="threads that read pictures while scoring")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 when done, 1 when it had to stop, 2 for a wrong command."""
    options = parser().parse_args(arguments)
    try:
        if getattr(options, "only", None) != "score":
            for name in ("weights", "sd"):
                if not getattr(options, name):
                    raise ConfigError(f"--{name} is needed to generate pictures (only --only score goes without)")
        for name in ("steps", "batch_size", "size", "captions", "threads"):
            if getattr(options, name, None) is not None and getattr(options, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')}: {getattr(options, name)} must be at least 1")
        if Path(options.output).is_file():
            raise ConfigError(f"--output: {options.output} is a file; choose a folder")
        if options.steps is not None and options.steps > MOST_STEPS:
            raise ConfigError(f"--steps: {options.steps}, but Stable Diffusion has {MOST_STEPS} steps of noise")
        if options.guidance is not None and not math.isfinite(options.guidance):
            raise ConfigError(f"--guidance: {options.guidance} must be a number, such as 6")
        with join_process_group(options.device, timeout=TIMEOUT) as process_group:
            _command(options.command)(options, process_group)
    except ValueError as error:  # a wrong option, file or folder; the message is the sentence to read
        print(printable(f"error: {error}"), file=sys.stderr)
        return 2
    except (TrainingStopped, OSError) as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 1
    return 0


def _command(name: str):
    """Imported late: `--help` and mistyped options need neither diffusers nor transformers."""
    if name == "dreambench":
        from .dreambench import run
    elif name == "coco":
        from .coco import run
    else:
        from .compare import run
    return run


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here downloads; without it a missing file means long retries
    sys.exit(stoppable(main, "what is painted and scored is kept; the same command with --resume goes on."))
