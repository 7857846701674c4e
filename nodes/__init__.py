"""The ComfyUI nodes of Kosmos-G: thin wrappers round kosmos_core, in ComfyUI's V3 schema."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .analysis import KosmosGInspect, KosmosGTokenMap
from .attention import KosmosGAttentionMap, KosmosGAttentionRecorder
from .conditioning import KosmosGBlend
from .loader import KosmosGLoader, register_model_folder
from .prepare_reference import KosmosGAverage, KosmosGEntities, KosmosGReference
from .prompt_box import register_prompt_route
from .reference_files import KosmosGLoadReference, KosmosGSaveReference, register_reference_folder
from .sample_files import register_sample_routes
from .text_encode import KosmosGTextEncode

# Before any node is declared: the loaders list the files of these folders.
register_model_folder()
register_reference_folder()
register_prompt_route()
register_sample_routes()

NODES = (
    KosmosGLoader,
    KosmosGTextEncode,
    KosmosGReference,
    KosmosGAverage,
    KosmosGEntities,
    KosmosGSaveReference,
    KosmosGLoadReference,
    KosmosGBlend,
    KosmosGInspect,
    KosmosGTokenMap,
    KosmosGAttentionRecorder,
    KosmosGAttentionMap,
)


class KosmosGExtension(ComfyExtension):
    """Everything this pack adds to ComfyUI."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """The node classes."""
        return list(NODES)
