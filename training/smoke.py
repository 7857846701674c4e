"""Train all three stages at smoke size, on data made on the spot, into one Kosmos-G weight file.

    python -m training.smoke
    python -m training.smoke --folder runs/smoke

A minute or two on two CPU cores. It proves the chain, not the method: every model in it is tiny and begins from random
numbers, Stable Diffusion included. Under the folder: data, a stand-in for Stable Diffusion 1.5, a run per stage, and
lm.safetensors, align.safetensors and instruct.safetensors.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

from PIL import Image

from . import run
from .base.signals import stoppable
from .engine.run_config import parse

# What takes seconds to load is imported where it is used: a help and a refused folder need not wait for it.

CONFIGS = Path(__file__).parent / "configs"
DEFAULT_FOLDER = Path("runs/smoke")
CHAIN = ("lm", "align", "instruct")
SD_END = "<|endoftext|>"


def make_stable_diffusion(folder: Path, seed: int = 0) -> None:
    """Write a random model with Stable Diffusion 1.5's interfaces (4 latent channels, 77 x 768 conditions), 4 MB."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from kosmos_core.diffusers.stable_diffusion import ddpm_scheduler

    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        attention_head_dim=4,
        cross_attention_dim=768,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    vae = AutoencoderKL(
        sample_size=64,
        block_out_channels=(8, 8, 16, 16),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    words = make_clip_tokenizer(folder / "tokenizer")
    clip = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=words,
            hidden_size=768,
            intermediate_size=256,
            num_hidden_layers=1,
            num_attention_heads=12,
            bos_token_id=words - 2,
            eos_token_id=words - 1,
        )
    )
    for name, part in (("unet", unet), ("vae", vae), ("scheduler", ddpm_scheduler()), ("text_encoder", clip)):
        part.save_pretrained(folder / name)


def make_clip_tokenizer(folder: Path) -> int:
    """Write a CLIP tokenizer that knows the words of the smoke data; returns the size of its vocabulary."""
    from tokenizers import ByteLevelBPETokenizer

    from .data.synthetic import COLOURS, SHAPES

    captions = [
        f"a {colour} {shape} on a {place} background"
        for colour in COLOURS
        for shape in SHAPES
        for place in ("white", "grey", "black")
    ]
    learner = ByteLevelBPETokenizer(lowercase=True, end_of_word_suffix="</w>")
    learner.train_from_iterator(captions * 3, vocab_size=700, show_progress=False)
    folder.mkdir(parents=True, exist_ok=True)
    learner.save_model(str(folder))
    vocabulary = json.loads((folder / "vocab.json").read_text())
    for token in ("<|startoftext|>", SD_END):
        vocabulary[token] = len(vocabulary)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    special = {"bos_token": "<|startoftext|>", "eos_token": SD_END, "unk_token": SD_END, "pad_token": SD_END}
    described = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    return len(vocabulary)


def commands(stage: str, folder: Path, vocabulary: int) -> tuple[list[str], list[str]]:
    """Arguments of `training.run` and `training.export` for one stage."""
    train = ["--config", str(CONFIGS / stage / "smoke.yaml"), "--model.decoder.vocabulary", str(vocabulary)]
    if folder != DEFAULT_FOLDER:
        text = (CONFIGS / stage / "smoke.yaml").read_text().replace(str(DEFAULT_FOLDER), str(folder))
        (folder / f"{stage}.yaml").write_text(text)
        train[1] = str(folder / f"{stage}.yaml")
    return train, [str(folder / stage), str(folder / f"{stage}.safetensors")]


def train_and_export(train: list[str], save: list[str]) -> None:
    """Run a training to its end and export its weights: the words after `training.run`, and after the run folder of
    `training.export`.

    Raises:
        RuntimeError: one of the two did not end well.
    """
    from . import export
    from .engine.checkpoint import latest_checkpoint, step_of

    print(f"\n$ python -m training.run {' '.join(train)}", flush=True)
    if run.main(train):
        raise RuntimeError("this training failed; see above")
    config = parse(train)
    reached = latest_checkpoint(Path(config.run_folder) / "checkpoints")
    if reached is None or step_of(reached) != config.steps:
        raise RuntimeError(f"this training was stopped before its {config.steps} steps; start again")
    print(f"$ python -m training.export {config.run_folder} {' '.join(save)}", flush=True)
    if export.main([config.run_folder, *save]):
        raise RuntimeError("its weights could not be exported; see above")


def emptied(folder: Path, mark: str, what: str) -> str | None:
    """Empty a folder that holds `what`, known by a file `mark` in it, or make it; what is wrong where it holds else."""
    if folder.exists() and not folder.is_dir():
        return f"--folder {folder} is a file; choose a folder that is empty or does not exist."
    if folder.exists() and any(folder.iterdir()) and not (folder / mark).exists():
        return f"--folder {folder} holds something else than a {what}; choose another."
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / mark).touch()
    return None


def smoke(folder: Path) -> Path:
    """Make data, train the stages one after the other, export each; returns the last stage's weight file.

    Raises:
        RuntimeError: a stage did not end well.
    """
    from kosmos_core import Tokenizer

    from .data.synthetic import write_all

    folder.mkdir(parents=True, exist_ok=True)
    write_all(folder / "data", samples=100, size=64)
    make_stable_diffusion(folder / "stable-diffusion")
    tokenizer = Tokenizer.from_files(folder / "data" / "spm.model", folder / "data" / "dict.txt")
    for stage in CHAIN:
        train, save = commands(stage, folder, tokenizer.vocabulary)
        train_and_export(train, save[1:])
    return folder / f"{CHAIN[-1]}.safetensors"


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser("python -m training.smoke", description=__doc__.split("\n\n")[0])
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER, help="where everything goes; emptied first")
    folder = parser.parse_args(arguments).folder
    started = time.perf_counter()
    if problem := emptied(folder, "smoke", "smoke run"):
        print(f"error: {problem}", file=sys.stderr)
        return 2
    try:
        path = smoke(folder)
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    from kosmos_core import load_model

    model = load_model(path)
    image = Image.new("RGB", (64, 64), "red")
    condition = model.encode("a red circle <i> on a white background", [image])
    if not bool(condition.isfinite().all()):
        print(f"error: {path} gives a condition that is not finite.", file=sys.stderr)
        return 1
    print(
        f"\n{path} encodes a prompt with a picture: {tuple(condition.shape)}, standard deviation {condition.std():.2f}"
    )
    print(f"All three stages in {time.perf_counter() - started:.0f} s. Put the file into ComfyUI/models/kosmos_g.")
    return 0


if __name__ == "__main__":
    sys.exit(stoppable(main, "the folder holds what was done so far."))
