"""A world of five nouns, trained from nothing for seconds: too short for a good picture."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from emoji_world import gates
from emoji_world.scenes import EmojiWorld
from emoji_world.train import main as step_of_world
from kosmos_core import KosmosG, Tokenizer, load_model
from training.run import main as train

CONFIGS = Path(__file__).resolve().parents[2] / "emoji_world" / "configs"


@dataclass
class Chain:
    """The folder of a world that was trained from nothing, its first two stages for 20 steps each, the third for 8."""

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
            arguments += ["--task.stable_diffusion", str(self.folder / "sd/diffusers")]
        if stage == "instruct":
            arguments += ["--data.resolution", "32", "--log.sample_every", "0", "--batch.streams", "1"]
        return train([*arguments, *more])


def tiny(rows: int, steps: int, *more: str) -> list[str]:
    """Options of a stage in this world's 32 pixels."""
    words = ["--steps", str(steps), "--batch.size", str(rows), "--batch.micro", str(rows), "--batch.streams", "1"]
    words += ["--model.vision.image_size", "32", "--model.vision.patch_size", "4", "--log.every", "1"]
    return [*words, "--optim.warmup_steps", "2", *more]


STEPS = {
    "autoencoder": ["--samples", "32", "--pictures", "16"],
    "clip": ["--samples", "64", "--pictures", "64", "--layers", "1"],
    "unet": ["--samples", "4", "--batch", "4", "--scenes", "16"],
    "data": ["--samples", "40", "--pieces", "150"],
    "lm": tiny(3, 20, "--data.sequence_length", "48"),
    "words": tiny(2, 2, "--data.sequence_length", "48"),
    "image-words": ["--samples", "16", "--batch", "8"],
    "align": tiny(3, 20),
    "instruct": tiny(5, 8, "--data.resolution", "32", "--log.sample_every", "0", "--task.preview.size", "32"),
    "repair": tiny(3, 2),
}


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """Made by the documented commands, one a step; no gate can be passed after so little."""
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gates, "COUNT", 4)
        for step, words in STEPS.items():
            assert (
                step_of_world(
                    ["next", "--world", "test", "--folder", str(folder), "--device", "cpu", "--past-gates", *words]
                )
                == step
            )
    tokenizer = Tokenizer.from_files(folder / "data/spm.model", folder / "data/dict.txt")
    return Chain(folder, EmojiWorld.named("test"), tokenizer.vocabulary)
