"""Subjects one after the other: from photographs to reference files, stopped and gone on with at any step."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from kosmos_core import KosmosG, load_model
from kosmos_core.diffusers.stable_diffusion import StableDiffusion
from kosmos_core.reference import LARGEST_EMBEDDING, Encoded, Reference, model_fingerprint, save_reference
from kosmos_core.safetensors_file import WeightsError, read_header

from ..base.content_digest import content_digest, files_below
from ..base.display import duration
from ..base.errors import ConfigError
from ..base.precision import DTYPES, Choice, Precision, choose_precision
from ..base.processes import ProcessGroup
from ..base.signals import StopSignal
from . import unfinished
from .photographs import Photograph, held_out
from .tuning import JUDGED, Tuning, TuningConfig, laid_out

Say = Callable[[str], None]


@dataclass(frozen=True)
class SubjectTask:
    """A subject to tune: what it is called, its noun and weight in prompts, its photographs, and the file to write."""

    name: str
    noun: str
    weight: float
    photographs: list[Photograph]
    output: Path


@dataclass
class Models:
    """What stays frozen, and the digests that it is known by."""

    encoder: KosmosG
    unet: nn.Module
    vae: nn.Module
    scheduler: Any
    precision: Precision
    choice: Choice  # what was asked for
    fingerprint: str
    diffusion: str

    @classmethod
    def load(cls, weights: str, sd: str, choice: Choice, process_group: ProcessGroup) -> Models:
        """WeightsError, which begins with the option, where a file is missing or of another kind."""
        device = process_group.device
        precision = choose_precision(choice, device)
        diffusion = StableDiffusion(sd, DTYPES[precision], device, option="--sd")
        try:
            # A CPU computes float32 weights under autocast; a GPU's memory is for activations.
            dtype = DTYPES["fp32" if device.type == "cpu" else precision]
            encoder = load_model(weights, device, dtype, training_half=False)
            fingerprint = model_fingerprint(weights, whole=True)
        except (WeightsError, OSError) as error:
            raise WeightsError(f"--weights: {error}") from error
        if encoder.config.aligner is None:
            raise WeightsError(
                f"--weights: {weights} was trained up to the first stage only (no AlignerNet) and gives no condition; "
                "give a file of stage 2 or 3."
            )
        if encoder.tokenizer is None:
            raise WeightsError(f"--weights: {weights} carries no tokenizer; export or convert it with its tokenizer.")
        unet = diffusion.unet(encoder.config.aligner.width)
        return cls(
            encoder,
            unet,
            diffusion.vae(),
            diffusion.scheduler(),
            precision,
            choice,
            fingerprint,
            content_digest(*files_below(diffusion.path)),
        )


def check_outputs(tasks: list[SubjectTask], resume: bool) -> list[SubjectTask]:
    """The subjects that are left to do, before a model is read.

    ConfigError where a file is there already, or a stopped tuning of it, and `resume` does not say to go on, and where
    none can be written.
    """
    for task in tasks:
        if not task.output.parent.is_dir():
            raise ConfigError(f"--output: there is no folder {task.output.parent}; make it first.")
        try:
            with tempfile.TemporaryFile(dir=task.output.parent):
                pass
        except OSError as error:
            raise ConfigError(
                f"--output: {task.output.parent} cannot be written ({error.strerror}); choose another folder."
            ) from error
        beside = unfinished.path_beside(task.output)
        if task.output.exists() and not resume:
            raise ConfigError(f"--output: {task.output} exists already; choose another name, or remove it.")
        if beside.exists() and not resume:
            raise ConfigError(
                f"--output: {beside} is a tuning that was stopped; add --resume to go on with it, or remove it."
            )
    return [task for task in tasks if not task.output.exists()]


def check_finished(tasks: Sequence[SubjectTask], config: TuningConfig, choice: Choice, weights: str) -> None:
    """ConfigError where the file of a task, which `--resume` leaves as it is, was made otherwise than this command
    would make it."""
    for task in tasks:
        try:
            metadata = read_header(task.output).metadata
            stored = dict(json.loads(metadata["tuned"])["settings"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ConfigError(
                f"--resume: {task.output} is no finished tuning ({error}); choose another --output, or remove it."
            ) from error
        stored["Kosmos-G file"] = metadata["model"]
        settings = {"Kosmos-G file": model_fingerprint(weights, whole=True), **_settings(task, config, choice)}
        anew = f"give what it was made with, or remove {task.output.name} to make it anew"
        unfinished.refuse_other(f"{task.output} was made", stored, settings, anew)


def _settings(task: SubjectTask, config: TuningConfig, choice: Choice) -> dict[str, Any]:
    """What a tuning depends on beside the models, as JSON gives it back."""

    def digests(of: Callable[[Photograph], bytes]) -> dict[str, str]:
        return {one.name: hashlib.blake2b(of(one), digest_size=16).hexdigest() for one in task.photographs}

    def drawn(one: Photograph) -> bytes:  # the view as well: the crop follows the mask
        return one.view.numpy().tobytes() + (b"" if one.inside is None else one.inside.numpy().tobytes())

    settings = {
        "size": task.photographs[0].target.shape[-1],
        "set of photographs": {one.name: one.digest for one in task.photographs},
        "set of masks": digests(drawn),
        "set of captions": digests(lambda one: one.caption.encode()),
        "noun": task.noun,
        "weight": task.weight,
        "precision": choice,  # `auto` may measure otherwise when a stopped tuning goes on
        **asdict(config),
    }
    return json.loads(json.dumps(settings))


def _check_captions(tasks: Sequence[SubjectTask], model: KosmosG) -> None:
    """ConfigError where a caption makes a prompt that is longer than the model reads."""
    longest = model.aligner.source_encoder.longest
    for task in tasks:
        for photograph in task.photographs:
            length = max(len(ids) for ids, _ in laid_out(model, photograph.caption, task.noun))
            if length > longest:
                raise ConfigError(
                    f"--images: the caption of {photograph.name} of {task.name} makes a prompt of {length} tokens, "
                    f"expected at most {longest} with the subject's own; shorten it."
                )


def tune_all(
    tasks: list[SubjectTask], models: Models, config: TuningConfig, stop: StopSignal, resume: bool, say: Say
) -> bool:
    """Tune one subject after the other; False where a signal asked to stop, with all that was done kept.

    ConfigError where a caption is too long for the model, before the first step of any.
    """
    _check_captions(tasks, models.encoder)
    for number, task in enumerate(tasks, 1):
        say(f"{task.name} ({number} of {len(tasks)}): {_described(task)}")
        with unfinished.owned(task.output):
            if not _tune(task, models, config, stop, resume, say):
                return False
    return True


def _described(task: SubjectTask) -> str:
    tuned_on, kept = held_out(task.photographs)
    names = ", ".join(photograph.name for photograph in kept)
    masks = sum(photograph.inside is not None for photograph in task.photographs)
    if not kept:
        told = (
            f"one photograph ({tuned_on[0].name}), so none is held out to tell when to stop: all steps are done, and "
            "the file holds the last"
        )
    else:
        told = f"{len(tuned_on)} photograph{'s' * (len(tuned_on) > 1)} to tune on, held out: {names}"
    noun = f"noun '{task.noun}'" if task.noun else "no noun"
    return f"{told}; {masks} of {len(task.photographs)} with a mask; {noun}."


def _tune(task: SubjectTask, models: Models, config: TuningConfig, stop: StopSignal, resume: bool, say: Say) -> bool:
    began, beside = time.monotonic(), unfinished.path_beside(task.output)
    tuned_on, kept = held_out(task.photographs)
    tuning = Tuning(
        models.encoder, models.unet, models.vae, models.scheduler, tuned_on, kept, task.noun, config, models.precision
    )
    settings = {
        "Kosmos-G file": models.fingerprint,
        "Stable Diffusion": models.diffusion,
        **_settings(task, config, models.choice),
    }
    if resume and beside.exists():
        tuning.progress = unfinished.load(task.output, settings, tuning.progress)
        say(f"{task.name}: going on after step {tuning.progress.step}.")
    else:
        if resume:
            say(f"{task.name}: no tuning of it was stopped; it begins anew.")
        tuning.judge()
    now = tuning.progress
    first = now.step
    while not tuning.finished() and stop.received is None:
        loss = tuning.step()
        if now.step % config.judge_every == 0 or now.step == config.steps:
            judged = tuning.judge()
            if not (now.best.abs() <= LARGEST_EMBEDDING).all():  # NaN compares as false
                beside.unlink(missing_ok=True)
                raise ConfigError(
                    f"--rate: {config.rate:g} drove the numbers of {task.name} by step {now.step} beyond what a "
                    f"reference holds; give a lower one, such as {TuningConfig.rate:g}."
                )
            unfinished.save(task.output, now, settings)
            seconds = (time.monotonic() - began) / (now.step - first)
            say(
                f"{task.name}: step {now.step}/{config.steps}, loss {loss:.4f}, "
                f"{'held out' if kept else 'photograph'} {judged:.4f} (zero-shot {now.start_loss:.4f}), "
                f"{seconds:.2f} s/step"
            )
    if not tuning.finished():
        unfinished.save(task.output, now, settings)
        return False
    _write(task, models, settings, tuning)
    beside.unlink(missing_ok=True)
    say(_outcome(task, tuning, time.monotonic() - began))
    return True


def _write(task: SubjectTask, models: Models, settings: dict[str, Any], tuning: Tuning) -> None:
    now = tuning.progress
    tuned_on, kept = held_out(task.photographs)
    told = {
        "photographs": [photograph.name for photograph in tuned_on],
        "held out": [photograph.name for photograph in kept],
        "steps": now.best_step,
        "loss": {"zero-shot": now.start_loss, "tuned": now.best_loss, "draws": JUDGED},
        "settings": settings,
    }
    embeddings = now.best.cpu()
    source = Encoded(embeddings, models.fingerprint, task.output.name, tuned=True)
    reference = Reference(source, task.weight, task.noun)
    save_reference(task.output, embeddings, reference, models.fingerprint, new=True, tuned=json.dumps(told))


def _outcome(task: SubjectTask, tuning: Tuning, seconds: float) -> str:
    now = tuning.progress
    took = f"{task.output} written after {now.step} steps in {duration(seconds)}"
    if tuning.held_out is None:
        return f"{took}; the photograph's own loss went from {now.start_loss:.4f} to {now.best_loss:.4f}."
    if not now.best_step:
        return (
            f"{took}: no step was better on what is held out than the zero-shot start ({now.start_loss:.4f}), which "
            "the file holds; give more or other photographs, or a lower --rate."
        )
    return (
        f"{took}; it holds step {now.best_step}, whose loss on what is held out is {now.best_loss:.4f} (zero-shot "
        f"{now.start_loss:.4f})."
    )
