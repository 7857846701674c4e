"""A node pack for the tests alone: writes what passes through a graph to files, so that tests can compare numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy_api.latest import ComfyExtension, io
from safetensors.torch import save_file


def output_file(name: str) -> Path:
    return Path(folder_paths.get_output_directory()) / name


class ProbeConditioning(io.ComfyNode):
    """Writes every tensor and scalar of a conditioning; `after` only makes it run late."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ProbeConditioning",
            is_output_node=True,
            inputs=[
                io.Conditioning.Input("conditioning"),
                io.String.Input("name"),
                io.Latent.Input("after", optional=True),
            ],
            outputs=[],
        )

    @classmethod
    def execute(cls, conditioning: Any, name: str, after: Any = None) -> io.NodeOutput:
        tensors, scalars = {}, []
        for index, (condition, options) in enumerate(conditioning):
            tensors[f"{index}.condition"] = condition.contiguous().clone()
            kept = {}
            for key, value in options.items():
                if isinstance(value, torch.Tensor):
                    tensors[f"{index}.{key}"] = value.contiguous().clone()
                else:
                    kept[key] = value if isinstance(value, bool | int | float | str) else type(value).__name__
            scalars.append(kept)
        save_file(tensors, output_file(f"{name}.safetensors"), metadata={"scalars": json.dumps(scalars)})
        return io.NodeOutput()


class ProbeModel(io.ComfyNode):
    """Writes the cross-attention input of the U-Net's first call, with the order of positive (0) and negative (1)."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ProbeModel",
            inputs=[io.Model.Input("model"), io.String.Input("name")],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(cls, model: Any, name: str) -> io.NodeOutput:
        path = output_file(f"{name}.safetensors")
        path.unlink(missing_ok=True)

        def call(apply_model: Any, arguments: dict[str, Any]) -> torch.Tensor:
            context = arguments["c"]
            if not path.exists():
                order = torch.tensor(arguments["cond_or_uncond"])
                save_file({"context": context["c_crossattn"].contiguous().clone(), "order": order}, path)
            return apply_model(arguments["input"], arguments["timestep"], **context)

        patched = model.clone()
        patched.set_model_unet_function_wrapper(call)
        return io.NodeOutput(patched)


class ProbeImage(io.ComfyNode):
    """Writes a picture; `after` only makes it run late."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ProbeImage",
            is_output_node=True,
            inputs=[io.Image.Input("image"), io.String.Input("name"), io.Latent.Input("after", optional=True)],
            outputs=[],
        )

    @classmethod
    def execute(cls, image: torch.Tensor, name: str, after: Any = None) -> io.NodeOutput:
        save_file({"image": image.contiguous().clone()}, output_file(f"{name}.safetensors"))
        return io.NodeOutput()


class ProbeExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [ProbeConditioning, ProbeModel, ProbeImage]


async def comfy_entrypoint() -> ProbeExtension:
    return ProbeExtension()
