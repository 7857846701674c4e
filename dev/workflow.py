"""Workflow files (ComfyUI's UI format 0.4) as the API form that POST /prompt takes."""

from __future__ import annotations

from typing import Any

FRONT_END_ONLY = ("Note", "MarkdownNote")
BYPASSED = 4
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


def origin(workflow: dict[str, Any], link: int | None) -> list[Any] | None:
    """Node and output that a link comes from, past bypassed nodes; None where it comes from nowhere.

    A bypassed node gives on what it gets: by the input of the same number and type, else by the first of the type.
    """
    sources = {number: (node, output) for number, node, output, *_ in workflow["links"]}
    nodes = {node["id"]: node for node in workflow["nodes"]}
    while link is not None:
        node, output = sources[link]
        if nodes[node].get("mode", ACTIVE) != BYPASSED:
            return [str(node), output]
        kind = nodes[node]["outputs"][output]["type"]
        inputs = nodes[node].get("inputs", [])
        same = [socket for socket in [*inputs[output : output + 1], *inputs] if socket["type"] == kind]
        link = same[0].get("link") if same else None
    return None


def defaults(declared: dict[str, Any], names: list[str | None]) -> dict[str, Any]:
    """What the front end gives widgets that a file does not name: those added to a node since it was saved."""
    inputs = {name: entry for group in declared["input"].values() for name, entry in group.items()}
    return {name: inputs[name][1]["default"] for name in names if name and "default" in inputs[name][1]}


def to_api(workflow: dict[str, Any], object_info: dict[str, Any]) -> dict[str, Any]:
    """The API form of a workflow; ValueError where its widget values do not fit what the server declares."""
    prompt = {}
    for node in workflow["nodes"]:
        kind = node["type"]
        if kind in FRONT_END_ONLY or node.get("mode", ACTIVE) != ACTIVE:
            continue
        names, values = widget_names(object_info[kind]), node.get("widgets_values") or []
        added = defaults(object_info[kind], names[len(values) :])
        if len(values) > len(names) or len(added) < len([name for name in names[len(values) :] if name]):
            raise ValueError(f"node {node['id']} ({kind}) has {len(values)} widget values for the widgets {names}")
        inputs = {name: value for name, value in zip(names, values, strict=False) if name is not None} | added
        for socket in node.get("inputs", []):
            if (linked := origin(workflow, socket.get("link"))) is not None:
                inputs[socket["name"]] = linked
        prompt[str(node["id"])] = {"class_type": kind, "inputs": inputs}
    return prompt
