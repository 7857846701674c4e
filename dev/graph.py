"""Graphs in API form, built node by node."""

from __future__ import annotations

from typing import Any

Link = list[Any]


class Graph:
    """A graph that grows by `add`; `nodes` is what POST /prompt takes."""

    def __init__(self) -> None:
        self.nodes: dict[str, dict[str, Any]] = {}

    def add(self, class_type: str, **inputs: Any) -> str:
        """Add a node and return its id; inputs are constants or links made by `link`."""
        identity = str(len(self.nodes) + 1)
        self.nodes[identity] = {"class_type": class_type, "inputs": inputs}
        return identity


def link(node: str, output: int = 0) -> Link:
    """The value that stands for a node's output."""
    return [node, output]


class SamplingGraph(Graph):
    """Checkpoint, Kosmos-G, a prompt and one small sampled picture: what most tests vary a little.

    After `prompt` and `sample`, `positive`, `negative`, `model`, `latent` and `saved` hold the links to build on.
    """

    def __init__(self, file: str = "kosmos.safetensors", dtype: str = "auto", device: str = "auto") -> None:
        super().__init__()
        self.checkpoint = self.add("CheckpointLoaderSimple", ckpt_name="tiny.safetensors")
        self.loader = self.add("KosmosGLoader", file=file, dtype=dtype, device=device)
        self.model = link(self.checkpoint)
        self.clip = link(self.loader)
        self.encoder = ""
        self.positive: Link = []
        self.negative: Link = []
        self.latent: Link = []
        self.saved = ""

    def prompt(self, text: str, *names: str | None, negative: str = "") -> SamplingGraph:
        """Add LoadImage nodes and the prompt node; None leaves a slot empty."""
        images = {
            f"image_{slot}": link(self.add("LoadImage", image=name))
            for slot, name in enumerate(names, start=1)
            if name is not None
        }
        self.encoder = self.add("KosmosGTextEncode", clip=self.clip, text=text, negative=negative, **images)
        self.positive, self.negative = link(self.encoder, 0), link(self.encoder, 1)
        return self

    def sample(self, seed: int = 1, steps: int = 2, batch: int = 1) -> SamplingGraph:
        """Add sampler, decoder and SaveImage."""
        empty = self.add("EmptyLatentImage", width=64, height=64, batch_size=batch)
        sampler = self.add(
            "KSampler",
            model=self.model,
            seed=seed,
            steps=steps,
            cfg=4.0,
            sampler_name="euler",
            scheduler="normal",
            positive=self.positive,
            negative=self.negative,
            latent_image=link(empty),
            denoise=1.0,
        )
        self.latent = link(sampler)
        decoded = self.add("VAEDecode", samples=self.latent, vae=link(self.checkpoint, 2))
        self.saved = self.add("SaveImage", images=link(decoded), filename_prefix="test")
        return self
