"""Part e: the node adapter's casting and partial loading on the device, in ComfyUI's own hands.

    python -m dev.gpu_check.adapter --device cuda --size official      # what the part runs; prints JSON

A process of its own: ComfyUI has a module `nodes`, and sets up torch as it likes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .context import DTYPES, Context, Line, Skipped, require

TOLERANCES = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 8e-2}
TEXT = "a dog <i> wearing a hat at the beach"


def check(context: Context) -> Iterator[Line]:
    """Conditions of the CLIP in each number format, whole and half loaded, against the bare model in float32."""
    from ..install import COMFYUI_TREE

    if not (COMFYUI_TREE / "main.py").is_file():
        raise Skipped(f"needs ComfyUI: no main.py in {COMFYUI_TREE}")
    require("aiohttp", "torchsde")
    command = [sys.executable, "-m", "dev.gpu_check.adapter", "--device", context.device.type, "--size", context.size]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    if done.returncode:
        said = [line for line in done.stderr.strip().splitlines() if not line.startswith("WARNING")]
        raise RuntimeError(f"exit code {done.returncode}: {said[-1] if said else 'no output'}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    context.values["adapter"] = found
    for name, error in found["errors"].items():
        limit = TOLERANCES[name.split(",")[0]]
        yield Line(f"condition, {name}", f"{error:.1e}", f"at most {limit:g}", error <= limit)
    yield Line("dynamic VRAM", found["dynamic"], good=None)


def measure(device: str, size: str) -> dict[str, Any]:
    """Errors of conditions by number format and loading; what was found of dynamic VRAM."""
    import torch

    from kosmos_core import load_model

    from ..benchmarks.node import import_pack, write

    adapter, _ = import_pack(cpu=device == "cpu")
    import comfy.model_patcher

    dynamic = hasattr(comfy.model_patcher, "ModelPatcherDynamic")
    errors = {}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        path = Path(folder) / "random.safetensors"
        write(size, path)
        picture = torch.rand(1, 256, 256, 3, generator=torch.Generator().manual_seed(0))
        expected = load_model(path).encode(TEXT, [picture[0]])
        for name, dtype in DTYPES.items():
            for share in (1.0, 0.5):
                if dynamic:
                    clip = adapter.load_clip(path, dtype, torch.device(device), disable_dynamic=True)
                else:
                    clip = adapter.load_clip(path, dtype, torch.device(device))
                memory = clip.patcher.model_size()
                clip.patcher.load(torch.device(device), lowvram_model_memory=0 if share == 1 else int(memory * share))
                errors[f"{name}, {'whole' if share == 1 else 'half'} loaded"] = _error(clip, picture, expected, device)
                clip.patcher.detach()
        told = "this ComfyUI has none"
        if dynamic:
            clip = adapter.load_clip(path, torch.float32, torch.device(device))
            clip.load_model()
            told = f"float32 condition off by {_error(clip, picture, expected, device):.1e}"
    return {"errors": errors, "dynamic": told}


def _error(clip: Any, picture: Any, expected: Any, device: str) -> float:
    """The condition's largest difference to the expected one, of its largest value, as the encoder is loaded now."""
    import torch

    from kosmos_core import preprocess_image

    encoder = clip.cond_stage_model
    side = encoder.model.config.vision.image_size
    tokens = clip.tokenize(TEXT, images=[preprocess_image(picture[0].numpy(), side)])
    encoder.reset_clip_options()
    encoder.set_clip_options({"execution_device": torch.device(device)})
    condition, _ = encoder.encode_token_weights(tokens)
    return float((condition.cpu().float() - expected).abs().max() / expected.abs().max())


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m dev.gpu_check.adapter")
    parser.add_argument("--device", required=True)
    parser.add_argument("--size", required=True)
    given = parser.parse_args()
    sys.argv[1:] = []  # ComfyUI would read them
    print(json.dumps(measure(given.device, given.size)))
