"""The optimisation: stage 3's loss, through the frozen encoder and U-Net, of the image embeddings of one subject alone.

Everything drawn is a function of (seed, step, row), so that a tuning that was stopped goes on exactly.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kosmos_core import KosmosG, Prompt
from kosmos_core.reference import Encoded, Reference, with_references

from ..base.precision import LossScale, Precision, autocast
from ..base.rng import RowRng
from ..data.batches import padded
from ..data.decoding import centred
from ..stages.diffusion_loss import encode_images, snr_weights, squared_errors
from .photographs import Photograph

JUDGED = 16  # draws of noise and timestep that the held-out photographs are judged by, the same every time
BETAS = (0.9, 0.99)


@dataclass(frozen=True)
class TuningConfig:
    """How embeddings are tuned.

    rate: Adam's, as a share of the embeddings' own root mean square; it falls to a tenth over `steps`. patience: so
    many looks in a row, one every `judge_every` steps, without a lower loss of the held-out photographs end it.
    snr_bounds: as in stage 3. The defaults are the small world's best, chosen on other subjects than are reported
    (docs/own-subject.md).
    """

    steps: int = 20
    rate: float = 0.1
    batch: int = 4
    judge_every: int = 5
    patience: int = 2
    snr_bounds: tuple[float, float] | None = None
    seed: int = 0


@dataclass
class Progress:
    """What a stopped tuning needs to go on: the embeddings as they are and at their best, Adam's moments, counts."""

    embeddings: Tensor
    best: Tensor
    first_moment: Tensor
    second_moment: Tensor
    step: int = 0
    best_step: int = 0
    start_loss: float = float("nan")
    best_loss: float = float("nan")
    loss_scale: LossScale = field(default_factory=LossScale)

    @classmethod
    def at(cls, start: Tensor) -> Progress:
        return cls(start.clone(), start.clone(), torch.zeros_like(start), torch.zeros_like(start))


@dataclass
class Examples:
    """Photographs as the loss reads them: latents (n, 4, h, w), the share of each latent inside the mask
    (n, 1, h, w), and the prompts of each, token ids and image masks."""

    latents: Tensor
    inside: Tensor
    prompts: list[list[tuple[list[int], list[bool]]]]


class Tuning:
    """The tuning of one subject; `step` and `judge` change `progress` and nothing else."""

    def __init__(
        self,
        model: KosmosG,
        unet: nn.Module,
        vae: nn.Module,
        scheduler: Any,
        tuned_on: Sequence[Photograph],
        held_out: Sequence[Photograph],
        noun: str,
        config: TuningConfig,
        precision: Precision,
    ) -> None:
        self.model, self.unet, self.scheduler = model, unet, scheduler
        self.config, self.precision, self.device = config, precision, model.device
        self.noun = noun
        self.tuned_on = self._examples(vae, tuned_on, "tuned on")
        self.held_out = self._examples(vae, held_out, "held out") if held_out else None
        self.weights = snr_weights(scheduler, config.snr_bounds).to(self.device)
        self.start = self._zero_shot(tuned_on)
        self.progress = Progress.at(self.start)
        self.progress.loss_scale = LossScale.of(precision)
        self.scale = float(self.start.square().mean().sqrt())

    @torch.no_grad()
    def _zero_shot(self, photographs: Sequence[Photograph]) -> Tensor:
        """The mean of the photographs' embeddings (latents, width), as long as they are."""
        found = torch.stack([self.model.image_embeddings(photograph.view) for photograph in photographs]).float()
        mean, norms = found.mean(0), found.norm(dim=-1, keepdim=True).mean(0)
        return (mean * norms / mean.norm(dim=-1, keepdim=True).clamp(min=1e-12)).to(self.device)

    def _examples(self, vae: nn.Module, photographs: Sequence[Photograph], purpose: str) -> Examples:
        seed, latents = self.config.seed, []
        for number, photograph in enumerate(photographs):
            pixels = centred(photograph.target[None]).to(self.device)
            latents.append(encode_images(vae, pixels, RowRng(seed, 0, number))[0])
        stacked = torch.stack(latents)
        inside = [torch.ones(stacked.shape[2:]) if one.inside is None else one.inside for one in photographs]
        shares = [F.interpolate(share[None, None], stacked.shape[2:], mode="area")[0] for share in inside]
        return Examples(
            stacked,
            torch.stack(shares).to(self.device),
            [laid_out(self.model, one.caption, self.noun) for one in photographs],
        )

    def errors(self, embeddings: Tensor, examples: Examples, rng: RowRng, rows: int, spread: bool = False) -> Tensor:
        """The loss of `rows` draws, (rows,): mean squared error of the noise inside the masks.

        spread: photographs and timesteps in turn over all there are, not drawn.
        """
        count, timesteps_in_all = len(examples.latents), self.scheduler.config.num_train_timesteps
        if spread:
            chosen = torch.arange(rows) % count
            timesteps = ((torch.arange(rows) + 0.5) * timesteps_in_all / rows).long()
        else:
            chosen = rng.integers("photograph", count, rows)
            timesteps = rng.integers("timestep", timesteps_in_all, rows)
        worded = rng.uniform("prompt", rows)
        prompts = [examples.prompts[i] for i in chosen.tolist()]
        prompts = [own[int(draw * len(own))] for own, draw in zip(prompts, worded.tolist(), strict=True)]
        token_ids = padded([ids for ids, _ in prompts], self.model.config.ids.pad, torch.long).to(self.device)
        image_mask = padded([mask for _, mask in prompts], False, torch.bool).to(self.device)
        latents, inside = examples.latents[chosen.to(self.device)], examples.inside[chosen.to(self.device)]
        noise, timesteps = rng.normal("noise", tuple(latents.shape), self.device), timesteps.to(self.device)
        marks = sum(sum(mask) for _, mask in prompts) // len(embeddings)
        with autocast(self.precision, self.device):
            shown = embeddings.expand(marks, -1, -1)
            condition = self.model.encode_tokens(token_ids, image_mask=image_mask, image_features=shown)
            squared = squared_errors(self.unet, self.scheduler, latents, noise, timesteps, condition)
        means = (squared * inside).sum((1, 2, 3)) / (inside.sum((1, 2, 3)) * squared.shape[1])
        return means * self.weights[timesteps]

    def step(self) -> float:
        """One update of the embeddings; returns the loss. One whose gradient is not finite changes nothing."""
        now, config = self.progress, self.config
        embeddings = now.embeddings.clone().requires_grad_(True)
        loss = self.errors(embeddings, self.tuned_on, RowRng(config.seed, now.step + 1), config.batch).mean()
        (loss * now.loss_scale.value).backward()
        gradient = embeddings.grad / now.loss_scale.value
        finite = bool(gradient.isfinite().all())
        now.loss_scale.update(finite)
        now.step += 1
        if finite:
            self._update(gradient)
        return float(loss.detach())

    def _update(self, gradient: Tensor) -> None:
        """Adam's update (arXiv 1412.6980)."""
        now, (beta1, beta2) = self.progress, BETAS
        now.first_moment.lerp_(gradient, 1 - beta1)
        now.second_moment.lerp_(gradient.square(), 1 - beta2)
        rate = self.config.rate * self.scale * (1 - 0.9 * (now.step - 1) / self.config.steps)
        mean, square = now.first_moment / (1 - beta1**now.step), now.second_moment / (1 - beta2**now.step)
        now.embeddings -= rate * mean / (square.sqrt() + 1e-12)

    @torch.no_grad()
    def judge(self) -> float:
        """The loss of the held-out photographs, of the ones tuned on where there are none; keeps the best embeddings.

        Without held-out photographs the latest embeddings are the best.
        """
        now, rng = self.progress, RowRng(self.config.seed, 0)
        examples = self.held_out or self.tuned_on
        loss = float(self.errors(now.embeddings, examples, rng, JUDGED, spread=True).mean())
        if now.step == 0:
            now.start_loss = now.best_loss = loss
        elif loss < now.best_loss or self.held_out is None:
            now.best, now.best_loss, now.best_step = now.embeddings.clone(), loss, now.step
        return loss

    def finished(self) -> bool:
        """Whether all steps are done, or the held-out photographs have long had no lower loss."""
        now, config = self.progress, self.config
        waited = now.step - now.best_step >= config.patience * config.judge_every
        return now.step >= config.steps or (self.held_out is not None and waited)


def laid_out(model: KosmosG, caption: str, noun: str) -> list[tuple[list[int], list[bool]]]:
    """Token ids and image mask of each of a photograph's prompts."""
    subject = Reference(Encoded(torch.zeros(1, 1), "", ""), noun=noun)
    found = []
    for text in prompts_of(caption, noun):
        prompt = with_references(Prompt.original(text), [subject] * text.count("<i>"))
        layout = model.tokenizer.layout(prompt, model.config.resampler.latents)
        found.append((layout.token_ids, layout.image_mask))
    return found


def prompts_of(caption: str, noun: str) -> list[str]:
    """The prompts that a photograph is painted from: its caption with a mark for the subject, or the mark alone.

    A caption may have the mark `<i>` itself; else it stands behind the first `noun` in it, a word in any case, or
    before all of it.
    """
    if not caption:
        return ["<i>", f"{'an' if noun[0] in 'aeiou' else 'a'} {noun} <i>"] if noun else ["<i>"]
    if "<i>" in caption:
        return [caption]
    word = re.search(rf"(?<!\w){re.escape(noun)}(?!\w)", caption, re.IGNORECASE) if noun else None
    return [f"{caption[: word.end()]} <i>{caption[word.end() :]}"] if word else [f"<i> {caption}"]
