"""Nodes that keep encoded reference pictures in files."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io

from ..kosmos_core.file_names import file_name_parts
from ..kosmos_core.reference import Encoded, Reference, load_reference, save_reference
from .adapter import encoder_of, progress
from .file_lists import listed_files, options, shown
from .image_inputs import KosmosGImage
from .prepare_reference import CATEGORY
from .schema import node_schema

FOLDER = "kosmos_g_references"
SUFFIX = ".safetensors"
NO_FILE = "no saved reference found"  # the widget's only choice then


def register_reference_folder() -> None:
    """Let ComfyUI list references in `output/kosmos_g_references`, where they are saved, and in the model folder."""
    saved = os.path.join(folder_paths.get_output_directory(), FOLDER)
    folder_paths.add_model_folder_path(FOLDER, saved)
    folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))
    paths, _ = folder_paths.folder_names_and_paths[FOLDER]
    folder_paths.folder_names_and_paths[FOLDER] = (paths, {SUFFIX})
    with contextlib.suppress(OSError):  # a read-only output folder is reported when something is saved
        os.makedirs(saved, exist_ok=True)


def path_of(name: str) -> Path:
    """The path of a reference called `name` (folders with /), whose folder exists then.

    Raises ValueError for a name that would leave the folder or that a file cannot have on some system.
    """
    folder = Path(folder_paths.get_output_directory()) / FOLDER
    try:
        parts = file_name_parts(name.removesuffix(SUFFIX))
    except ValueError as error:
        shown = "".join(char if char.isprintable() else "�" for char in name[:130])
        raise ValueError(f"name is {shown!r}; {error}") from None
    path = folder.joinpath(*parts)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ValueError(f"name is {name!r}, but a part of it before the last / is a file: choose another.") from None
    return path


def save_new(name: str, save: Callable[[Path], None]) -> Path:
    """Call `save` with the first free path for `name`: the name itself, or with a number. Returns the path.

    `save` has to raise FileExistsError where the file exists by then: another server may take the same name.
    """
    path = path_of(name)
    number = 0
    while True:
        number += 1
        free = path.with_name(f"{path.name}{'' if number == 1 else f'_{number}'}{SUFFIX}")
        if free.exists():
            continue
        try:
            save(free)
        except FileExistsError:
            continue
        except OSError as error:
            shown = free.relative_to(folder_paths.get_output_directory())
            raise ValueError(
                f"{shown} cannot be written in the output folder ({error.strerror}): make room or allow writing there."
            ) from error
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
        path_of(name)  # a bad name is told before anything is computed
        clip.load_model()
        encoder.reset_clip_options()
        model = encoder.fingerprint(whole=reference.tuned)
        with progress(encoder, 0, len(reference.views)):
            embeddings = encoder.image_embeddings(reference.source)
        path = save_new(name, lambda free: save_reference(free, embeddings, reference, model, new=True))
        source = Encoded(embeddings, model, path.name, reference.tuned)
        encoded = Reference(source, reference.weight, reference.noun)
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
                    options=options(listed_files(FOLDER), NO_FILE),
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
    def validate_inputs(cls, file: str | None = "") -> bool | str:
        """Say where references are looked for when one is missing; None stands for a linked name, "" for no name."""
        if file is None or (file and folder_paths.get_full_path(FOLDER, str(file)) is not None):
            return True
        chosen = file not in ("", NO_FILE)
        text = f"There is no reference {shown(file)!r}." if chosen else "No reference is chosen."
        text += f" Searched: {', '.join(folder_paths.get_folder_paths(FOLDER))}. "
        if known := listed_files(FOLDER):
            more = f" and {len(known) - 10} more" if len(known) > 10 else ""
            return text + f"Found there: {', '.join(known[:10])}{more}; choose one of these."
        return text + (
            "They hold none: save one with Save Kosmos-G Reference, then press R to list it here; those of the pack's "
            "workflows come with the menu Kosmos-G > Kosmos-G: get sample files."
        )

    @classmethod
    def fingerprint_inputs(cls, file: str | None = "") -> str:
        """Load again when the file's content has changed; any of them where a link names the file."""
        if file is None:
            return " ".join(cls.fingerprint_inputs(name) for name in listed_files(FOLDER))
        path = folder_paths.get_full_path(FOLDER, file)
        if not path:
            return "missing"
        digest = hashlib.sha256()
        with open(path, "rb") as content:  # in pieces: what else lies in the folder may be large
            while piece := content.read(1 << 20):
                digest.update(piece)
        return digest.hexdigest()

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        """Load."""
        if (missing := cls.validate_inputs(file)) is not True:
            raise ValueError(missing)
        return io.NodeOutput(load_reference(folder_paths.get_full_path_or_raise(FOLDER, file)))
