"""Nodes that keep encoded reference pictures in files."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy_api.latest import io

from ..kosmos_core.reference import Encoded, Reference, load_reference, save_reference
from .adapter import encoder_of, progress
from .image_inputs import KosmosGImage
from .prepare_reference import CATEGORY
from .schema import node_schema

FOLDER = "kosmos_g_references"
SUFFIX = ".safetensors"
FORBIDDEN = re.compile(r'[\x00-\x1f<>:"|?*]')


def register_reference_folder() -> None:
    """Let ComfyUI list references in `output/kosmos_g_references`, where they are saved, and in the model folder."""
    saved = os.path.join(folder_paths.get_output_directory(), FOLDER)
    folder_paths.add_model_folder_path(FOLDER, saved)
    folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))
    paths, _ = folder_paths.folder_names_and_paths[FOLDER]
    folder_paths.folder_names_and_paths[FOLDER] = (paths, {SUFFIX})
    with contextlib.suppress(OSError):  # a read-only output folder is reported when something is saved
        os.makedirs(saved, exist_ok=True)


def new_file(name: str) -> Path:
    """The path for a new reference called `name` (folders with /), with a number where that name is taken.

    Raises ValueError for a name that would leave the folder or that no file can have.
    """
    folder = Path(folder_paths.get_output_directory()) / FOLDER
    parts = [part.strip() for part in name.replace("\\", "/").removesuffix(SUFFIX).split("/")]
    if FORBIDDEN.search(name) or any(part in ("", ".", "..") for part in parts) or len(name) > 120:
        raise ValueError(
            f"name is {name[:130]!r}; expected a file name of up to 120 characters such as my_dog or pets/dog, without "
            "a leading slash, '..' or any of <>:\"|?*."
        )
    path = folder.joinpath(*parts)
    free = path.with_name(path.name + SUFFIX)
    number = 2
    while free.exists():
        free = path.with_name(f"{path.name}_{number}{SUFFIX}")
        number += 1
    free.parent.mkdir(parents=True, exist_ok=True)
    return free


class KosmosGSaveReference(io.ComfyNode):
    """Encode a reference and keep the result."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Declare inputs and outputs."""
        return node_schema(
            node_id="KosmosGSaveReference",
            display_name="Save Kosmos-G Reference",
            category=CATEGORY,
            description="Encodes a reference and saves what the model saw in it to output/kosmos_g_references, to be "
            "used again without the picture. It belongs to the Kosmos-G file that encoded it.",
            search_aliases=["kosmos", "save embeds", "store subject"],
            is_output_node=True,
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP of Load Kosmos-G that encodes the picture."),
                KosmosGImage.Input("reference", tooltip="A reference, or an average of several."),
                io.String.Input(
                    "name",
                    default="subject",
                    tooltip="Name of the file; pets/dog makes a folder. An existing file is never overwritten: a "
                    "number is added.",
                ),
            ],
            outputs=[
                KosmosGImage.Output(display_name="reference", tooltip="The encoded reference, as the file holds it.")
            ],
        )

    @classmethod
    def execute(cls, clip: Any, reference: Reference, name: str) -> io.NodeOutput:
        """Encode and save."""
        encoder = encoder_of(clip)
        path = new_file(name)
        clip.load_model()
        encoder.reset_clip_options()
        model = encoder.fingerprint()
        with progress(encoder, 0, len(reference.views)):
            embeddings = encoder.image_embeddings(reference.source)
        save_reference(path, embeddings, reference, model)
        encoded = Reference(Encoded(embeddings, model, path.name), reference.weight, reference.noun)
        shown = str(path.relative_to(folder_paths.get_output_directory()))
        return io.NodeOutput(encoded, ui={"text": [f"Saved as {shown}"]})


class KosmosGLoadReference(io.ComfyNode):
    """Read a saved reference."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Declare inputs and outputs."""
        return node_schema(
            node_id="KosmosGLoadReference",
            display_name="Load Kosmos-G Reference",
            category=CATEGORY,
            description="Loads a reference that Save Kosmos-G Reference wrote. Connect it to an image input of "
            "Kosmos-G Prompt that uses the same Kosmos-G file.",
            search_aliases=["kosmos", "load embeds", "stored subject"],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=folder_paths.get_filename_list(FOLDER),
                    tooltip="A file in output/kosmos_g_references or models/kosmos_g_references. Press R to see newly "
                    "saved ones.",
                )
            ],
            outputs=[
                KosmosGImage.Output(
                    display_name="reference", tooltip="The reference with the weight and noun it was saved with."
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, file: str) -> bool | str:
        """Say where references are looked for when one is missing."""
        if folder_paths.get_full_path(FOLDER, file) is not None:
            return True
        searched = ", ".join(folder_paths.get_folder_paths(FOLDER))
        known = ", ".join(folder_paths.get_filename_list(FOLDER)[:10]) or "none"
        return f"There is no reference {file!r}. Searched: {searched}. Found there: {known}."

    @classmethod
    def fingerprint_inputs(cls, file: str) -> str:
        """Load again when the file's content has changed."""
        path = folder_paths.get_full_path(FOLDER, file)
        return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path else "missing"

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        """Load."""
        reference = load_reference(folder_paths.get_full_path_or_raise(FOLDER, file))
        if not torch.isfinite(reference.source.image_embeddings).all():
            raise ValueError(f"{file} is damaged: it holds NaN or infinite values; save the reference again.")
        return io.NodeOutput(reference)
