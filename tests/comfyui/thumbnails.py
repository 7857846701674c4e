"""Draw workflows/*.jpg: each workflow's graph as ComfyUI's front end shows it.

    python -m tests.comfyui.thumbnails

With the trained weights of assets/world/ they show what was drawn, too; without them they show graphs and no results,
because the models that run then are tiny and random.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from pathlib import Path

from .browser import browse, missing
from .client import Client
from .demo import world_weights
from .install import ROOT
from .server import prepare_folder, running_server
from .stand_ins import CHECKPOINT_WITH_CLIP, standing_in
from .tiny_kosmos import save_tiny_kosmos
from .tiny_models import save_tiny_checkpoint, save_tiny_controlnet, save_tiny_lora
from .workflow import to_api


def main() -> int:
    """Draw all; returns the exit status."""
    environment = Path(sys.executable).parents[1]
    if lack := missing(environment):
        print(lack, file=sys.stderr)
        return 1
    trained = world_weights()
    workflows = {path.stem: json.loads(path.read_text()) for path in sorted((ROOT / "workflows").glob("*.json"))}
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = prepare_folder(Path(name))
        checkpoint = folder / "models/checkpoints" / CHECKPOINT_WITH_CLIP
        kosmos = folder / "models/kosmos_g/kosmos.safetensors"
        if trained:
            checkpoint.symlink_to(trained.checkpoint)
            kosmos.symlink_to(trained.kosmos)
        else:
            save_tiny_checkpoint(checkpoint, text_encoder=True)
            save_tiny_kosmos(kosmos)
        save_tiny_controlnet(folder / "models/controlnet/tiny.safetensors")
        save_tiny_lora(folder / "models/loras/tiny.safetensors")
        for picture in (ROOT / "assets/pictures").glob("*.jpg"):
            (folder / "input" / picture.name).symlink_to(picture)
        server = stack.enter_context(running_server(folder))
        client = Client(server.address)
        object_info = client.get("/object_info")
        client.close()
        for workflow in workflows.values():
            stack.enter_context(standing_in(to_api(workflow, object_info), folder))
        shots = ROOT / "workflows"
        seen = browse(environment, server.address, workflows, Path(name), shots, results=trained is not None)
    failed = {name: found for name, found in seen.items() if found["events"] != [["execution_success", ""]]}
    for name, found in failed.items():
        print(f"{name} did not run, so its picture shows no result: {found['refused'] or found['events']}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
