"""Train the world's CLIP on scenes and captions (arXiv 2103.00020), and its byte-pair vocabulary.

    python -m emoji_world.text_encoder --world half --output RUNS/clip --minutes 4

The text half is a transformers CLIPTextModel of width 768 with 77 positions, as Stable Diffusion 1.5 has, but with few
layers. The vision half is what Kosmos-G's vision tower begins with (`task.vision_weights` of stage 1).
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, CLIPVisionConfig, CLIPVisionModel

from kosmos_core.images import CLIP_MEAN, CLIP_STD
from training.base.precision import autocast, faster_on_cpu

from .scenes import WORLD_NAMES, EmojiWorld

POSITIONS = 77


def world_words(world: EmojiWorld) -> list[str]:
    """Captions that hold every word of the world, and the words of the edits that stage 3 trains on."""
    rng = np.random.default_rng(0)
    captions = [world.caption(world.draw(rng), rng) for _ in range(3000)]
    return captions + ["a picture of it in grey, turned on a plain background, with and without an object"] * 20


def save_tokenizer(world: EmojiWorld, folder: Path) -> CLIPTokenizer:
    """CLIP's kind of byte-pair tokenizer with merges learned on the world's captions."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=1024, min_frequency=5, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(world_words(world), trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in learned["merges"]]
    names = alphabet + [symbol + "</w>" for symbol in alphabet] + [pair.replace(" ", "") for pair in merges]
    names = list(dict.fromkeys([*names, "<|startoftext|>", "<|endoftext|>"]))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({name: number for number, name in enumerate(names)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    made = CLIPTokenizer.from_pretrained(folder)
    made.model_max_length = POSITIONS
    made.save_pretrained(folder)
    return made


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """8-bit pixels (n, 3, s, s) as CLIP and Kosmos-G read them."""
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return (pixels.float() / 255 - mean) / deviation


def build_text_model(tokenizer: CLIPTokenizer, layers: int) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=768,
            intermediate_size=1536,
            num_hidden_layers=layers,
            num_attention_heads=12,
            max_position_embeddings=POSITIONS,
            projection_dim=256,
            hidden_act="quick_gelu",
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


class ContrastiveModel(nn.Module):
    """Both halves with their projections and the learned temperature."""

    def __init__(self, text: CLIPTextModel, size: int):
        super().__init__()
        self.text = text
        self.image = CLIPVisionModel(
            CLIPVisionConfig(
                image_size=size,
                patch_size=size // 8,
                hidden_size=128,
                intermediate_size=512,
                num_hidden_layers=4,
                num_attention_heads=4,
                projection_dim=256,
            )
        )
        self.project_image = nn.Linear(128, 256, bias=False)
        self.project = nn.Linear(768, 256, bias=False)
        self.temperature = nn.Parameter(torch.tensor(2.66))

    def scores(self, token_ids: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        """Cosine of every caption (rows) with every picture (columns)."""
        hidden = self.text(token_ids).last_hidden_state
        end = (token_ids == self.text.config.eos_token_id).int().argmax(1)
        words = self.project(hidden[torch.arange(len(end)), end])
        images = self.project_image(self.image(pixels).pooler_output)
        return F.normalize(words.float(), dim=-1) @ F.normalize(images.float(), dim=-1).T

    def forward(self, token_ids: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        """Symmetric contrastive loss; equal captions count as equally right."""
        scores = self.temperature.exp().clamp(max=100) * self.scores(token_ids, pixels)
        same = (token_ids[:, None] == token_ids[None]).all(-1).float()
        same = same / same.sum(1, keepdim=True)
        return (F.cross_entropy(scores, same) + F.cross_entropy(scores.T, same)) / 2

    @torch.no_grad()
    def retrieval(self, token_ids: torch.Tensor, pixels: torch.Tensor) -> float:
        """How often a caption's own picture is its nearest among all."""
        right = self.scores(token_ids, pixels).argmax(1) == torch.arange(len(token_ids))
        return right.float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", choices=WORLD_NAMES, default="full")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=4)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--freeze-text", action="store_true", help="go on from --output, only the vision half learns")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    world = EmojiWorld.named(arguments.world)
    if arguments.freeze_text:
        tokenizer = CLIPTokenizer.from_pretrained(arguments.output / "tokenizer")
        model = ContrastiveModel(CLIPTextModel.from_pretrained(arguments.output / "text_encoder"), world.size)
        model.text.requires_grad_(False)
        model.image = CLIPVisionModel.from_pretrained(arguments.output / "vision")
    else:
        tokenizer = save_tokenizer(world, arguments.output / "tokenizer")
        model = ContrastiveModel(build_text_model(tokenizer, arguments.layers), world.size)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-4, weight_decay=0.01)

    def batch(count: int, seed: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        rng = np.random.default_rng(seed)
        shown = [(world.render(scene)[0], scene) for scene in (world.draw(rng) for _ in range(count // 2))]
        shown += [world.close_up(world.draw(rng)) for _ in range(count - count // 2)]
        pixels = [Image.fromarray(image).resize((world.size, world.size), Image.BICUBIC) for image, _ in shown]
        pixels, scenes = torch.from_numpy(np.stack(pixels)), [scene for _, scene in shown]
        # The longest caption, not 77 positions: attention is causal, so what follows the end changes nothing.
        words = tokenizer([world.caption(scene, rng) for scene in scenes], padding=True, return_tensors="pt")
        return words.input_ids, normalise(pixels.permute(0, 3, 1, 2))

    held = batch(64, [3, 0])
    precision = faster_on_cpu()
    started, step, limit = time.monotonic(), 0, 60 * arguments.minutes
    while (spent := time.monotonic() - started) < limit:
        for group in optimizer.param_groups:
            group["lr"] = 5e-4 * min(1, (step + 1) / 30, 0.02 + 2 * (1 - spent / limit))
        with autocast(precision, torch.device("cpu")):
            loss = model(*batch(arguments.batch, [2, step]))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        step += 1
        if step % 20 == 0:
            rate = step * arguments.batch / (time.monotonic() - started)
            right = model.retrieval(*held)
            print(f"step {step} ({rate:.0f}/s) loss {loss.item():.3f} retrieval 1 of 64 {right:.2f}", flush=True)
    model.text.save_pretrained(arguments.output / "text_encoder")
    model.image.save_pretrained(arguments.output / "vision")
    print(f"{step * arguments.batch} captions, retrieval 1 of 64 {model.retrieval(*held):.2f}")


if __name__ == "__main__":
    main()
