"""Train the world's CLIP on scenes and captions (arXiv 2103.00020), and its byte-pair vocabulary.

    python -m emoji_world.text_encoder --world half --output RUNS/clip

The text half is a transformers CLIPTextModel of width 768 with 77 positions, as Stable Diffusion 1.5 has, but with few
layers. The vision half is what Kosmos-G's vision tower begins with (`task.vision_weights` of stage 1).
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, CLIPVisionConfig, CLIPVisionModel

from kosmos_core.images import CLIP_MEAN, CLIP_STD
from training.base.processes import choose_device

from .options import whole_number
from .pieces import SHARD, PieceTraining, Schedule, add_options
from .scenes import WORLD_NAMES, EmojiWorld

POSITIONS = 77


def world_words(world: EmojiWorld) -> list[str]:
    """Captions that hold every word of the world, and the words of the edits that stage 3 trains on."""
    rng = np.random.default_rng(0)
    captions = [world.caption(world.draw(rng), rng) for _ in range(max(3000, 30 * len(world.nouns)))]
    return captions + ["a picture of it in grey, turned on a plain background, with and without an object"] * 20


def vocabulary_size(world: EmojiWorld, least: int = 1024) -> int:
    """`least` for some dozens of nouns, and three more pieces for each noun beyond."""
    return least + 3 * max(0, len(world.nouns) - 50)


def save_tokenizer(world: EmojiWorld, folder: Path) -> CLIPTokenizer:
    """CLIP's kind of byte-pair tokenizer with merges learned on the world's captions."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size(world),
        min_frequency=5,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
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
    mean, deviation = (torch.tensor(values, device=pixels.device).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
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
        words = self.project(hidden[torch.arange(len(end), device=end.device), end])
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
        nearest = self.scores(token_ids, pixels).argmax(1).cpu()
        return (nearest == torch.arange(len(token_ids))).float().mean().item()


def resized(image: np.ndarray, side: int) -> np.ndarray:
    return np.array(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))


def draw_pairs(world: EmojiWorld, tokenizer: CLIPTokenizer, count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (count, longest) and pictures (count, 3, size, size) uint8; every second picture is a close-up."""
    rng, pixels, captions = np.random.default_rng(seed), [], []
    for number in range(count):
        scene = world.draw(rng)
        image, shown = world.close_up(scene) if number % 2 else (world.render(scene)[0], scene)
        pixels.append(resized(image, world.size))
        captions.append(world.caption(shown, rng))
    # The longest caption, not 77 positions: attention is causal, so what follows the end changes nothing.
    words = tokenizer(captions, padding=True, return_tensors="pt")
    return words.input_ids, torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)


def main(words: list[str] | None = None) -> bool:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", choices=WORLD_NAMES, default="full")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--pictures", type=whole_number(1), default=30_000, help="drawn once and kept on the device")
    parser.add_argument("--layers", type=whole_number(1), default=2)
    parser.add_argument("--freeze-text", action="store_true", help="go on from --output, only the vision half learns")
    add_options(parser, samples=60_000, batch=64, rate=5e-4)
    arguments = parser.parse_args(words)
    torch.manual_seed(0)
    world, device = EmojiWorld.named(arguments.world), choose_device(arguments.device)
    if arguments.freeze_text:
        tokenizer = CLIPTokenizer.from_pretrained(arguments.output / "tokenizer")
        model = ContrastiveModel(CLIPTextModel.from_pretrained(arguments.output / "text_encoder"), world.size)
        model.text.requires_grad_(False)
        model.image = CLIPVisionModel.from_pretrained(arguments.output / "vision")
    else:
        tokenizer = save_tokenizer(world, arguments.output / "tokenizer")
        model = ContrastiveModel(build_text_model(tokenizer, arguments.layers), world.size)
    folder = arguments.output / ("vision-alone" if arguments.freeze_text else "")
    schedule = Schedule(arguments.samples, arguments.batch, arguments.rate, warmup=30, fall=0.5)
    training = PieceTraining(model, folder, schedule, device)
    token_ids, pixels = (tensor.to(device) for tensor in draw_pairs(world, tokenizer, arguments.pictures, 2))
    held = [tensor.to(device) for tensor in draw_pairs(world, tokenizer, 64, 3)]

    def loss() -> torch.Tensor:
        rows = torch.randint(len(pixels), (arguments.batch,), generator=training.generator(), device=device)
        return model(token_ids[rows], normalise(pixels[rows]))

    def retrieval() -> str:
        return f"retrieval 1 of 64 {model.retrieval(held[0], normalise(held[1])):.2f}"

    done = training.run(loss, arguments.minutes, retrieval)
    print(f"{training.samples} captions, {retrieval()}")
    model.text.cpu().save_pretrained(arguments.output / "text_encoder", max_shard_size=SHARD)
    model.image.cpu().save_pretrained(arguments.output / "vision", max_shard_size=SHARD)
    return done


if __name__ == "__main__":
    main()
