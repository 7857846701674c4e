"""The pack's sample files, put where ComfyUI looks for them: small weights and example images for every workflow.

GET /kosmos_g/samples says what would be copied where, POST /kosmos_g/samples copies it. The browser asks before it
does (web/sample_files.js). Nothing that exists is changed, and a file is there whole or not at all.
"""

from __future__ import annotations

import asyncio
import filecmp
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import folder_paths
from PIL import Image

from ..kosmos_core import load_model, preprocess_image
from ..kosmos_core.atomic import atomic_write
from ..kosmos_core.reference import Encoded, Reference, load_reference, model_fingerprint, save_reference
from ..kosmos_core.safetensors_file import WeightsError
from .reference_files import FOLDER as REFERENCES
from .routes import json_response, server_routes

PACK = Path(__file__).resolve().parents[1]
WORLD = PACK / "assets/world"
KOSMOS, CHECKPOINT = "emoji-world-kosmos-g.safetensors", "emoji-world-sd.safetensors"
IMAGES = "kosmos-g-*.png"  # in WORLD / "samples"
SAVED, SAVED_FROM, SAVED_NOUN = "kosmos-g-cat.safetensors", "kosmos-g-cat.png", ""
TUNED = "kosmos-g-donut.safetensors"  # to the sample weights, by training.personalize; no other file fits them
REFERENCE_BYTES = 3000  # about; it is encoded, not copied
NOT_HERE = (
    "This copy of Kosmos-G came without its sample files. They are in the folder assets/world of the project's "
    "repository: put {} into models/kosmos_g, {} into models/checkpoints and samples/*.png into input."
)


@dataclass(frozen=True)
class Sample:
    """One file: where it comes from in the pack, and where it goes."""

    source: Path
    target: Path

    @property
    def size(self) -> int:
        return REFERENCE_BYTES if self.target.name == SAVED else self.source.stat().st_size

    def state(self) -> str:
        """`missing`, `there`, or `taken` where another file has its name."""
        if not self.target.exists() and not self.target.is_symlink():
            return "missing"
        try:
            if self.target.name == SAVED:
                same = load_reference(self.target).source.model == model_fingerprint(WORLD / KOSMOS)
            else:
                same = filecmp.cmp(self.source, self.target, shallow=False)
        except (OSError, WeightsError):
            same = False
        return "there" if same else "taken"

    def put(self) -> None:
        """Make the file; FileExistsError where there is one by then, another OSError where the disk refuses."""
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:  # of the folder, not of the file
            raise NotADirectoryError(error.errno, "a file is where the folder belongs") from error
        if self.target.name == SAVED:
            _encode(self.source, self.target)
            return
        with self.source.open("rb") as content, atomic_write(self.target, new=True) as file:
            shutil.copyfileobj(content, file, 1 << 20)


def _encode(image: Path, path: Path) -> None:
    """Save the reference that Save Kosmos-G Reference would make of an image with the sample weights."""
    file = WORLD / KOSMOS
    model, fingerprint = load_model(file), model_fingerprint(file)
    embeddings = model.image_embeddings(preprocess_image(Image.open(image), model.config.vision.image_size))
    reference = Reference(Encoded(embeddings, fingerprint, path.name), noun=SAVED_NOUN)
    save_reference(path, embeddings, reference, fingerprint, new=True)


def samples() -> list[Sample]:
    """All sample files of this copy of the pack, the large ones first; none where it came without them."""
    images = sorted((WORLD / "samples").glob(IMAGES))
    if not images or not all((WORLD / name).is_file() for name in (KOSMOS, CHECKPOINT)):
        return []
    found = [Sample(WORLD / name, _model_path(kind, name)) for kind, name in _MODELS]
    inputs = Path(folder_paths.get_input_directory())
    found += [Sample(image, inputs / image.name) for image in images]
    references = Path(folder_paths.get_output_directory()) / REFERENCES
    found.append(Sample(WORLD / "samples" / TUNED, references / TUNED))
    return [*found, Sample(WORLD / "samples" / SAVED_FROM, references / SAVED)]


_MODELS = (("checkpoints", CHECKPOINT), ("kosmos_g", KOSMOS))


def _model_path(kind: str, name: str) -> Path:
    """Where ComfyUI finds the model, or would after it was copied into the first folder of its kind."""
    return Path(folder_paths.get_full_path(kind, name) or Path(folder_paths.get_folder_paths(kind)[0]) / name)


def report() -> dict[str, Any]:
    """What is there and what would be copied: {files: [{name, folder, bytes, state}], kosmos, checkpoint, remark}."""
    files = [
        {"name": each.target.name, "folder": str(each.target.parent), "bytes": each.size, "state": each.state()}
        for each in samples()
    ]
    remark = None if files else NOT_HERE.format(KOSMOS, CHECKPOINT)
    return {"files": files, "kosmos": KOSMOS, "checkpoint": CHECKPOINT, "remark": remark}


def copy_samples() -> dict[str, Any]:
    """Copy what is missing: {copied: [name], left: [sentence], remark}."""
    copied, left = [], []
    for sample in (known := samples()):
        try:
            if sample.state() == "missing":
                sample.put()
                copied.append(sample.target.name)
                continue
        except FileExistsError:
            pass  # made by somebody else just now: its state is told below
        except OSError as error:
            left.append(
                f"{sample.target.name} cannot be written into {sample.target.parent} ({error.strerror}): make room or "
                "allow writing there."
            )
            continue
        except WeightsError as error:
            left.append(f"{sample.target.name} cannot be made ({error}): the pack is damaged, install it again.")
            continue
        if sample.state() == "taken":
            left.append(
                f"{sample.target} is another file, which was left as it is: rename or move it and get the sample files "
                "again."
            )
    return {"copied": copied, "left": left, "remark": None if known else NOT_HERE.format(KOSMOS, CHECKPOINT)}


def register_sample_routes() -> None:
    """Answer GET and POST /kosmos_g/samples; without a server there is nothing to do."""
    routes = server_routes()
    if routes is None:
        return

    async def answer(act: Any) -> Any:
        # Tens of megabytes are compared or copied: not in the loop that serves everybody.
        return json_response(await asyncio.get_running_loop().run_in_executor(None, act))

    @routes.get("/kosmos_g/samples")
    async def get_samples(request: Any) -> Any:
        return await answer(report)

    @routes.post("/kosmos_g/samples")
    async def post_samples(request: Any) -> Any:
        return await answer(copy_samples)
