"""The whole training of a world, one piece at a time, each by one command, on CPUs and GPUs alike.

    python -m emoji_world.train next --world open --folder runs/open --minutes 9      the first step that is not done
    python -m emoji_world.train unet --world open --folder runs/open --batch 256      a step by name, with own options
    python -m emoji_world.train status --world open --folder runs/open

Steps, in order: autoencoder, clip, unet, data, lm, words, image-words, align, instruct, repair. A piece that was ended
by its minutes, a signal or a crash is taken up by the same command. Behind the last piece of a step stands a gate, from
what went wrong in earlier runs: a step that builds on less is not begun (--past-gates begins it).
"""

import argparse
import json
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kosmos_core import Tokenizer
from kosmos_core.atomic import write_file
from training.export import export
from training.run import main as run_stage

from . import autoencoder, diffusion, gates, image_words, text_encoder, training_data
from .options import positive_number
from .scenes import WORLD_NAMES, EmojiWorld

CONFIGS = Path(__file__).parent / "configs"


@dataclass(frozen=True)
class Place:
    """A world, the folder of all its trainings, and how long a piece may go on."""

    world: str
    folder: Path
    minutes: float | None
    device: str

    @property
    def record(self) -> Path:
        return self.folder / "steps.json"

    def finished(self) -> dict[str, dict]:
        """The steps that are done, each with what its gate said."""
        return json.loads(self.record.read_text()) if self.record.exists() else {}

    def network(self, module: Callable[[list[str]], bool], output: str, *words: str | Path, more: list[str]) -> bool:
        """A piece of a network's training; True when it is done."""
        arguments = ["--world", self.world, "--output", self.folder / output, "--device", self.device, *words, *more]
        if self.minutes is not None:
            arguments += ["--minutes", self.minutes]
        return module([str(word) for word in arguments])

    def stage(self, *configs: str, output: str, more: list[str], ema: bool = False) -> bool:
        """A piece of a run of `training.run`, which a signal ends behind its step; its weights once it is done."""
        data, words, run = self.folder / "data", [], self.folder
        for name in configs:
            config = self.moved(yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()))
            sources = config.get("data", {}).get("sources", {})
            for source in [x for x, own in sources.items() if not Path(own["path"]).exists()]:
                del sources[source]  # there is no text without WordNet
            write_file(own := self.folder / f"{name}.yaml", yaml.safe_dump(config))
            words, run = [*words, "--config", str(own)], Path(config["run_folder"])
        vocabulary = Tokenizer.from_files(data / "spm.model", data / "dict.txt").vocabulary
        words += ["--model.decoder.vocabulary", str(vocabulary), "--resume", "auto", "--device", self.device]
        timer = threading.Timer(60 * (self.minutes or 0), os.kill, (os.getpid(), signal.SIGTERM))
        if self.minutes is not None:
            timer.start()
        try:
            code = run_stage([*words, *more])
        finally:
            timer.cancel()
        if code:
            raise SystemExit(code)
        steps, log = yaml.safe_load((run / "config.yaml").read_text())["steps"], run / "log.jsonl"
        if not log.exists() or json.loads(log.read_text().splitlines()[-1])["step"] < steps:
            return False
        export(run, self.folder / f"{output}.safetensors", **({"ema": True} if ema else {}))
        return True

    def moved(self, value: Any) -> Any:
        """A configuration whose paths are in this folder instead of runs/world."""
        if isinstance(value, dict):
            return {key: self.moved(own) for key, own in value.items()}
        if isinstance(value, str) and value.startswith("runs/world/"):
            return str(self.folder / value.removeprefix("runs/world/"))
        return value


def data(place: Place, more: list[str]) -> bool:
    """All data sets at once: there are no pieces of it."""
    pieces = text_encoder.vocabulary_size(EmojiWorld.named(place.world), least=1000)
    words = [
        "--world",
        place.world,
        "--output",
        str(place.folder / "data"),
        "--samples",
        "10000",
        "--pieces",
        str(pieces),
    ]
    training_data.main([*words, *more])
    return True


def words_of_images(place: Place, more: list[str]) -> bool:
    own = ("--weights", place.folder / "lm-words.safetensors", "--vision", place.folder / "lm-pictures.safetensors")
    return place.network(image_words.main, "lm.safetensors", *own, more=more)


def unet(place: Place, more: list[str]) -> bool:
    own = ("--vae", place.folder / "vae" / "vae", "--clip", place.folder / "clip")
    return place.network(diffusion.main, "sd", *own, more=more)


STEPS: dict[str, Callable[[Place, list[str]], bool]] = {
    "autoencoder": lambda place, more: place.network(autoencoder.main, "vae", more=more),
    "clip": lambda place, more: place.network(text_encoder.main, "clip", more=more),
    "unet": unet,
    "data": data,
    "lm": lambda place, more: place.stage("lm", output="lm-pictures", more=more),
    "words": lambda place, more: place.stage("lm", "lm-words", output="lm-words", more=more),
    "image-words": words_of_images,
    "align": lambda place, more: place.stage("align", output="align", more=more, ema=True),
    "instruct": lambda place, more: place.stage("instruct", "zero-shot", output="instruct", more=more, ema=True),
    "repair": lambda place, more: place.stage("align", "repair", output="repaired", more=more),
}


def piece(place: Place, step: str, more: list[str], past_gates: bool) -> None:
    """One piece of a step, and its gate behind the last one."""
    found = place.finished()
    before = list(STEPS)[: list(STEPS).index(step)]
    for name in before:
        if name not in found:
            raise SystemExit(
                f"{step}: {name} comes before it and is not done; --world {place.world} goes on with `next`."
            )
        if not found[name]["passed"] and not past_gates:
            raise SystemExit(
                f"{step}: the gate of {name} is shut ({found[name]['told']}); train {name} on with more --samples or "
                f"--steps, or begin with --past-gates."
            )
    if not STEPS[step](place, more):
        print(f"{step}: the piece is over and the step is not; the same command goes on.")
        return
    gate = gates.GATES.get(step)
    passed, told = (True, "no gate") if gate is None else gate(place.world, place.folder)
    found = place.finished()  # another step may have ended beside this one
    write_file(place.record, json.dumps(found | {step: {"passed": passed, "told": told}}, indent=1) + "\n")
    print(f"{step}: done; gate {'open' if passed else 'shut'}: {told}")


def main(words: list[str] | None = None) -> str | None:
    """Returns the step that a piece was done of."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=(*STEPS, "next", "status"))
    parser.add_argument("--world", choices=WORLD_NAMES, default="middle")
    parser.add_argument("--folder", type=Path, default=Path("runs/open"))
    parser.add_argument("--minutes", type=positive_number, help="at most, of this piece; default: to the step's end")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--past-gates", action="store_true", help="begin a step though a gate before it is shut")
    arguments, more = parser.parse_known_args(words)
    place = Place(arguments.world, arguments.folder, arguments.minutes, arguments.device)
    place.folder.mkdir(parents=True, exist_ok=True)
    found = place.finished()
    if arguments.step == "status":
        for step in STEPS:
            print(f"{step}: {found[step]['told'] if step in found else 'not done'}")
        return None
    left = [step for step in STEPS if step not in found]
    if arguments.step == "next" and not left:
        print("All steps are done.")
        return None
    step = left[0] if arguments.step == "next" else arguments.step
    piece(place, step, more, arguments.past_gates)
    return step


if __name__ == "__main__":
    main()
