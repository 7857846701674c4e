"""A node pack for the tests alone: writes what passes through a graph to files, so that tests can compare numbers."""

from __future__ import annotations

import collections
import contextlib
import copy
import importlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import comfy.model_management
import comfy.sd
import comfy.sd1_clip
import folder_paths
import torch
from comfy_api.latest import ComfyExtension, io
from safetensors.torch import save_file


def output_file(name: str) -> Path:
    return Path(folder_paths.get_output_directory()) / name


class Probe(io.ComfyNode):
    """A node that bears its class's name; the classes below are all in the pack."""

    inputs: tuple[io.Input, ...] = ()
    outputs: tuple[io.Output, ...] = ()
    ends_a_graph = False
    runs_every_time = False

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=cls.__name__,
            inputs=list(cls.inputs),
            outputs=list(cls.outputs),
            is_output_node=cls.ends_a_graph,
            not_idempotent=cls.runs_every_time,
        )


class ProbeConditioning(Probe):
    """Writes every tensor and scalar of a conditioning; `after` only makes it run late."""

    inputs = (io.Conditioning.Input("conditioning"), io.String.Input("name"), io.Latent.Input("after", optional=True))
    ends_a_graph = True

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


class ProbeModel(Probe):
    """Writes the cross-attention input of the U-Net's first call, with the order of positive (0) and negative (1)."""

    inputs = (io.Model.Input("model"), io.String.Input("name"))
    outputs = (io.Model.Output(),)

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


class ProbeTwin(Probe):
    """The model on a copy of its weights with other attention keys, as ComfyUI samples on copies of its own."""

    inputs = (io.Model.Input("model"),)
    outputs = (io.Model.Output(),)

    @classmethod
    def execute(cls, model: Any) -> io.NodeOutput:
        twin = model.clone()
        again = getattr(model, "cached_patcher_init", None)  # newer models cannot be copied once they are loaded
        if again is None:
            twin.model = copy.deepcopy(model.model)
        else:
            made = again[0](*again[1])
            twin.loaded_again = made[again[2]] if len(again) > 2 else made
            twin.model = twin.loaded_again.model
        for name, weight in twin.model.named_parameters():
            if name.endswith("attn2.to_k.weight"):
                weight.mul_(5)
        return io.NodeOutput(twin)


class ProbeBackup(Probe):
    """Keeps copies of unpatched weights where ComfyUI keeps the originals of patched ones, as dynamic loading does."""

    inputs = (io.Clip.Input("clip"),)
    outputs = (io.Clip.Output(),)

    @classmethod
    def execute(cls, clip: Any) -> io.NodeOutput:
        clip.load_model()
        kept = collections.namedtuple("Dimension", ["weight", "inplace_update"])
        for name, weight in clip.cond_stage_model.named_parameters():
            clip.patcher.backup[name] = kept(weight, False)
        return io.NodeOutput(clip)


class ProbeCorePatch(Probe):
    """By how much patches change what a small CLIP of ComfyUI's own encodes: the control for the pack's."""

    inputs = (io.Boolean.Input("dynamic"),)
    outputs = (io.String.Output(),)

    @classmethod
    def execute(cls, dynamic: bool) -> io.NodeOutput:
        sizes = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
        sizes |= {"hidden_act": "quick_gelu", "max_position_embeddings": 77, "vocab_size": 49408, "eos_token_id": 49407}

        class Encoder(comfy.sd1_clip.SDClipModel):
            def __init__(self, device: Any, dtype: Any, model_options: dict[str, Any]) -> None:
                super().__init__(device, dtype=dtype, textmodel_json_config=sizes, model_options=model_options)
                self.dtypes = {dtype}
                generator = torch.Generator().manual_seed(3)
                for weight in self.parameters():
                    weight.copy_(torch.randn(weight.shape, generator=generator) * 0.05)

            def encode_token_weights(self, tokens: dict[str, Any]) -> Any:
                return super().encode_token_weights(tokens["l"])

        target = SimpleNamespace(params={}, clip=Encoder, tokenizer=comfy.sd1_clip.SD1Tokenizer)
        clip = comfy.sd.CLIP(target)
        patched = clip.clone()
        weights = clip.cond_stage_model.named_parameters()
        patched.add_patches({name: ("diff", (weight * 2,)) for name, weight in weights if ".fc1.weight" in name})
        plain, other = (each.encode_from_tokens(each.tokenize("a dog")) for each in (clip, patched))
        kind = getattr(clip.patcher, "is_dynamic", bool)()
        if kind != dynamic:
            raise RuntimeError(f"is_dynamic is {kind}")
        return io.NodeOutput(json.dumps(float((plain - other).abs().max())))


class ProbeImage(Probe):
    """Writes a picture; `after` only makes it run late."""

    inputs = (io.Image.Input("image"), io.String.Input("name"), io.Latent.Input("after", optional=True))
    ends_a_graph = True

    @classmethod
    def execute(cls, image: torch.Tensor, name: str, after: Any = None) -> io.NodeOutput:
        save_file({"image": image.contiguous().clone()}, output_file(f"{name}.safetensors"))
        return io.NodeOutput()


class ProbeBrokenImage(Probe):
    """A picture of NaN, as a failed node upstream makes it."""

    outputs = (io.Image.Output(),)

    @classmethod
    def execute(cls) -> io.NodeOutput:
        return io.NodeOutput(torch.full((1, 8, 8, 3), float("nan")))


class ProbeClip(Probe):
    """Checks that ComfyUI's partial loading reaches every weight, and shows the word ids of a prompt."""

    inputs = (io.Clip.Input("clip"), io.String.Input("text"))
    outputs = (io.String.Output("beyond_reach"), io.String.Output("words"), io.String.Output("pieces"))

    @classmethod
    def execute(cls, clip: Any, text: str) -> io.NodeOutput:
        patcher = clip.patcher
        reached = {f"{entry[2]}.{name}" for entry in patcher._load_list() for name in entry[4]}
        castable = {name for name, module in patcher.model.named_modules() if hasattr(module, "comfy_cast_weights")}
        beyond = [
            name
            for name, _ in patcher.model.named_parameters()
            if name not in reached or name.rpartition(".")[0] not in castable
        ]
        sections = clip.tokenize(text, return_word_ids=True)
        words = [entry[2] for section in sections.values() for entry in section[0]]
        pieces = [piece for section in sections.values() for _, piece in clip.tokenizer.untokenize(section[0])]
        return io.NodeOutput(json.dumps(beyond), json.dumps(words), json.dumps(pieces))


class ProbeCounter(Probe):
    """Passes a CLIP on and counts, from then on, how often its vision tower and its language model run."""

    calls: ClassVar[dict[str, int]] = {}

    inputs = (io.Clip.Input("clip"),)
    outputs = (io.Clip.Output(),)

    @classmethod
    def execute(cls, clip: Any) -> io.NodeOutput:
        for name in ("vision", "decoder"):
            ProbeCounter.calls[name] = 0

            def count(*_: Any, name: str = name) -> None:
                ProbeCounter.calls[name] += 1

            module = getattr(clip.cond_stage_model.model, name)
            if not hasattr(module, "probe_counter"):  # the same encoder may come by again
                module.probe_counter = module.register_forward_hook(count)
        return io.NodeOutput(clip)


class ProbeCount(Probe):
    """Shows what ProbeCounter has counted since it was last shown, in every run anew."""

    inputs = (io.Conditioning.Input("after"),)
    outputs = (io.String.Output(),)
    runs_every_time = True

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> float:
        return float("nan")

    @classmethod
    def execute(cls, after: Any) -> io.NodeOutput:
        counted = dict(ProbeCounter.calls)
        ProbeCounter.calls.update(dict.fromkeys(counted, 0))
        return io.NodeOutput(json.dumps(counted))


class ProbePartly(Probe):
    """Encodes with no more of the text encoder loaded than `share` of its size, as ComfyUI does where memory is short.

    `patched` also patches every matrix of the attention, as a LoRA for this encoder would.
    """

    inputs = (
        io.Clip.Input("clip"),
        io.Image.Input("image"),
        io.String.Input("text"),
        io.Float.Input("share"),
        io.Boolean.Input("patched"),
    )
    outputs = (io.Conditioning.Output(), io.String.Output("loaded"))

    @classmethod
    def execute(cls, clip: Any, image: torch.Tensor, text: str, share: float, patched: bool) -> io.NodeOutput:
        clip, manager = clip.clone(), comfy.model_management
        encoder, patcher = clip.cond_stage_model, clip.patcher
        generator = torch.Generator().manual_seed(3)
        for name, weight in encoder.named_parameters():
            if patched and weight.ndim == 2 and ".attention." in name:
                change = torch.randn(weight.shape, generator=generator) * 0.1
                patcher.add_patches({name: ("diff", (change,))})
        tokens = clip.tokenize(text, images=[preprocess(image[0], encoder)])
        manager.unload_all_models()
        encoder.load_sd({})  # forgets what was encoded before
        patcher.partially_load(patcher.load_device, int(share * patcher.model_size()))
        try:
            condition, _ = encoder.encode_token_weights(tokens)
            shares = patcher.loaded_size() / patcher.model_size(), encoder.model_lowvram
        finally:
            patcher.detach()
            encoder.load_sd({})
        return io.NodeOutput([[condition, {}]], json.dumps(shares))


def preprocess(image: torch.Tensor, encoder: Any) -> torch.Tensor:
    """A picture as the encoder's tokenizer takes it, by the pack's own code, whatever name ComfyUI gave the pack."""
    images = importlib.import_module(encoder.model.__module__.rpartition(".")[0] + ".images")
    return images.preprocess_image(image, encoder.model.config.vision.image_size)


class ProbeJoin(Probe):
    """Encodes the tokens of two prompts as two sections of one, as packs with a BREAK keyword do."""

    inputs = (io.Clip.Input("clip"), io.String.Input("first"), io.String.Input("second"))
    outputs = (io.Conditioning.Output(),)

    @classmethod
    def execute(cls, clip: Any, first: str, second: str) -> io.NodeOutput:
        tokens, more = clip.tokenize(first), clip.tokenize(second)
        for key in tokens:
            tokens[key] += more[key]
        return io.NodeOutput(clip.encode_from_tokens_scheduled(tokens))


class ProbeOtherPack(Probe):
    """Uses a CLIP in one of the ways in which packs do that were written for CLIP's own encoders."""

    inputs = (io.Clip.Input("clip"), io.String.Input("way"), io.Image.Input("image"))
    outputs = (io.Conditioning.Output(),)

    @classmethod
    def execute(cls, clip: Any, way: str, image: torch.Tensor) -> io.NodeOutput:
        tokens = clip.tokenize("a dog at the beach", return_word_ids=True)
        ways = {
            "index l": lambda: tokens["l"],
            "own tokens": lambda: clip.encode_from_tokens({"l": [[(320, 1.0)]]}),
            "more tokens": lambda: clip.encode_from_tokens({**tokens, "g": [[(320, 1.0)]]}),
            "part": lambda: clip.cond_stage_model.clip_l.transformer,
            "tokenizer's part": lambda: clip.tokenizer.clip_l.embedding_directory,
            "generate": lambda: clip.cond_stage_model.generate(tokens),
            "padding": lambda: cls.changed(clip, tokens, lambda section: [*section, (49407, 1.0, 0)]),
            "negative weight": lambda: cls.changed(clip, tokens, lambda section: [(e[0], -1.0) for e in section]),
            "vector": lambda: cls.changed(clip, tokens, lambda section: [(torch.zeros(768), 1.0), *section]),
            "nothing": lambda: cls.changed(clip, tokens, lambda _: []),
            "list": lambda: clip.tokenize(["a dog", "a cat"]),
            "images": lambda: clip.tokenize("a dog <i>", images=[image]),
            "optional parts": lambda: cls.optional(clip, tokens),
            "each key": lambda: clip.encode_from_tokens({key: list(tokens[key]) for key in tokens}),
            "pooled": lambda: clip.encode_from_tokens(tokens, return_pooled="unprojected")[0],
            "option": lambda: clip.encode_from_tokens(clip.tokenize("a dog at the beach", llama_template="{}")),
            "a copy": lambda: clip.encode_from_tokens(
                copy.copy(clip.tokenizer).tokenize_with_weights("a dog at the beach")
            ),
        }
        result = ways[way]()
        return io.NodeOutput([[result, {}]])

    @staticmethod
    def changed(clip: Any, tokens: Any, change: Any) -> torch.Tensor:
        return clip.encode_from_tokens({key: [change(section) for section in tokens[key]] for key in tokens})

    @staticmethod
    def optional(clip: Any, tokens: Any) -> torch.Tensor:
        """As packs ask that know several kinds of encoders."""
        if "l" in tokens or tokens.get("g") or hasattr(clip.cond_stage_model, "clip_l"):
            raise RuntimeError("taken for CLIP")
        if getattr(clip.tokenizer, "clip_g", None) is not None:
            raise RuntimeError("taken for SDXL")
        with contextlib.suppress(KeyError):
            return tokens["g"]
        return clip.encode_from_tokens(tokens)


class ProbeAnyImage(Probe):
    """Pictures and masks of any shape and kind, as nodes of other packs may send them."""

    inputs = (
        io.Int.Input("count"),
        io.Int.Input("height"),
        io.Int.Input("width"),
        io.Int.Input("channels"),
        io.String.Input("kind"),
    )
    outputs = (io.Image.Output(), io.Mask.Output("mask"))

    @classmethod
    def execute(cls, count: int, height: int, width: int, channels: int, kind: str) -> io.NodeOutput:
        shape = (count, height, width, channels)
        generator = torch.Generator().manual_seed(1)
        image = torch.zeros(shape) if height * width > 10**7 else torch.rand(shape, generator=generator)
        if kind in ("nan", "infinite"):
            image[:, 0] = float("nan" if kind == "nan" else "inf")
        elif kind == "out of range":
            image = image * 1000 - 500
        elif kind == "half":
            image = image.half()
        return io.NodeOutput(image, (torch.rand((count, height, width), generator=generator) > 0.7).float())


class ProbeAnything(Probe):
    """A text that may be linked to any input, such as a choice, as other packs' switches give it."""

    inputs = (io.String.Input("text"),)
    outputs = (io.AnyType.Output(),)

    @classmethod
    def execute(cls, text: str) -> io.NodeOutput:
        return io.NodeOutput(text)


class ProbeMadeConditioning(Probe):
    """A conditioning of any shape with one value in all places."""

    inputs = (io.Int.Input("slots"), io.Int.Input("width"), io.Float.Input("value"))
    outputs = (io.Conditioning.Output(),)

    @classmethod
    def execute(cls, slots: int, width: int, value: float) -> io.NodeOutput:
        return io.NodeOutput([[torch.full((1, slots, width), value), {}]])


class ProbeExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return Probe.__subclasses__()


async def comfy_entrypoint() -> ProbeExtension:
    return ProbeExtension()
