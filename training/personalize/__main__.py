"""Tune a reference to your own subject: only the numbers that stand for it change, the model stays as it is.

python -m training.personalize --weights kosmos-g.safetensors --sd stable-diffusion-v1-5 --images rex --noun dog \\
    --output rex.safetensors
python -m training.personalize --weights kosmos-g.safetensors --sd stable-diffusion-v1-5 --images dreambooth \\
    --subjects dreambench --output tuned
python -m training.personalize ... --resume        goes on where a signal or a crash stopped the same command
"""

from __future__ import annotations

import argparse
import math
import os
import re
import signal
import sys
from collections.abc import Sequence

from ..base.display import printable
from ..base.errors import ConfigError
from ..base.processes import join_process_group
from ..base.signals import StopSignal


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="python -m training.personalize", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    top.add_argument("--weights", required=True, help="Kosmos-G file of stage 2 or 3")
    top.add_argument("--sd", required=True, help="Stable Diffusion 1.5: diffusers folder or single file")
    top.add_argument(
        "--images",
        required=True,
        help="folder of the photographs, NAME.jpg, with NAME.mask.png and NAME.txt beside them if you like; with "
        "--subjects the folder that holds one such folder per subject",
    )
    top.add_argument("--output", required=True, help="the .safetensors file to write; with --subjects a folder")
    top.add_argument(
        "--noun", default="", help="what the subject is, such as dog; stands before the picture in prompts"
    )
    top.add_argument("--weight", type=float, default=1.0, help="of the subject in prompts, 0 to 2, as the file says it")
    top.add_argument("--subjects", help="several subjects: dreambench, or a YAML list as training.evaluate reads it")
    top.add_argument("--resume", action="store_true", help="go on where an earlier command was stopped")
    top.add_argument("--steps", type=int, default=20, help="most steps; the held-out photograph may end it earlier")
    top.add_argument("--rate", type=float, default=0.1, help="of learning, as a share of the embeddings' size")
    top.add_argument("--batch-size", type=int, default=4, help="draws of noise per step")
    top.add_argument("--judge-every", type=int, default=5, help="steps between two looks at the held-out photograph")
    top.add_argument("--patience", type=int, default=2, help="looks without a lower loss that end it")
    top.add_argument("--snr-bounds", type=float, nargs=2, metavar=("LOW", "HIGH"), help="as task.snr_bounds of stage 3")
    top.add_argument("--size", type=int, default=512, help="pixels of a side that Stable Diffusion paints")
    top.add_argument("--seed", type=int, default=0)
    top.add_argument("--precision", choices=("auto", "bf16", "fp16", "fp32"), default="auto")
    top.add_argument("--device", default="auto")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 when done, 1 when a file could not be written, 2 for wrong settings or photographs, and a
    shell's code for a signal that stopped it."""
    options = parser().parse_args(arguments)
    stop = StopSignal()
    try:
        _check(options)
        with join_process_group(options.device) as process_group:
            if process_group.world_size > 1:
                raise ConfigError("one process tunes a subject; start it without a launcher")
            done = _run(options, process_group, stop)
    except ValueError as error:  # a wrong option, file or folder; the message is the sentence to read
        print(printable(f"error: {error}"), file=sys.stderr)
        return 2
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported for wrong options
            raise
        said = f"{options.batch_size} draws of {options.size} x {options.size} pixels do not fit into the GPU's memory"
        print(f"error: --batch-size: {said}; give fewer, and more --steps for them.", file=sys.stderr)
        return 2
    except OSError as error:
        print(printable(f"error: {error.strerror if error.filename is None else error}"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped at once by a second Ctrl-C; --resume goes on from the last look.", file=sys.stderr)
        return 130
    if not done:
        kept = "what is done is kept; the same command with --resume goes on."
        print(f"Stopped by {stop.received}: {kept}", file=sys.stderr)
        return 128 + int(signal.Signals[stop.received])
    return 0


def _check(options: argparse.Namespace) -> None:
    """ConfigError names the first option whose value makes no sense."""
    for name in ("steps", "batch_size", "judge_every", "patience", "size"):
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')}: {getattr(options, name)} must be at least 1.")
    if options.size % 8:
        raise ConfigError(f"--size: {options.size} must be a multiple of 8, the autoencoder's factor.")
    if not 0 < options.rate < math.inf:
        raise ConfigError(f"--rate: {options.rate} must be a number above 0, such as 0.1.")
    if options.seed < 0:
        raise ConfigError(f"--seed: {options.seed} must be 0 or more.")
    bounds = options.snr_bounds
    if bounds is not None and not 0 < bounds[0] <= bounds[1] < math.inf:
        raise ConfigError(f"--snr-bounds: {bounds[0]:g} {bounds[1]:g} must be two numbers above 0, the lower first.")
    if options.subjects and options.noun:
        raise ConfigError(f"--noun: '{options.noun}', but the nouns are in --subjects; leave out one of them.")
    if mark := re.search(r"<i\d*>", options.noun):
        raise ConfigError(f"--noun: '{options.noun}' holds the mark {mark[0]}; give the word alone, such as dog.")


def _run(options: argparse.Namespace, process_group, stop: StopSignal) -> bool:
    from .several import tasks_of  # torch's and diffusers' imports take seconds: only once the options are right
    from .subject_run import Models, check_finished, check_outputs, tune_all
    from .tuning import TuningConfig

    def say(sentence: str) -> None:
        print(printable(sentence), flush=True)

    config = TuningConfig(
        options.steps,
        options.rate,
        options.batch_size,
        options.judge_every,
        options.patience,
        None if options.snr_bounds is None else tuple(options.snr_bounds),
        options.seed,
    )
    asked = tasks_of(options, say)
    tasks = check_outputs(asked, options.resume)
    finished = [task for task in asked if task.output.exists()]
    check_finished(finished, config, options.precision, options.weights)
    for task in finished:
        say(f"{task.output} is done already.")
    if not tasks or stop.received is not None:
        return not tasks
    models = Models.load(options.weights, options.sd, options.precision, process_group)
    return tune_all(tasks, models, config, stop, options.resume, say)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here downloads; without it a missing file means long retries
    sys.exit(main())
