"""The samplings that an attention recorder has seen, each under the part of the graph that made it.

A recorder's output is cached and outlives many runs, so what it holds has to say which sampling it is of. ComfyUI tells
a node nothing about its graph, but the prompt that is running can be read: a sampling is known by the node that ran it
and by everything that leads to it, so that two samplers, or one with two seeds, are never taken for one another.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ..kosmos_core.attention_maps import TRACE_BYTES, Trace
from .connections import running_node

MOST_SAMPLINGS = 8

SamplingKey = tuple[str, int]  # signature of the node and what leads to it, place in the list that it runs over


@dataclass
class Sampling:
    """One node's sampling: its latest trace, the node's name, and how often it sampled in that run."""

    trace: Trace = field(default_factory=Trace)
    title: str = "a sampler"
    run: str = ""
    passes: int = 0


class Recording:
    """The latest samplings with a recorder's model; the oldest are forgotten beyond 8, or beyond 512 MB."""

    def __init__(self) -> None:
        self.samplings: OrderedDict[SamplingKey | None, Sampling] = OrderedDict()
        self.forgotten = False

    def begin(self) -> Trace:
        """An empty trace for the sampling that starts now in the running node."""
        running = running_node()
        # A node that is not in the prompt (put in by another node's expansion, or no server) cannot be told apart.
        key, run, title = None, "", "a sampler"
        if running is not None and running.node_id in running.prompt:
            key = (signature(running.prompt, running.node_id), running.list_index or 0)
            title = f"{running.prompt[running.node_id]['class_type']}, node {running.node_id}"
            run = running.prompt_id
        before = self.samplings.pop(key, None)
        passes = before.passes if before is not None and run and (before.run, before.title) == (run, title) else 0
        sampling = Sampling(title=title, run=run, passes=passes + 1)
        self.samplings[key] = sampling
        while len(self.samplings) > 1 and (len(self.samplings) > MOST_SAMPLINGS or self._bytes() > TRACE_BYTES):
            self.samplings.popitem(last=False)
            self.forgotten = True
        return sampling.trace

    def of_image(self, node_class: str) -> tuple[Sampling | None, list[str]]:
        """The sampling that leads to the input `image` of the running node, a `node_class`, and remarks on it.

        None where nothing was sampled. Raises ValueError where other samplings are held, but not that one.
        """
        if not self.samplings:
            return None, []
        running = running_node()
        node = None if running is None else running.prompt.get(running.node_id)
        link = None if node is None or node["class_type"] != node_class else node["inputs"].get("image")
        if not isinstance(link, list):
            return next(reversed(self.samplings.values())), []
        found: list[Sampling] = []
        signatures: dict[str, str] = {}
        for name in upstream(running.prompt, link[0]):
            of_node = signature(running.prompt, name, signatures)
            sampling = self.samplings.get((of_node, running.list_index or 0)) or self.samplings.get((of_node, 0))
            if sampling is not None:
                found.append(sampling)
        if not found and None in self.samplings:
            return self.samplings[None], []
        if not found:
            held = ", ".join(dict.fromkeys(sampling.title for sampling in self.samplings.values()))
            raise ValueError(
                f"The trace is not of this image: it holds samplings of {held}, but none with the settings that made "
                "the image that is connected. Connect the image of a sampler that uses the recorder's MODEL; where "
                "that is so already, change the recorder's end_step or the seed, so that ComfyUI samples anew."
            )
        return found[0], remarks(found)

    def _bytes(self) -> int:
        return sum(sampling.trace.bytes_recorded for sampling in self.samplings.values())


def remarks(samplings: list[Sampling]) -> list[str]:
    """Lines on what a map of the first of `samplings`, the nearest to the image, does not show."""
    first, *others = samplings
    lines = []
    if first.passes > 1:
        lines.append(
            f"{first.title} sampled {first.passes} times for this image (tiles or passes): the map is of the last one, "
            "stretched over the image."
        )
    if others:
        titles = "; ".join(sampling.title for sampling in others)
        lines.append(
            f"This image was sampled in {len(samplings)} passes: the map is of {first.title}, not of {titles}."
        )
    if first.trace.tiled:
        lines.append("The model was sampled in tiles: the maps of all tiles lie on one another, not in their places.")
    return lines


def upstream(prompt: dict[str, Any], start: str) -> Iterator[str]:
    """The node `start` and all that lead to it, the nearest first."""
    seen, waiting = {start}, [start]
    while waiting:
        name = waiting.pop(0)
        if name not in prompt:
            continue
        yield name
        for value in prompt[name]["inputs"].values():
            if isinstance(value, list) and len(value) == 2 and value[0] not in seen:
                seen.add(value[0])
                waiting.append(value[0])


def signature(prompt: dict[str, Any], node_id: str, known: dict[str, str] | None = None) -> str:
    """Hash of a node, its values, and all that leads to it: equal for two prompts where it does the same work.

    Node ids do not count: ComfyUI hands a cached result to a node of any id that does the same work.
    """
    known = {} if known is None else known
    waiting = [node_id]
    while waiting:
        name = waiting[-1]
        inputs = prompt[name]["inputs"] if name in prompt else {}
        links = [value[0] for value in inputs.values() if isinstance(value, list) and len(value) == 2]
        missing = [link for link in links if isinstance(link, str) and link not in known]
        if missing and len(waiting) <= len(prompt):
            waiting.append(missing[0])
            continue
        waiting.pop()
        described = {
            key: [known.get(value[0], ""), value[1]] if isinstance(value, list) and len(value) == 2 else value
            for key, value in inputs.items()
        }
        kind = prompt[name]["class_type"] if name in prompt else name
        text = json.dumps([kind, described], sort_keys=True, default=str)
        known[name] = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    return known[node_id]
