"""Load Kosmos-G: from a weight file to a CLIP."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from pathlib import Path

import folder_paths
import torch
from comfy_api.latest import io

from ..kosmos_core.weights import WeightsError, identify, read_config
from .adapter import encoder_of, load_clip
from .file_lists import entries, listed_files, options, shown
from .schema import check_choice, node_schema

OWN_FOLDER = "kosmos_g"
FOLDERS = (OWN_FOLDER, "text_encoders")
PICKLES = (".pt", ".pth", ".ckpt", ".bin")
UNREADABLE = "unreadable:"
NO_FILE = "no Kosmos-G file found"  # the widget's only choice then
SAMPLED_BLOCKS, BLOCK = 64, 65536
DTYPES = {"auto": None, "fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
DEVICES = {"auto": None, "cpu": torch.device("cpu")}


def register_model_folder() -> None:
    """Make `models/kosmos_g` a model folder of ComfyUI, beside whatever extra_model_paths.yaml says of it."""
    default = os.path.join(folder_paths.models_dir, OWN_FOLDER)
    folder_paths.add_model_folder_path(OWN_FOLDER, default)
    paths, _ = folder_paths.folder_names_and_paths[OWN_FOLDER]
    folder_paths.folder_names_and_paths[OWN_FOLDER] = (paths, {".safetensors"})
    with contextlib.suppress(OSError):  # a read-only installation can still use the other folder
        os.makedirs(default, exist_ok=True)


@functools.lru_cache(maxsize=1024)
def _rejection(path: str, modified: int, size: int) -> str | None:
    """Why a file is not Kosmos-G's, or None where it is; cached until the file changes."""
    try:
        return identify(path)
    except WeightsError as error:
        return f"{UNREADABLE} {error}"
    except OSError as error:
        return f"{UNREADABLE} {error.strerror}"


@functools.lru_cache(maxsize=1024)
def _sampled_hash(path: str, modified: int, size: int) -> str:
    """Hash of a file's size and of blocks spread over it, because reading gigabytes takes long.

    Other weights differ in all their blocks.
    """
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    with open(path, "rb") as file:
        for number in range(SAMPLED_BLOCKS):
            file.seek(max(0, size - BLOCK) * number // (SAMPLED_BLOCKS - 1))
            digest.update(file.read(BLOCK))
    return digest.hexdigest()


def rejection(path: str) -> str | None:
    """Why the file at `path` is not Kosmos-G's, or None where it is. Reads the file's header only."""
    try:
        status = os.stat(path)
    except OSError as error:
        return f"{UNREADABLE} {error.strerror}"
    return _rejection(path, status.st_mtime_ns, status.st_size)


def candidates() -> dict[str, str]:
    """Every .safetensors file in the searched folders: name to path; the first folder wins."""
    found: dict[str, str] = {}
    for folder in FOLDERS:
        for name in listed_files(folder):
            path = folder_paths.get_full_path(folder, name)
            if path is not None and name.endswith(".safetensors"):
                found.setdefault(name, path)
    return found


def kosmos_files() -> dict[str, str]:
    """The candidates whose content is Kosmos-G's."""
    return {name: path for name, path in candidates().items() if rejection(path) is None}


def explain_missing(name: str) -> str:
    """Say which folders were searched and why each file in them is not the one wanted, and how to get one."""
    folders = [path for folder in FOLDERS for path in folder_paths.get_folder_paths(folder)]
    seen = candidates()
    if name in seen and (reason := rejection(seen[name])) is not None:
        return f"{name} is not a Kosmos-G file: it {'is' if reason.startswith(UNREADABLE) else 'seems to be'} {reason}."
    usable = sorted(kosmos_files())
    chosen = name not in ("", NO_FILE)
    if usable and not chosen:
        text = "No Kosmos-G file is chosen. "
    else:
        text = f"There is no Kosmos-G file{f' {shown(name)!r}' if chosen else ''}. "
    text += f"Searched: {', '.join(folders)}. "
    if usable:
        return text + f"Found there: {', '.join(usable)}; choose one of these."
    others = "; ".join(f"{other}: {rejection(path)}" for other, path in sorted(seen.items())[:10])
    text += f"No file there is Kosmos-G's ({others}). " if others else "They hold no .safetensors file. "
    if pickles := sorted(entry for entry in entries(OWN_FOLDER) if entry.endswith(PICKLES)):
        text += f"{', '.join(pickles)} cannot be read here: convert it with `python -m kosmos_core.convert` first. "
    own = folder_paths.get_folder_paths(OWN_FOLDER)[0]
    return text + f"Put a converted or trained Kosmos-G file into {own}, or press Get sample files on the node."


class KosmosGLoader(io.ComfyNode):
    """Load a Kosmos-G weight file as a CLIP."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Declare inputs and outputs."""
        return node_schema(
            node_id="KosmosGLoader",
            display_name="Load Kosmos-G",
            category="Kosmos-G",
            description="Loads a Kosmos-G encoder. Its CLIP takes the place of the checkpoint's CLIP in any Stable "
            "Diffusion 1.5 graph and reads pictures inside the prompt.",
            search_aliases=["kosmos", "kosmos-g", "multimodal text encoder", "subject driven", "clip loader"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=options(kosmos_files(), NO_FILE),
                    tooltip="A Kosmos-G file in models/kosmos_g or models/text_encoders. Files are recognised by what "
                    "is in them, so any name will do; other models are not listed.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(DTYPES),
                    default="auto",
                    tooltip="Type of the weights in memory. auto: what ComfyUI uses for text encoders, computed in "
                    "float32; for a large encoder on a CPU that is faster in bf16, that. fp16 and bf16 also compute in "
                    "that type: faster, slightly less exact. fp32: exact.",
                ),
                io.Combo.Input(
                    "device",
                    options=list(DEVICES),
                    default="auto",
                    tooltip="auto: ComfyUI decides and moves the encoder out of the way of the sampler. cpu: leave "
                    "graphics memory to the sampler altogether.",
                ),
            ],
            outputs=[
                io.Clip.Output(
                    display_name="CLIP",
                    tooltip="Connect it to Kosmos-G Prompt, or to any node that takes a CLIP for prompts without "
                    "pictures.",
                ),
                io.String.Output(
                    display_name="info", tooltip="What was loaded: sizes, training stage, types, device, origin."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, file: str | None = "") -> bool | str:
        """Check the file's name with a sentence that says what was found instead.

        None stands for a linked name; without one, as a front end sends it that has nothing to choose from, the default
        is told.
        """
        return True if file is None or str(file) in kosmos_files() else explain_missing(str(file))

    @classmethod
    def fingerprint_inputs(cls, file: str | None = "", **_: str) -> str:
        """Load again when the file's content has changed, or it has moved; any of them where a link names the file."""
        found = kosmos_files() if file is None else candidates()
        states = []
        for path in found.values() if file is None else [found[file]] if file in found else []:
            status = os.stat(path)
            states.append(f"{path} {_sampled_hash(path, status.st_mtime_ns, status.st_size)}")
        return "\n".join(states) or "missing"

    @classmethod
    def execute(cls, file: str, dtype: str, device: str) -> io.NodeOutput:
        """Load the file."""
        check_choice("dtype", dtype, DTYPES)
        check_choice("device", device, DEVICES)
        path = kosmos_files().get(str(file))
        if path is None:
            raise ValueError(explain_missing(str(file or "")))
        clip = load_clip(path, DTYPES[dtype], DEVICES[device])
        return io.NodeOutput(clip, describe(Path(path), clip))


def describe(path: Path, clip: object) -> str:
    """A few lines that say what was loaded."""
    config, description = read_config(path)
    encoder = encoder_of(clip)
    parameters = sum(parameter.numel() for parameter in encoder.parameters())
    kinds = "/".join(sorted({str(dtype).removeprefix("torch.") for dtype in encoder.dtypes}))
    computed = str(encoder.compute_dtype).removeprefix("torch.")
    aligner = config.aligner
    lines = [
        f"{path.name}: {parameters / 1e6:,.1f} million parameters, trained up to stage '{description['stage']}'",
        f"language model: {config.decoder.layers} layers, width {config.decoder.width}, "
        f"vocabulary {config.decoder.vocabulary}",
        f"vision: {config.vision.layers} layers, width {config.vision.width}, {config.vision.image_size} px, "
        f"{config.resampler.latents} tokens per picture",
        f"condition: {aligner.queries} x {aligner.width}"
        + ("" if aligner.width == 768 else " (Stable Diffusion 1.5 needs width 768)"),
        f"weights: {description['dtype']} in the file, {kinds} in memory; computes in {computed} on "
        f"{clip.patcher.load_device}",
    ]
    if encoder.model.tokenizer is None:
        lines.append("no tokenizer in the file: it cannot read prompts; convert it again with --spm and --dict")
    lines += [f"{key}: {value}" for key, value in description["provenance"].items()]
    return "\n".join(f"- {line}" for line in lines)  # a list also where text is read as Markdown, as in Preview Any
