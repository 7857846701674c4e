"""What the running node has to do with its graph: whether an output is read, and where a remark on it is shown.

What nobody reads need not be computed.

ComfyUI tells a node nothing about its outputs, but it does say which node of which prompt is running, in `execute` and
in `fingerprint_inputs` alike. A node that leaves out an output has to put `is_read` of it into its fingerprint:
otherwise ComfyUI would hand its cached result, which lacks the output, to a graph that connects it later.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from dataclasses import dataclass
from typing import Any


def is_read(output: int, node_class: str) -> bool:
    """Whether the running prompt links output number `output` of the running node, a `node_class`.

    True whenever that cannot be known: outside of a server, for a node that another pack calls or puts in by expansion,
    or in a ComfyUI that keeps its queue elsewhere.
    """
    try:
        running = running_node()
        if running.prompt[running.node_id]["class_type"] != node_class:
            return True
        wanted = [running.node_id, output]
        return any(_links_to(value, wanted) for node in running.prompt.values() for value in node["inputs"].values())
    except (AttributeError, KeyError, TypeError):
        return True


@dataclass(frozen=True)
class RunningNode:
    """The node that is running: its id, the prompt (node id to node) and its id, the place in a list it runs over."""

    node_id: str
    prompt: dict[str, Any]
    prompt_id: str
    list_index: int | None


def running_node() -> RunningNode | None:
    """What is running; None outside of a server, or in a ComfyUI that keeps its queue elsewhere."""
    try:
        # Looked up here, not at import: the server starts after the packs are loaded.
        from comfy_execution.utils import get_executing_context

        context = get_executing_context()
        running, _ = sys.modules["server"].PromptServer.instance.prompt_queue.get_current_queue_volatile()
        prompt = next(item[2] for item in running if item[1] == context.prompt_id)
        return RunningNode(context.node_id, prompt, context.prompt_id, context.list_index)
    except (ImportError, AttributeError, IndexError, KeyError, StopIteration, TypeError):
        return None


def tell(remark: str, level: int = logging.WARNING) -> None:
    """Show a remark on the running node, whoever's it is, and write it to the log."""
    logging.log(level, remark)
    with contextlib.suppress(ImportError, AttributeError, KeyError):
        from comfy_execution.utils import get_executing_context

        node_id = get_executing_context().node_id
        sys.modules["server"].PromptServer.instance.send_progress_text(remark, node_id)


def _links_to(value: Any, wanted: list[Any]) -> bool:
    return isinstance(value, list) and value[:2] == wanted
