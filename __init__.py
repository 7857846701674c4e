"""Kosmos-G for ComfyUI: the entry point that ComfyUI looks for; nodes are in `nodes/`, their help pages in `web/`."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """Return the extension with all nodes. Imported late, so that this file also imports where ComfyUI is absent."""
    from .nodes import KosmosGExtension

    return KosmosGExtension()
