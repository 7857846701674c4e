"""Workflow files (ComfyUI's UI format 0.4) as the API form that POST /prompt takes."""

from __future__ import annotations

from typing import Any

FRONT_END_ONLY = ("Note", "MarkdownNote")
WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
ACTIVE = 0
SEED_NAMES = ("seed", "noise_seed")


def widget_names(declared: dict[str, Any]) -> list[str | None]:
    """Names of a node's widgets in the order of `widgets_values`; None for those that only the front end has.

    `declared` is the node's entry in /object_info. The front end adds a widget after a seed (what to do with it after
    each run) and after a combo that uploads (its button).
    """
    names: list[str | None] = []
    for group in ("required", "optional"):
        for name in declared["input_order"].get(group, []):
            kind, *options = declared["input"][group][name]
            options = options[0] if options else {}
            is_widget = isinstance(kind, list) or kind in WIDGET_TYPES
            if not is_widget or options.get("forceInput"):
                continue
            names.append(name)
            seed = kind == "INT" and name in SEED_NAMES
            uploads = any(options.get(f"{medium}_upload") for medium in ("image", "video", "audio"))
            if seed or uploads or options.get("control_after_generate"):
                names.append(None)
    return names


def to_api(workflow: dict[str, Any], object_info: dict[str, Any]) -> dict[str, Any]:
    """The API form of a workflow; ValueError where its widget values do not fit what the server declares."""
    origin = {link_id: [str(node), output] for link_id, node, output, *_ in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        kind = node["type"]
        if kind in FRONT_END_ONLY or node.get("mode", ACTIVE) != ACTIVE:
            continue
        names, values = widget_names(object_info[kind]), node.get("widgets_values") or []
        if len(names) != len(values):
            raise ValueError(f"node {node['id']} ({kind}) has {len(values)} widget values for the widgets {names}")
        inputs = {name: value for name, value in zip(names, values, strict=True) if name is not None}
        for socket in node.get("inputs", []):
            if socket.get("link") is not None:
                inputs[socket["name"]] = origin[socket["link"]]
        prompt[str(node["id"])] = {"class_type": kind, "inputs": inputs}
    return prompt
