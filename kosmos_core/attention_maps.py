"""Where the words and pictures of a prompt went: into the 77 slots of the condition, and from there into the image.

Slots from tokens: AlignerNet's cross-attention, averaged over layers and heads (slots x tokens), and over the readings
that a weighted prompt takes. Image from slots: the
U-Net's cross-attention (pixels x slots). Their product says how much of each place of the image came from each word or
picture. The aligner's encoder has mixed the tokens before, so the maps tell the main flow, not all of it.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .emphasis import readings
from .prompt import ImageMark
from .tokenizer import Layout, Tokenizer

LARGEST_MAP = 64  # longest side of a recorded map; larger ones are shrunk
TRACE_BYTES = 512 * 2**20  # a trace that holds this much records nothing new
WORD_START = "▁"  # SentencePiece's mark of a piece that begins a word


@dataclass(frozen=True)
class TokenGroup:
    """A word or a picture (its `slot` number, else None) with the places of its tokens in the sequence."""

    label: str
    tokens: tuple[int, ...]
    slot: int | None = None


def token_groups(layout: Layout, tokenizer: Tokenizer) -> list[TokenGroup]:
    """The words and pictures of a prompt in order, with the start token first; together they hold every token once."""
    groups = [TokenGroup("(start)", (0,))]
    for span in layout.spans:
        if isinstance(span.segment, ImageMark):
            groups.append(TokenGroup(f"<i{span.segment.slot}>", tuple(range(span.start, span.stop)), span.segment.slot))
            continue
        for token in range(span.start, span.stop):
            piece = tokenizer.piece(layout.token_ids[token])
            word = piece.replace(WORD_START, "")
            last = groups[-1]
            if piece.startswith(WORD_START) or last.slot is not None or last.tokens == (0,):
                groups.append(TokenGroup(word, (token,)))
            else:
                groups[-1] = TokenGroup(last.label + word, (*last.tokens, token))
    return _without_bare_spaces(groups)


def _without_bare_spaces(groups: list[TokenGroup]) -> list[TokenGroup]:
    """A piece that is a space alone goes to the group after it, or at the end to the one before."""
    merged: list[TokenGroup] = []
    pending: tuple[int, ...] = ()
    for group in groups:
        if not group.label:
            pending += group.tokens
            continue
        merged.append(TokenGroup(group.label, pending + group.tokens, group.slot))
        pending = ()
    if pending:
        merged[-1] = TokenGroup(merged[-1].label, merged[-1].tokens + pending, merged[-1].slot)
    return merged


@dataclass
class SlotAttention:
    """Collects the attention of a query decoder's queries to its memory while `recorded` is active."""

    layers: list[Tensor] = field(default_factory=list)

    def mean(self) -> Tensor:
        """Mean over layers and heads, (readings, slots, tokens); every row sums to 1.

        A prompt without weights is one reading, a weighted one has several (see `emphasis`).
        """
        return torch.stack(self.layers).mean(0)

    def of_prompt(self, weights: Sequence[float]) -> Tensor:
        """Mean over the readings of one prompt whose tokens have these weights, (slots, tokens); rows sum to 1."""
        # In the model weights are float32, where two that differ in double precision may be one.
        shares = [reading.share for reading in readings(torch.tensor(weights, dtype=torch.float32).tolist())]
        return torch.einsum("r,rst->st", torch.tensor(shares), self.mean())


@contextlib.contextmanager
def recorded(query_decoder: nn.Module) -> Iterator[SlotAttention]:
    """Record the cross-attention of a QueryDecoder while the context is open; ValueError for several packed prompts."""
    attention = SlotAttention()

    def record(module: nn.Module, arguments: tuple) -> None:
        x, memory, pattern = arguments
        if pattern.lengths is not None:
            raise ValueError("attention is recorded for one prompt at a time, not for packed ones")
        kind = getattr(module.q_proj, "compute_dtype", None) or module.q_proj.weight.dtype
        query, key = module.q_proj(x.to(kind)), module.k_proj(memory.to(kind))
        weights = _weights(query, key, module.heads, pattern.key_bias)
        attention.layers.append(weights.mean(1).cpu())

    hooks = [block.cross_attention.register_forward_pre_hook(record) for block in query_decoder.blocks]
    try:
        yield attention
    finally:
        for hook in hooks:
            hook.remove()


def _weights(query: Tensor, key: Tensor, heads: int, bias: Tensor | None = None) -> Tensor:
    """(b, n, d) x (b, m, d) -> attention (b, heads, n, m) in float32."""
    query, key = (rearrange(x.float(), "b n (h d) -> b h n d", h=heads) for x in (query, key))
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    if bias is not None:
        scores = scores + bias[:, None, None, :].float()
    return scores.softmax(-1)


@dataclass
class Trace:
    """Sums of one sampling's cross-attention over blocks and steps, for each condition and image of the batch.

    Maps larger than 64 x 64 are shrunk to it, so an image takes at most 1.7 MB per condition whatever its size or the
    number of steps; past 512 MB in all nothing new is recorded, and `full` says so. `tiled` says that the U-Net saw
    parts whose place in the image was not known.
    """

    conditions: list[Tensor] = field(default_factory=list)  # (slots, width) each, distinct
    sums: dict[tuple[int, int, tuple[int, int]], Tensor] = field(default_factory=dict)
    counts: dict[tuple[int, int, tuple[int, int]], Tensor] = field(default_factory=dict)  # (h, w) each
    opacities: dict[tuple[int, int], Tensor] = field(default_factory=dict)  # only where a condition has a place
    bytes_recorded: int = 0
    full: bool = False
    tiled: bool = False

    def add(
        self,
        query: Tensor,
        key: Tensor,
        heads: int,
        context: Tensor,
        size: tuple[int, int],
        image: int,
        place: Place | None = None,
    ) -> None:
        """Add one call of one block for one image: query (1, h w, d), key (1, slots, d), context (1, slots, width).

        `size` is (h, w), `image` the number of the image in the batch that is sampled, `place` the part of the image
        that the U-Net was shown, where that is not all of it.
        """
        condition = self._condition(context[0])
        attention = rearrange(_weights(query, key, heads).mean(1)[0], "(h w) s -> s h w", h=size[0])
        attention = _shrunk(attention)
        opacity = None
        if place is not None:
            attention, opacity = place.pasted(attention)
        entry = (condition, image, (attention.shape[1], attention.shape[2]))
        if entry not in self.sums:
            if self.bytes_recorded + attention.numel() * 4 > TRACE_BYTES:
                self.full = True
                return
            self.bytes_recorded += attention.numel() * 4
            self.sums[entry] = torch.zeros_like(attention, device="cpu")
            self.counts[entry] = torch.zeros(attention.shape[1:])
        self.sums[entry] += attention.cpu()
        self.counts[entry] += 1 if opacity is None else opacity.cpu()
        shown = torch.ones(1, 1) if place is None else place.opacity.cpu()
        known = self.opacities.get(entry[:2], shown)
        if known.shape != shown.shape:
            known, shown = (
                torch.broadcast_tensors(known, shown) if 1 in (known.numel(), shown.numel()) else (shown,) * 2
            )
        self.opacities[entry[:2]] = torch.maximum(known, shown)

    def _condition(self, context: Tensor) -> int:
        for index, known in enumerate(self.conditions):
            if known.shape == context.shape and torch.equal(known, context.to(known.device)):
                return index
        self.conditions.append(context.detach().cpu().clone())
        self.bytes_recorded += context.numel() * context.element_size()
        return len(self.conditions) - 1

    @property
    def images(self) -> int:
        """Number of images that were sampled together."""
        return 1 + max((image for _, image, _ in self.sums), default=-1)

    def nearest(self, condition: Tensor, image: int | None = None) -> tuple[int, float]:
        """Index of the recorded condition closest to `condition` (slots, width), and their distance per unit of norm.

        With `image` only conditions of that image of the batch are looked at. It is seldom equal: the U-Net may have
        read it in half precision, or blended with another condition. ValueError for an empty trace.
        """
        if not self.conditions:
            raise ValueError(
                "The trace is empty: sample with the model that records into it, in the steps that are recorded."
            )
        candidates = {index for index, number, _ in self.sums if image is None or number == image}
        if not candidates:
            raise ValueError(f"The trace holds nothing of picture {(image or 0) + 1} of the batch.")

        def distance(known: Tensor) -> float:
            slots = min(len(known), len(condition))
            asked = condition[:slots].float().cpu()
            return float((known[:slots].float() - asked).norm() / asked.norm().clamp(min=1e-12))

        distances = {index: distance(self.conditions[index]) for index in sorted(candidates)}
        index = min(distances, key=distances.__getitem__)
        return index, distances[index]

    def map(self, condition: int, image: int, size: tuple[int, int]) -> Tensor:
        """Mean attention of a condition in one image, (slots, h, w) at `size`.

        Every place sums to 1 over the slots, or to 0 where the condition does not act. Each map size has the same say,
        whatever the number of its blocks.
        """
        maps, counts = [], []
        for entry, total in self.sums.items():
            if entry[:2] == (condition, image):
                count = self.counts[entry]
                mean = torch.where(count > 0, total / count.clamp(min=1e-6), 0)
                maps.append(F.interpolate(mean[None], size=size, mode="bilinear")[0])
                counts.append(count)
        if not maps:
            raise ValueError(f"The trace holds nothing of picture {image + 1} of the batch for this prompt.")
        mean = torch.stack(maps).mean(0)
        if all(bool((count > 0).all()) for count in counts):
            return mean
        return mean / mean.sum(0, keepdim=True).clamp(min=1e-6)

    def opacity(self, condition: int, image: int, size: tuple[int, int]) -> Tensor:
        """How much a condition acts at each place of an image, (h, w) at `size`: 1 all over where it has no place."""
        return F.interpolate(self.opacities[condition, image][None, None], size=size, mode="nearest")[0, 0]


@dataclass(frozen=True)
class Place:
    """The part of an image that a condition acts on.

    `opacity` (h, w) in 0..1 covers the whole image, in latent pixels, and is 0 outside; `box` is the (top, left,
    height, width) in it that the U-Net was shown.
    """

    opacity: Tensor
    box: tuple[int, int, int, int]

    def pasted(self, attention: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (slots, h, w) of the box as maps of the whole image, at most 64 x 64, and the opacity at their size.

        The maps are multiplied by it, so that the sum of several over that of their opacities is their mean.
        """
        top, left, height, width = self.box
        whole = self.opacity.shape
        scale = min(1, attention.shape[1] / height, LARGEST_MAP / max(whole))
        size = tuple(max(1, round(side * scale)) for side in whole)
        down, across = size[0] / whole[0], size[1] / whole[1]
        first, start = min(int(top * down), size[0] - 1), min(int(left * across), size[1] - 1)
        last = max(first + 1, min(size[0], math.ceil((top + height) * down)))
        stop = max(start + 1, min(size[1], math.ceil((left + width) * across)))
        inner = (last - first, stop - start)
        canvas = attention.new_zeros(len(attention), *size)
        canvas[:, first:last, start:stop] = F.interpolate(attention[None], size=inner, mode="bilinear")[0]
        opacity = self.opacity.to(attention)[None]
        at_size = F.adaptive_max_pool2d(opacity, size)[0]
        inside = torch.zeros_like(at_size)
        inside[first:last, start:stop] = 1
        at_size = at_size * inside
        return canvas * at_size, at_size


def _shrunk(attention: Tensor) -> Tensor:
    """Maps (slots, h, w) with no side above LARGEST_MAP."""
    longest = max(attention.shape[1:])
    if longest <= LARGEST_MAP:
        return attention
    scale = LARGEST_MAP / longest
    height, width = (max(1, round(side * scale)) for side in attention.shape[1:])
    return F.adaptive_avg_pool2d(attention, (height, width))


def group_maps(pixels_from_slots: Tensor, slots_from_tokens: Tensor, groups: Sequence[TokenGroup]) -> Tensor:
    """(slots, h, w) and (slots, tokens) -> what each group gave to each place, (groups, h, w); places sum to 1.

    Slots beyond the prompt's own (a concatenated CLIP condition) belong to no group and are left out.
    """
    slots = min(len(pixels_from_slots), len(slots_from_tokens))
    shares = slots_from_group(slots_from_tokens, groups)[:slots]
    maps = torch.einsum("shw,sg->ghw", pixels_from_slots[:slots], shares)
    return maps / maps.sum(0, keepdim=True).clamp(min=1e-12)


def slots_from_group(slots_from_tokens: Tensor, groups: Sequence[TokenGroup]) -> Tensor:
    """(slots, tokens) -> (slots, groups); rows sum to 1."""
    owner = torch.tensor(
        list(itertools.chain.from_iterable([index] * len(group.tokens) for index, group in enumerate(groups)))
    )
    order = torch.tensor(list(itertools.chain.from_iterable(group.tokens for group in groups)))
    shares = torch.zeros(len(slots_from_tokens), len(groups))
    return shares.index_add_(1, owner, slots_from_tokens[:, order].float())
