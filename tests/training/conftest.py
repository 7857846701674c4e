"""The smoke configuration of every stage on data made once, for tests that really train."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from kosmos_core import KosmosG, KosmosGConfig, Tokenizer, save_model
from training import smoke
from training.data.synthetic import write_all


@dataclass
class Smoke:
    """A folder with data, a tiny Stable Diffusion and starting weights."""

    folder: Path
    vocabulary: int

    def arguments(self, stage: str, run_folder: Path, *more: str) -> list[str]:
        """The words after `python -m training.run`; a global batch of 4 in 4 micro-batches from 2 streams."""
        own, _ = smoke.commands(stage, self.folder, self.vocabulary)
        batch = ["--batch.size", "4", "--batch.micro", "1", "--batch.streams", "2"]
        quiet = ["--log.tensorboard", "false", "--log.sample_every", "0", "--log.every", "1"]
        return [*own, "--run_folder", str(run_folder), *batch, *quiet, *more]

    def replay(self, stage: str) -> list[str]:
        """Options by which stage 3 replays captions; none for the other stages."""
        return ["--task.replay.captions", str(self.folder / "data" / "pairs")] if stage == "instruct" else []


def make_smoke(folder: Path) -> Smoke:
    """Data, models and weights, written into `folder`."""
    write_all(folder / "data", samples=40, size=64)
    smoke.make_stable_diffusion(folder / "stable-diffusion")
    tokenizer = Tokenizer.from_files(folder / "data" / "spm.model", folder / "data" / "dict.txt", latents=4)
    sizes = KosmosGConfig.tiny(vocabulary=tokenizer.vocabulary)
    save_model(KosmosG(sizes, tokenizer=tokenizer).initialize(2), folder / "align.safetensors", stage="align")
    sizes = replace(sizes, aligner=None)
    save_model(KosmosG(sizes, tokenizer=tokenizer).initialize(1), folder / "lm.safetensors", stage="lm")
    return Smoke(folder, tokenizer.vocabulary)


@pytest.fixture(scope="session")
def smoke_stages(tmp_path_factory: pytest.TempPathFactory) -> Smoke:
    return make_smoke(tmp_path_factory.mktemp("smoke"))
