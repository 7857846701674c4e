"""Weights of other projects, renamed to ours: Kosmos-2's, and the vision tower of CLIP (transformers or open_clip).

Kosmos-2 (arXiv 2306.14824) is Kosmos-G's relative: the same Magneto decoder with the same positions, the same resampler
and CLIP ViT-L/14, a vocabulary with the same pieces and more behind them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import safetensors
import torch
from torch import Tensor

from kosmos_core import KosmosGConfig, Tokenizer
from kosmos_core.config import VisionConfig

ATTENTION = {f"{name}_proj": f"{name}_proj" for name in ("q", "k", "v", "out")}
DECODER_BLOCK = {
    **{f"self_attn.{old}": f"attention.{new}" for old, new in ATTENTION.items()},
    "self_attn.inner_attn_ln": "attention.inner_norm",
    "self_attn_layer_norm": "attention_norm",
    "ffn.fc1": "feed_forward.fc1",
    "ffn.fc2": "feed_forward.fc2",
    "ffn.ffn_layernorm": "feed_forward.inner_norm",
    "final_layer_norm": "feed_forward_norm",
}
TRANSFORMERS_VISION_BLOCK = {
    **{f"self_attn.{old}": f"attention.{new}" for old, new in ATTENTION.items()},
    "layer_norm1": "attention_norm",
    "layer_norm2": "feed_forward_norm",
    "mlp.fc1": "feed_forward.fc1",
    "mlp.fc2": "feed_forward.fc2",
}
OPEN_CLIP_VISION_BLOCK = {
    **{f"attn.{old}": f"attention.{new}" for old, new in ATTENTION.items()},
    "ln_1": "attention_norm",
    "ln_2": "feed_forward_norm",
    "mlp.c_fc": "feed_forward.fc1",
    "mlp.c_proj": "feed_forward.fc2",
}
TRANSFORMERS_VISION = {
    "embeddings.class_embedding": "class_embedding.weight",
    "embeddings.patch_embedding": "patch_embedding",
    "embeddings.position_embedding": "positions",
    "pre_layrnorm": "norm_pre",  # so spelled there
    "post_layernorm": "norm_post",
}
OPEN_CLIP_VISION = {
    "class_embedding": "class_embedding.weight",
    "positional_embedding": "positions.weight",
    "conv1": "patch_embedding",
    "ln_pre": "norm_pre",
    "ln_post": "norm_post",
}
KOSMOS2_REST = {
    "text_model.model.embed_tokens": "decoder.embedding",
    "text_model.model.layer_norm": "decoder.norm",
    "image_to_text_projection.dense": "resampler.dense",
    "image_to_text_projection.latent_query": "resampler.latents.weight",
    **{f"image_to_text_projection.x_attn.{old}": f"resampler.attention.{new}" for old, new in ATTENTION.items()},
}


@dataclass
class Mapped:
    """Tensors of another project under our names.

    Attributes:
        unused: names of tensors that the model has no place for.
        notes: sentences for the user.
        parts: the parts of the model that these weights are for.
        rows: for a table of which only some rows are given, their numbers and these rows.
    """

    weights: dict[str, Tensor]
    unused: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    parts: tuple[str, ...] = ("vision", "resampler", "decoder", "aligner")
    rows: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, or of a transformers folder, shards included; ValueError where they cannot be read."""
    files = [path]
    if path.is_dir():
        files = sorted(path.glob("model*.safetensors")) or sorted(path.glob("pytorch_model*.bin"))
        if not files:
            raise ValueError(
                f"{path} holds neither model.safetensors nor pytorch_model.bin; give a transformers folder."
            )
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            if file.suffix == ".safetensors":
                with safetensors.safe_open(file, framework="pt") as opened:
                    tensors |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no dictionary)
            else:
                content = torch.load(file, map_location="cpu", weights_only=True)
                content = content.get("state_dict", content)
                tensors |= {name: tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}
        except Exception as e:  # pickle, zip, safetensors and torch each raise errors of their own
            reason = str(e).split("\n")[0]
            raise ValueError(f"{file} cannot be read as weights ({reason}); give a .safetensors file.") from e
    return tensors


def clip_vision(path: Path, sizes: VisionConfig) -> Mapped:
    """CLIP's vision tower from a transformers folder or file (vision_model...), or an open_clip file (visual...).

    Raises ValueError where it holds no vision tower or one of another depth.
    """
    tensors = read_tensors(path)
    transformers = any(name.endswith("embeddings.patch_embedding.weight") for name in tensors)
    # transformers 5 saves a vision tower on its own without a prefix.
    whole = transformers and "embeddings.patch_embedding.weight" in tensors
    prefix = "" if whole else "vision_model." if transformers else "visual."
    inside = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    weights, unused = _vision(inside, transformers)
    if not weights:
        raise ValueError(
            f"{path} holds no CLIP vision tower; give a transformers folder of a CLIP model or an "
            "open_clip weight file."
        )
    depth = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
    if depth != sizes.layers:
        raise ValueError(
            f"the vision tower of {path} has {depth} blocks, this run's has {sizes.layers}; give "
            "OpenAI's ViT-L/14, or change model.vision."
        )
    return Mapped({f"vision.{name}": tensor for name, tensor in weights.items()}, unused, parts=("vision",))


def _vision(tensors: Mapping[str, Tensor], transformers: bool) -> tuple[dict[str, Tensor], list[str]]:
    """A vision tower's tensors under our names, without the `vision.` in front, and the names of the others."""
    stack, block, rest = (
        ("encoder.layers", TRANSFORMERS_VISION_BLOCK, TRANSFORMERS_VISION)
        if transformers
        else ("transformer.resblocks", OPEN_CLIP_VISION_BLOCK, OPEN_CLIP_VISION)
    )
    weights, unused = {}, []
    for name, tensor in tensors.items():
        if packed := re.fullmatch(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)", name):
            for part, third in zip("qkv", tensor.chunk(3), strict=True):
                weights[f"blocks.{packed[1]}.attention.{part}_proj.{packed[2]}"] = third
        elif new := _renamed(name, {stack: "blocks"}, block) or _renamed(name, {}, rest):
            weights[new] = tensor.reshape(1, -1) if new == "class_embedding.weight" else tensor
        else:
            unused.append(name)
    return weights, unused


def _renamed(name: str, stacks: Mapping[str, str], parts: Mapping[str, str]) -> str | None:
    """The name with its stack and part translated; None where it has none of them."""
    start = ""
    for old, new in stacks.items():
        if found := re.match(rf"{re.escape(old)}\.(\d+)\.", name):
            start, name = f"{new}.{found[1]}.", name[found.end() :]
    if bool(stacks) != bool(start):
        return None
    for old, new in parts.items():
        if name == old or name.startswith(f"{old}."):
            return start + new + name[len(old) :]
    return None


def missing_weights(path: Path) -> str:
    """The sentence for a weight file or folder that is not there: its name, and how a Kosmos-2 folder is fetched."""
    return (
        f"{path} does not exist. Give a Kosmos-G file or a Kosmos-2 folder; the latter comes by "
        f"hf download microsoft/kosmos-2-patch14-224 --local-dir {path}"
    )


def is_kosmos2(folder: Path) -> bool:
    """Whether a folder is a Kosmos-2 model as transformers saves it."""
    try:
        return json.loads((folder / "config.json").read_text()).get("model_type") == "kosmos-2"
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def kosmos2(folder: Path, sizes: KosmosGConfig, tokenizer: Tokenizer) -> Mapped:
    """Decoder, resampler and vision tower of a Kosmos-2 folder; embeddings are matched by their pieces' names.

    Pieces that Kosmos-2 lacks keep their initialisation. Raises ValueError where the folder is none of Kosmos-2.
    """
    if not is_kosmos2(folder):
        raise ValueError(
            f"{folder} is no Kosmos-2 model (its config.json does not say model_type kosmos-2); give a "
            f"transformers folder (hf download microsoft/kosmos-2-patch14-224 --local-dir {folder}), or a Kosmos-G "
            "file."
        )
    described = json.loads((folder / "config.json").read_text())
    text = described.get("text_config")
    heads = text.get("attention_heads", 32) if isinstance(text, dict) else 32
    if heads != sizes.decoder.heads or heads != sizes.resampler.heads:
        raise ValueError(
            f"{folder} has {heads} attention heads; set model.decoder.heads and model.resampler.heads to that."
        )
    weights: dict[str, Tensor] = {}
    unused: list[str] = []
    tower: dict[str, Tensor] = {}
    for name, tensor in read_tensors(folder).items():
        if name.startswith("vision_model.model."):
            tower[name.removeprefix("vision_model.model.")] = tensor
        elif new := _renamed(name, {"text_model.model.layers": "decoder.blocks"}, DECODER_BLOCK) or _renamed(
            name, {}, KOSMOS2_REST
        ):
            weights[new] = tensor
        elif name != "text_model.lm_head.weight":  # tied to the embedding, as here
            unused.append(name)
    vision, left = _vision(tower, transformers=True)
    weights |= {f"vision.{name}": tensor for name, tensor in vision.items()}
    mapped = Mapped(weights, unused + [f"vision_model.model.{name}" for name in left])
    _bridge_vocabulary(mapped, folder, tokenizer)
    return mapped


def _bridge_vocabulary(mapped: Mapped, folder: Path, tokenizer: Tokenizer) -> None:
    """Turn Kosmos-2's embedding table into rows for those of our pieces that it has."""
    table = mapped.weights.pop("decoder.embedding.weight", None)
    if table is None or table.dim() != 2:
        raise ValueError(f"{folder} has no table of embeddings; copy the folder anew.")
    theirs = _pieces(folder)
    names = enumerate(map(tokenizer.piece, range(tokenizer.vocabulary)))
    shared = [(number, theirs[piece]) for number, piece in names if theirs.get(piece, len(table)) < len(table)]
    if not shared:
        raise ValueError(f"{folder} shares no piece with the tokenizer; give the folder that its tokenizer is from.")
    ours, rows = (torch.tensor(column) for column in zip(*shared, strict=True))
    mapped.rows["decoder.embedding.weight"] = (ours, table[rows])
    missing = sorted(set(range(tokenizer.vocabulary)) - set(ours.tolist()))
    mapped.notes.append(
        f"vocabulary: {len(shared)} of {tokenizer.vocabulary} pieces taken over by name, "
        f"{sum(a == b for a, b in shared)} of them at the same id; {len(table) - len(shared)} of Kosmos-2's not used"
    )
    if missing:
        shown = ", ".join(repr(tokenizer.piece(number)) for number in missing[:5])
        mapped.notes.append(f"vocabulary: {len(missing)} pieces initialised anew, such as {shown}")


def _pieces(folder: Path) -> dict[str, int]:
    """Id of each of a Kosmos-2 folder's pieces, tags such as <image> included."""
    try:
        described = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        ids = {piece: number for number, (piece, _) in enumerate(described["model"]["vocab"])}
        ids |= {token["content"]: token["id"] for token in described["added_tokens"]}
        if not all(type(number) is int and number >= 0 for number in ids.values()):
            raise ValueError("an id that is no number")
        return ids
    except FileNotFoundError:
        pass
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{folder / 'tokenizer.json'} cannot be read ({error}); copy the folder anew.") from error
    model = folder / "sentencepiece.bpe.model"
    if not model.is_file():
        raise ValueError(
            f"{folder} has neither tokenizer.json nor sentencepiece.bpe.model, so that its embeddings cannot "
            "be matched to pieces; copy the folder anew."
        )
    own = Tokenizer.from_files(model)
    return {own.piece(number): number for number in range(own.vocabulary)}
