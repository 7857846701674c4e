"""A world of five nouns with all that its three stages need, trained for seconds: too short for a good picture."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from emoji_world.autoencoder import full_autoencoder, slim_autoencoder
from emoji_world.diffusion import build_unet, save_pipeline
from emoji_world.scenes import EmojiWorld
from emoji_world.text_encoder import ContrastiveModel, build_text_model, save_tokenizer
from emoji_world.training_data import write_data
from kosmos_core import KosmosG, load_model
from training.export import export
from training.run import main as train

CONFIGS = Path(__file__).resolve().parents[2] / "emoji_world" / "configs"


@dataclass
class Chain:
    """The folder of a world whose three stages were trained for 20 steps each."""

    folder: Path
    world: EmojiWorld
    vocabulary: int

    def model(self, stage: str) -> KosmosG:
        return load_model(self.folder / f"{stage}.safetensors").eval()

    def train(self, stage: str, run: str, *more: str) -> int:
        """A stage by its shipped configuration, with this folder's paths."""
        data, arguments = self.folder / "data", []
        shares = {
            "lm": {"captions": 2, "interleaved": 1},
            "align": {"align_captions": 1},
            "instruct": {"compositional": 2, "edit": 2, "instruct_captions": 1},
        }[stage]
        sources = {name: {"path": str(data / name), "weight": weight} for name, weight in shares.items()}
        own = self.folder / f"{stage}.yaml"
        own.write_text(json.dumps({"data": {"sources": sources}}))  # JSON is YAML
        for config in (CONFIGS / f"{stage}.yaml", own):
            arguments += ["--config", str(config)]
        arguments += ["--run_folder", str(self.folder / run), "--device", "cpu", "--log.every", "1"]
        arguments += ["--model.decoder.vocabulary", str(self.vocabulary), "--optim.warmup_steps", "2"]
        arguments += ["--model.vision.image_size", "32", "--model.vision.patch_size", "4"]
        rows = "5" if stage == "instruct" else "3"
        arguments += ["--batch.size", rows, "--batch.micro", rows]
        if stage == "lm":
            arguments += ["--tokenizer", str(data), "--task.vision_weights", str(self.folder / "clip/vision")]
            arguments += ["--data.sequence_length", "48"]
        else:
            before = {"align": "lm", "instruct": "align"}[stage]
            arguments += ["--weights", str(self.folder / f"{before}.safetensors")]
            arguments += ["--task.stable_diffusion", str(self.folder / "sd")]
        if stage == "instruct":
            arguments += ["--data.resolution", "32", "--log.sample_every", "0", "--batch.streams", "1"]
        return train([*arguments, *more])


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    folder = tmp_path_factory.mktemp("world")
    torch.manual_seed(0)
    world = EmojiWorld.named("test")
    vocabulary = write_data(world, folder / "data", samples=40, pieces=150)
    tokenizer = save_tokenizer(world, folder / "clip" / "tokenizer")
    contrast = ContrastiveModel(build_text_model(tokenizer, layers=1), world.size)
    contrast.image.save_pretrained(folder / "clip" / "vision")
    vae = slim_autoencoder()
    save_pipeline(build_unet(world.size), full_autoencoder(vae), contrast.text, tokenizer, folder / "sd")
    made = Chain(folder, world, vocabulary)
    for stage in ("lm", "align", "instruct"):
        assert made.train(stage, stage, "--steps", "20") == 0
        export(folder / stage, folder / f"{stage}.safetensors")
    return made
