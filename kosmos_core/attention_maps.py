"""Where the words and pictures of a prompt went: into the 77 slots of the condition, and from there into the image.

Slots from tokens: AlignerNet's cross-attention, averaged over layers and heads (slots x tokens), and over the readings
that a weighted prompt takes. Image from slots: the
U-Net's cross-attention (pixels x slots). Their product says how much of each place of the image came from each word or
picture. The aligner's encoder has mixed the tokens before, so the maps tell the main flow, not all of it.
"""

from __future__ import annotations

import contextlib
import itertools
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
    """Sums of a U-Net's cross-attention over blocks and steps, for each condition and picture of the batch.

    Maps larger than 64 x 64 are shrunk to it, so a picture takes at most 1.7 MB per condition whatever its size or the
    number of steps; past 512 MB in all nothing new is recorded, and `full` says so.
    """

    conditions: list[Tensor] = field(default_factory=list)  # (slots, width) each, distinct
    sums: dict[tuple[int, int, tuple[int, int]], Tensor] = field(default_factory=dict)
    counts: dict[tuple[int, int, tuple[int, int]], int] = field(default_factory=dict)
    bytes_recorded: int = 0
    full: bool = False

    def clear(self) -> None:
        """Forget everything: a new sampling starts."""
        self.conditions, self.sums, self.counts = [], {}, {}
        self.bytes_recorded, self.full = 0, False

    def add(self, query: Tensor, key: Tensor, heads: int, context: Tensor, size: tuple[int, int], image: int) -> None:
        """Add one call of one block for one picture: query (1, h w, d), key (1, slots, d), context (1, slots, width).

        `size` is (h, w), `image` the number of the picture in the batch that is sampled.
        """
        condition = self._condition(context[0])
        attention = rearrange(_weights(query, key, heads).mean(1)[0], "(h w) s -> s h w", h=size[0])
        if max(size) > LARGEST_MAP:
            scale = LARGEST_MAP / max(size)
            smaller = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
            attention = F.adaptive_avg_pool2d(attention, smaller)
        place = (condition, image, (attention.shape[1], attention.shape[2]))
        if place not in self.sums:
            if self.bytes_recorded + attention.numel() * 4 > TRACE_BYTES:
                self.full = True
                return
            self.bytes_recorded += attention.numel() * 4
            self.sums[place], self.counts[place] = torch.zeros_like(attention, device="cpu"), 0
        self.sums[place] += attention.cpu()
        self.counts[place] += 1

    def _condition(self, context: Tensor) -> int:
        for index, known in enumerate(self.conditions):
            if known.shape == context.shape and torch.equal(known, context.to(known.device)):
                return index
        self.conditions.append(context.detach().cpu().clone())
        self.bytes_recorded += context.numel() * context.element_size()
        return len(self.conditions) - 1

    @property
    def images(self) -> int:
        """Number of pictures that were sampled together."""
        return 1 + max((image for _, image, _ in self.sums), default=-1)

    def nearest(self, condition: Tensor) -> int:
        """Index of the recorded condition that is closest to `condition` (slots, width); ValueError for an empty trace.

        It is seldom equal: the U-Net may have read it in half precision, or blended with another condition.
        """
        if not self.conditions:
            raise ValueError(
                "The trace is empty: sample with the model that records into it, in the steps that are recorded."
            )

        def distance(known: Tensor) -> float:
            slots = min(len(known), len(condition))
            return float((known[:slots].float() - condition[:slots].float().cpu()).norm())

        return min(range(len(self.conditions)), key=lambda index: distance(self.conditions[index]))

    def map(self, condition: int, image: int, size: tuple[int, int]) -> Tensor:
        """Mean attention of a condition in one picture, (slots, h, w) at `size`; every place sums to 1 over the slots.

        Each map size has the same say, whatever the number of its blocks.
        """
        maps = [
            F.interpolate((total / self.counts[place])[None], size=size, mode="bilinear")[0]
            for place, total in self.sums.items()
            if place[:2] == (condition, image)
        ]
        if not maps:
            raise ValueError(f"The trace holds nothing of picture {image + 1} of the batch for this prompt.")
        return torch.stack(maps).mean(0)


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
