"""The ComfyUI nodes of Kosmos-G: thin wrappers round kosmos_core, in ComfyUI's V3 schema."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .loader import KosmosGLoader, register_model_folder
from .text_encode import KosmosGTextEncode

# Before any node is declared: the loader lists the files of this folder.
register_model_folder()

NODES = (KosmosGLoader, KosmosGTextEncode)


class KosmosGExtension(ComfyExtension):
    """Everything this pack adds to ComfyUI."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """The node classes."""
        return list(NODES)
