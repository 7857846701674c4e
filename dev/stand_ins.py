"""Small models and pictures under the names that a shipped workflow uses, so that it runs as it is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from kosmos_core import load_model, preprocess_image
from kosmos_core.reference import Encoded, Reference, model_fingerprint, save_reference

# Which of the tiny models stands for a file, by the node and input that name it.
CHECKPOINT_WITH_CLIP = "tiny-with-clip.safetensors"
STAND_INS = {
    ("CheckpointLoaderSimple", "ckpt_name"): ("models/checkpoints", CHECKPOINT_WITH_CLIP),
    ("KosmosGLoader", "file"): ("models/kosmos_g", "kosmos.safetensors"),
    ("ControlNetLoader", "control_net_name"): ("models/controlnet", "tiny.safetensors"),
    ("LoraLoader", "lora_name"): ("models/loras", "tiny.safetensors"),
    ("LoadImage", "image"): ("input", "dog.png"),
}
REFERENCES = "output/kosmos_g_references"


@contextlib.contextmanager
def standing_in(prompt: dict[str, Any], folder: Path, image: Path | None = None) -> Iterator[None]:
    """Link the files that an API graph names to tiny ones in ComfyUI's `folder`; save the reference that it loads.

    That reference is of `image`, or of the input folder's first one.
    """
    made: list[Path] = []
    try:
        for node in prompt.values():
            for name, value in node["inputs"].items():
                if (node["class_type"], name) in STAND_INS and isinstance(value, str):
                    place, stand_in = STAND_INS[node["class_type"], name]
                    if not (folder / place / value).exists():
                        (folder / place / value).symlink_to(folder / place / stand_in)
                        made.append(folder / place / value)
                if node["class_type"] == "KosmosGLoadReference":
                    made += _saved_reference(folder, value, image)
        yield
    finally:
        for path in made:
            path.unlink()


def _saved_reference(folder: Path, name: str, image: Path | None) -> list[Path]:
    """A picture, encoded by the folder's Kosmos-G file."""
    path = folder / REFERENCES / name
    if path.exists():
        return []
    path.parent.mkdir(parents=True, exist_ok=True)
    file = folder / "models/kosmos_g/kosmos.safetensors"
    model = load_model(file)
    image = image or min(path for path in (folder / "input").iterdir() if path.suffix in (".jpg", ".png"))
    tokens = model.image_embeddings(preprocess_image(Image.open(image), model.config.vision.image_size))
    fingerprint = model_fingerprint(file)
    save_reference(path, tokens, Reference(Encoded(tokens, fingerprint, name), noun="cat"), fingerprint)
    return [path]
