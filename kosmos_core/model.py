"""Kosmos-G: text and pictures, interleaved, to the 77 x 768 condition of Stable Diffusion 1.5."""

from __future__ import annotations

import hashlib
import itertools
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .aligner import AlignerNet
from .config import KosmosGConfig
from .decoder import Decoder
from .images import preprocess_image
from .initialization import initialize
from .prompt import Prompt
from .reference import Reference, View, image_embeddings, with_references
from .remembered import computation_state
from .resampler import Resampler
from .tokenizer import Layout, MissingTokenizerError, Tokenizer
from .vision import VisionTower
from .weight_file import WeightFile

CACHED_IMAGES = 64  # 0.5 MB each at the official width
# Of the largest tensor of a pass of `encode`. Above it glibc takes memory from the system for each tensor anew, which
# cost 64 prompts of 8 to 512 tokens four seconds; smaller passes are no faster.
PASS_BYTES = 2**25


class KosmosG(nn.Module):
    """The whole model (paper section 2): vision tower, resampler, language model and AlignerNet.

    Every module takes `device`, `dtype` and `operations`: torch.nn, or a namespace with layers of the same names that
    cast their weights. Weights are as the layers make them; call `initialize(seed)` to train from scratch, or use
    `load_model`.
    """

    def __init__(
        self,
        config: KosmosGConfig,
        *,
        tokenizer: Tokenizer | None = None,
        device: Any = None,
        dtype: Any = None,
        operations: Any = nn,
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype, "operations": operations}
        width = config.decoder.width
        self.config = config
        self.tokenizer = tokenizer
        self.vision = VisionTower(config.vision, **factory)
        self.resampler = Resampler(config.resampler, config.vision.width, width, **factory)
        self.decoder = Decoder(config.decoder, **factory)
        self.aligner = AlignerNet(config.aligner, width, **factory) if config.aligner else None
        self.file: WeightFile | None = None  # the one that the weights were loaded from
        self._cached_images: OrderedDict[bytes, Tensor] = OrderedDict()
        self._cached_state: bytes | None = None  # under which all of them were computed

    def initialize(self, seed: int = 0, aligner_tables: float = 1.0) -> KosmosG:
        """Magneto initialisation in place; returns the model.

        `aligner_tables` is the deviation of AlignerNet's first queries and positions; 1 is the original's.
        """
        initialize(self, seed, aligner_tables)
        return self

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.decoder.norm.weight.device

    def embed_images(self, pixels: Tensor) -> Tensor:
        """CLIP-normalised pixels (n, 3, 224, 224) -> image embeddings (n, latents, width) float32."""
        return self.resampler(self.vision(pixels))

    def hidden_states(
        self,
        token_ids: Tensor,
        image_mask: Tensor | None = None,
        image_features: Tensor | None = None,
        lengths: Sequence[int] | None = None,
    ) -> Tensor:
        """Token ids (b, s), image_mask (b, s) bool and image embeddings (n, latents, width), which take the places
        that the mask marks, in order -> hidden states (b, s, width) float32 after the last norm.

        With `lengths` the one row (1, total) holds several sequences end to end, none of which sees another.
        """
        return self.decoder(token_ids, image_mask, image_features, lengths)

    def logits(self, hidden: Tensor) -> Tensor:
        """Next-token scores (b, s, vocabulary) of hidden states (b, s, width)."""
        return self.decoder.logits(hidden)

    def align(
        self,
        hidden: Tensor,
        padding_mask: Tensor | None = None,
        key_weights: Tensor | None = None,
        lengths: Sequence[int] | None = None,
    ) -> Tensor:
        """Hidden states (b, s, width) -> condition (b, 77, 768) float32.

        padding_mask (b, s) is True at pad tokens; key_weights (b, s) emphasise tokens (1 is neutral, 0 hides one, see
        `emphasis`); `lengths` as in `hidden_states`. Raises ValueError for a model of the first stage.
        """
        return self._aligner()(hidden, padding_mask, key_weights, lengths)

    def reconstruct(self, condition: Tensor, length: int) -> Tensor:
        """Condition (b, 77, 768) -> estimate of the hidden states (b, length, width), AlignerNet's training half."""
        return self._aligner().reconstruct(condition, length)

    def encode_tokens(
        self,
        token_ids: Tensor,
        pixels: Tensor | None = None,
        image_mask: Tensor | None = None,
        key_weights: Tensor | None = None,
        image_features: Tensor | None = None,
    ) -> Tensor:
        """Token ids (b, s), padded at the right with 1 -> condition (b, 77, 768) float32.

        Pictures come as pixels (n, 3, 224, 224) or as image embeddings (n, latents, width), with image_mask (b, s)
        True at their places. key_weights (b, s) emphasise tokens: 1 is neutral, 0 hides one.

        Rows of different length are laid end to end before they are computed, so that no work is spent on padding.
        Raises ValueError where a shape does not fit, or image embeddings and places of the mask differ in number.
        """
        _check_rows(token_ids, image_mask=image_mask, key_weights=key_weights)
        if pixels is not None:
            image_features = self.embed_images(pixels)
        steps = torch.arange(1, token_ids.shape[1] + 1, device=token_ids.device)
        # Up to the last token that is no padding: the model is causal.
        lengths = ((token_ids != self.config.ids.pad) * steps).amax(1).clamp(min=1).tolist()
        rows = (token_ids, image_mask, key_weights)
        if len(set(lengths)) == 1:
            rows = [None if x is None else x[:, : lengths[0]] for x in rows]
            lengths = None
        else:
            inside = steps <= torch.tensor(lengths, device=token_ids.device)[:, None]
            rows = [None if x is None else x[inside][None] for x in rows]
        return self._condition(*rows, image_features, lengths)

    def _condition(
        self,
        token_ids: Tensor,
        image_mask: Tensor | None,
        key_weights: Tensor | None,
        image_features: Tensor | None,
        lengths: list[int] | None,
    ) -> Tensor:
        """`encode_tokens` for rows of one length (b, s), or with `lengths` for rows laid end to end, (1, total)."""
        hidden = self.hidden_states(token_ids, image_mask, image_features, lengths)
        padding = token_ids == self.config.ids.pad
        return self.align(hidden, padding if bool(padding.any()) else None, key_weights, lengths)

    def forward(
        self,
        token_ids: Tensor,
        pixels: Tensor | None = None,
        image_mask: Tensor | None = None,
        *,
        output: Literal["condition", "hidden", "logits"] = "condition",
    ) -> Tensor:
        """`encode_tokens`, or the language model alone: its hidden states or, only when asked, its logits.

        Raises ValueError for another `output`.
        """
        if output not in ("condition", "hidden", "logits"):
            raise ValueError(f"output is {output!r}, expected condition, hidden or logits")
        if output == "condition":
            return self.encode_tokens(token_ids, pixels, image_mask)
        embeddings = None if pixels is None else self.embed_images(pixels)
        hidden = self.hidden_states(token_ids, image_mask, embeddings)
        return hidden if output == "hidden" else self.logits(hidden)

    @torch.no_grad()
    def encode(
        self, prompts: str | Prompt | Layout | Sequence[str | Prompt | Layout], images: Sequence[Any] | None = None
    ) -> Tensor:
        """Prompts with `<i>` marks and their pictures -> conditions (b, 77, 768) float32.

        `images` is a flat list that the marks use up in order, or one list per prompt; pictures are whatever
        `preprocess_image` takes, or a `Reference`, whose weight and noun go into the prompt. A negative prompt is a
        prompt like any other; "" gives the null condition. Many prompts go through the model in passes of bounded size.
        Raises ValueError where there is no prompt, marks and pictures do not match, the model has no tokenizer, or a
        reference from a file belongs to another model;
        TypeError for what is no prompt or no list of pictures.
        """
        prompts = list(prompts) if isinstance(prompts, list | tuple) else [prompts]
        if not prompts:
            raise ValueError('there is no prompt to encode; give at least one ("" gives the null condition)')
        layouts = [self._layout(prompt) for prompt in prompts]
        images = _images_per_prompt(prompts, layouts, images)
        layouts = [self._with_references(*row) for row in zip(prompts, layouts, images, strict=True)]
        embeddings = self._image_embeddings(layouts, images)
        conditions, first = [], 0
        for group in self._passes(layouts):
            count = sum(len(layout.image_slots) for layout in group)
            conditions.append(self._encode_together(group, embeddings[first : first + count] if count else None))
            first += count
        return conditions[0] if len(conditions) == 1 else torch.cat(conditions)

    def _passes(self, layouts: list[Layout]) -> list[list[Layout]]:
        """The prompts in groups, in order, that are computed together: as many as PASS_BYTES allow, or one."""
        allowed = PASS_BYTES // (4 * self.config.decoder.ffn_width)
        groups: list[list[Layout]] = []
        room = 0
        for layout in layouts:
            # AlignerNet reads a prompt once for each of its different weights.
            tokens = len(layout.token_ids) * len(set(layout.key_weights or [1.0]))
            if tokens > room or not groups:
                groups.append([])
                room = allowed
            groups[-1].append(layout)
            room -= tokens
        return groups

    def _encode_together(self, layouts: list[Layout], embeddings: Tensor | None) -> Tensor:
        """Conditions of prompts in one pass, their image embeddings in the order of the marks."""
        lengths = [len(layout.token_ids) for layout in layouts]
        same_length = len(set(lengths)) == 1

        def tensor(rows: list[list[Any]], dtype: torch.dtype) -> Tensor:
            rows = rows if same_length else [list(itertools.chain.from_iterable(rows))]
            return torch.tensor(rows, dtype=dtype, device=self.device)

        token_ids = tensor([layout.token_ids for layout in layouts], torch.long)
        image_mask = None if embeddings is None else tensor([layout.image_mask for layout in layouts], torch.bool)
        key_weights = None
        if any(layout.key_weights is not None for layout in layouts):
            key_weights = tensor([x.key_weights or [1.0] * len(x.token_ids) for x in layouts], torch.float32)
        return self._condition(token_ids, image_mask, key_weights, embeddings, None if same_length else lengths)

    @torch.no_grad()
    def image_embeddings(self, pixels: Tensor, device: Any = None) -> Tensor:
        """Image embeddings (latents, width) of one prepared picture (3, 224, 224), on the CPU, without gradient.

        In evaluation mode they are cached by the picture's content, and dropped when anything changes that decides what
        a picture gives: weights, however they were changed, their type, autocast. Pictures go through the vision tower
        one by one: what a picture gives never depends on its neighbours, so a cached result is bit-identical to a fresh
        one. `device` is where to compute when the weights lie elsewhere and are cast and moved layer by layer.
        """
        device = device or self.device
        return self._remembered_image(pixels, device, self._image_state(device))

    def _image_state(self, device: Any) -> bytes | None:
        """What the embeddings of a given picture depend on; None where no two results need be alike."""
        if self.training or self.vision.training or self.resampler.training:  # dropout is on
            return None
        return computation_state(device, self.vision, self.resampler)

    def _remembered_image(self, pixels: Tensor, device: Any, state: bytes | None) -> Tensor:
        if state is None:
            return self.embed_images(pixels[None].to(device))[0].cpu()
        if state != self._cached_state:
            self._cached_images.clear()
            self._cached_state = state
        pixels = pixels.to(torch.float32).cpu().contiguous()
        key = hashlib.blake2b(pixels.numpy().tobytes(), digest_size=16).digest()
        if key in self._cached_images:
            self._cached_images.move_to_end(key)
        else:
            self._cached_images[key] = self.embed_images(pixels[None].to(device))[0].cpu()
            if len(self._cached_images) > CACHED_IMAGES:
                self._cached_images.popitem(last=False)
        return self._cached_images[key]

    def _aligner(self) -> AlignerNet:
        if self.aligner is None:
            raise ValueError(
                "this model holds the first training stage only (no AlignerNet), so it gives no condition; "
                "train stage 2, or load a file of stage 2 or 3"
            )
        return self.aligner

    def required_tokenizer(self) -> Tokenizer:
        """The tokenizer; MissingTokenizerError where the weight file carried none."""
        if self.tokenizer is None:
            raise MissingTokenizerError()
        return self.tokenizer

    def _layout(self, prompt: str | Prompt | Layout) -> Layout:
        if isinstance(prompt, Layout):
            return prompt
        tokenizer = self.required_tokenizer()
        if tokenizer.vocabulary != self.config.decoder.vocabulary:
            raise ValueError(
                f"the tokenizer has a vocabulary of {tokenizer.vocabulary}, the model one of "
                f"{self.config.decoder.vocabulary}; use the tokenizer that the model was trained with"
            )
        return tokenizer.layout(prompt, self.config.resampler.latents)

    def _with_references(self, prompt: str | Prompt | Layout, layout: Layout, images: Sequence[Any]) -> Layout:
        """The layout with the weights and nouns of the references among a prompt's pictures."""
        references = [image if isinstance(image, Reference) else None for image in images]
        if all(reference is None or (reference.weight == 1 and not reference.noun) for reference in references):
            return layout
        if isinstance(prompt, Layout):
            raise TypeError("a Layout has no place for a reference's weight and noun; give the prompt in its place")
        prompt = prompt if isinstance(prompt, Prompt) else Prompt.original(prompt)
        return self._layout(with_references(prompt, references))

    def _image_embeddings(self, layouts: list[Layout], images: list[Sequence[Any]]) -> Tensor | None:
        embeddings = []
        size = self.config.vision.image_size
        shape = self.config.resampler.latents, self.config.decoder.width
        state = self._image_state(self.device) if any(layout.image_slots for layout in layouts) else None

        def embed(pixels: Tensor) -> Tensor:
            return self._remembered_image(pixels, self.device, state)

        for layout, own in zip(layouts, images, strict=True):
            sources = {
                slot: own[slot].source if isinstance(own[slot], Reference) else View(_one_image(own[slot]))
                for slot in set(layout.image_slots)
            }
            embeddings += [
                image_embeddings(sources[slot], size, embed, self._fingerprint, shape) for slot in layout.image_slots
            ]
        return torch.stack(embeddings).to(self.device) if embeddings else None

    def _fingerprint(self, whole: bool = False) -> str:
        """By which references from files know their model; ValueError where the weights are of no file."""
        if self.file is None:
            raise ValueError(
                "this model was not loaded from a file, so that references from files cannot be told to belong to it "
                "or not; save it, and load it with load_model"
            )
        return self.file.fingerprint(self, whole)


def _check_rows(token_ids: Tensor, **others: Tensor | None) -> None:
    """ValueError where token_ids are no rows of ids, or what goes with them has another shape."""
    shape = tuple(getattr(token_ids, "shape", ()))
    if len(shape) != 2 or 0 in shape or token_ids.dtype not in (torch.int64, torch.int32):
        found = f"shape {shape} and type {token_ids.dtype}" if isinstance(token_ids, Tensor) else f"{token_ids!r}"
        raise ValueError(f"token_ids have {found}, expected integers (b, s), such as torch.tensor([layout.token_ids])")
    for name, tensor in others.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected that of token_ids, {shape}")


def _one_image(image: Any) -> Any:
    """The picture of a batch of one, as which many programs hand a picture over; ValueError for several or none."""
    if getattr(image, "ndim", 0) != 4:
        return image
    if len(image) > 1:
        raise ValueError(f"a batch of {len(image)} pictures stands for one <i>; give them one by one")
    return image[0] if len(image) else preprocess_image(image)


def _images_per_prompt(prompts: list[Any], layouts: list[Layout], images: Sequence[Any] | None) -> list[Sequence[Any]]:
    """One list of pictures for each prompt, checked against the prompt's marks."""
    if isinstance(images, str) or (images is not None and not isinstance(images, Iterable)):
        raise TypeError(f"images is one {type(images).__name__}, expected a list of pictures, such as [picture]")
    if getattr(images, "ndim", 4) < 4:
        raise TypeError(f"images is one array {tuple(images.shape)}, expected a list of pictures, such as [picture]")
    images = list(images) if images is not None else []
    nested = bool(images) and all(isinstance(x, list | tuple) for x in images)
    if nested:
        if len(images) != len(prompts):
            raise ValueError(f"images hold {len(images)} lists for {len(prompts)} prompts; give one list per prompt")
        per_prompt = images
    else:
        per_prompt, rest = [], images
        for layout in layouts:
            count = len(set(layout.image_slots))
            per_prompt.append(rest[:count])
            rest = rest[count:]
        if rest:
            per_prompt[-1] = [*per_prompt[-1], *rest]
    for prompt, layout, own in zip(prompts, layouts, per_prompt, strict=True):
        used = set(layout.image_slots)
        if used and max(used) >= len(used) == len(own):
            unused = next(slot for slot in range(max(used)) if slot not in used)
            raise ValueError(
                f"the prompt '{prompt}' names picture {max(used) + 1} but never picture {unused + 1}; number its marks "
                "from 1, or parse it with the slots that hold a picture: Prompt.parse(text, slots=[...])"
            )
        if used != set(range(len(own))):
            raise ValueError(
                f"the prompt '{prompt}' has marks for {len(used)} picture(s), but {len(own)} came; "
                "give one picture for each <i>"
            )
    return per_prompt
