"""Training data of the three stages, in the formats that `training.data` reads, and the vocabulary.

    python -m emoji_world.training_data --world half --output RUNS/data --samples 6000

writes text, words, captions, interleaved (stage 1), align_captions (stage 2), compositional, edit, instruct_captions
and replay_captions (stage 3, without what is held out from it), spm.model and dict.txt.
"""

import argparse
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from kosmos_core import Tokenizer
from training.data.decoding import on_white
from training.data.shard_writer import Parts
from training.data.synthetic import encoded, train_vocabulary, write_tars

from .options import whole_number
from .scenes import ALL_HUES, BACKGROUNDS, SHARES, WORLD_NAMES, Background, EmojiScene, EmojiWorld, Identity

WORDNET = Path("/usr/share/wordnet")  # Debian's wordnet-base
PAIRS = 0.7  # share of two objects in prompts: when it was 0.5, stage 2 erred more than twice as much in them as in one


def png(pixels: np.ndarray) -> bytes:
    """A picture (h, w, 3) uint8 or a mask (h, w) bool, losslessly."""
    image = Image.fromarray(pixels)
    return encoded(image if pixels.ndim == 3 else image.convert("1"), "PNG")


def glosses(count: int, folder: Path = WORDNET) -> list[str]:
    """Short definitions of common nouns. Empty, with a sentence, where WordNet is not installed."""
    path = folder / "data.noun"
    if not path.exists():
        print(f"{path} does not exist, so the text is captions only; `apt-get install wordnet-base` brings it")
        return []
    found = []
    for line in path.read_text(encoding="latin-1").splitlines():
        if line.startswith(" ") or " | " not in line:
            continue
        data, gloss = line.split(" | ", 1)
        word, gloss = data.split()[4].replace("_", " ").lower(), gloss.split(";")[0].strip()
        if re.fullmatch(r"[a-z ]+", word) and re.fullmatch(r"[a-zA-Z ,'-]+", gloss) and len(gloss) < 70:
            found.append(f"{word}: {gloss}")
    step = max(1, len(found) // count)
    return found[::step][:count]


class SampleMaker:
    """Makes samples of every kind; those of stage 3 show no identity that is held out from it."""

    def __init__(self, world: EmojiWorld, seed: int | list[int]):
        self.world, self.rng = world, np.random.default_rng(seed)
        self.seen: dict[str, list[Identity]] = {}
        for identity in world.identities:
            if not world.held_out_of_instruct(identity):
                self.seen.setdefault(identity.noun, []).append(identity)

    def seen_identities(self, count: int) -> list[Identity]:
        nouns = self.rng.choice(sorted(self.seen), count, replace=False)
        return [self.seen[str(noun)][self.rng.integers(len(self.seen[str(noun)]))] for noun in nouns]

    def seen_scene(self) -> EmojiScene:
        return self.world.draw(self.rng, self.seen_identities(self.world.draw_count(self.rng, PAIRS)))

    def turned_scene(self, pairs: float | None = None) -> EmojiScene:
        """A scene of stage 1: half of its objects in any of ALL_HUES, so that shapes are learned and not colours.

        With the world's two hues alone the language model knew every object by its colours: it named 99 % of the nouns
        in these hues and 10 to 33 % in others.
        """
        scene = self.world.draw(self.rng, pairs=pairs)
        turned = (
            replace(x, identity=replace(x.identity, hue=int(self.rng.choice(ALL_HUES))))
            if self.rng.random() < 0.5
            else x
            for x in scene.objects
        )
        return scene.edited(objects=tuple(turned))

    def captions(self, count: int, seen: bool) -> Iterator[Parts]:
        """Scenes, and for stage 1 three times as many objects that fill their picture, with their names: without these
        it learns backgrounds and colours but no shapes, for the resampler would first have to find the object."""
        for number in range(count):
            scene = self.seen_scene() if seen else self.turned_scene()
            if number % 4 and not seen:
                image, scene = self.world.close_up(scene)
                caption = f"{self.names(scene.objects[0].identity)} {scene.background.phrase}"
            else:
                image, caption = self.world.render(scene)[0], self.world.caption(scene, self.rng)
            yield {"txt": caption.encode(), "png": png(image)}

    def names(self, identity: Identity) -> str:
        """Noun, look and colour in any order: "glossy cat green".

        Any of them may stand first, so that the language model's state at the end of a picture has to tell all three,
        in the space of its word embeddings. There a linear map finds them for identities that it was not fitted on.
        """
        words = [identity.noun, self.world.atlas.words[identity.look], self.world.colour(identity)]
        return " ".join(str(word) for word in self.rng.permutation(words))

    def words(self, count: int) -> Iterator[Parts]:
        """Documents for a language model that is to know words before pictures: captions, and three times as many
        prompts in bare names, up to three times each, with what they mean behind a colon."""
        for number in range(count):
            scene = self.turned_scene(PAIRS)
            if number % 4 == 0:
                yield {"txt": self.world.caption(scene, self.rng, float(self.rng.choice(SHARES))).encode()}
                continue
            phrases = [self.world.phrase(placed.identity, self.rng, share=1.0) for placed in scene.objects]
            shown = [
                phrase if self.rng.random() < 0.3 else self.repeated_names(placed.identity)
                for phrase, placed in zip(phrases, scene.objects, strict=True)
            ]
            where = scene.background.phrase
            yield {"txt": f"{scene.joined(shown)} {where}: {scene.joined(phrases)} {where}".encode()}

    def repeated_names(self, identity: Identity) -> str:
        names = self.names(identity).split() * int(self.rng.integers(1, 4))
        return " ".join(str(word) for word in self.rng.permutation(names))

    def align_captions(self, count: int) -> Iterator[Parts]:
        """Captions without pictures, of every noun that the U-Net knows; as many with each of SHARES."""
        for _ in range(count):
            scene = self.world.draw(self.rng, pairs=PAIRS)
            yield {"txt": self.world.caption(scene, self.rng, float(self.rng.choice(SHARES))).encode()}

    def replay_captions(self, count: int) -> Iterator[Parts]:
        """Captions like those of stage 2, of the nouns that stage 3 shows: `task.replay` without the held-out words."""
        for _ in range(count):
            nouns = self.rng.choice(self.world.settings.nouns, self.world.draw_count(self.rng, PAIRS), replace=False)
            identities = [self.world.draw_identity(str(noun), self.rng) for noun in nouns]
            scene = self.world.draw(self.rng, identities)
            yield {"txt": self.world.caption(scene, self.rng, float(self.rng.choice(SHARES))).encode()}

    def interleaved(self, count: int) -> Iterator[Parts]:
        """Documents in which words and pictures of the same scenes follow each other, three of four as in prompts."""
        for number in range(count):
            yield self.prompt_document() if number % 4 else self.captioned_document()

    def captioned_document(self) -> Parts:
        """Two scenes and their captions, each before or behind its picture."""
        segments, parts = [], {}
        for number in range(2):
            scene = self.turned_scene()
            name = f"{number}.png"
            parts[name] = png(self.world.render(scene)[0])
            pair = [{"text": self.world.caption(scene, self.rng)}, {"image": name}]
            segments += pair if self.rng.random() < 0.5 else pair[::-1]
        return {"json": json.dumps({"segments": segments}).encode(), **parts}

    def prompt_document(self) -> Parts:
        """A scene as in prompts, each object by its picture or in words, and behind a colon the same in words alone.

        What is behind the colon has to be copied from words and pictures alike: the language model learns to read
        pictures inside a prompt, too, not only in front of captions.
        """
        scene = self.turned_scene(PAIRS)
        phrases = [self.world.phrase(placed.identity, self.rng, share=1.0) for placed in scene.objects]
        segments: list[dict[str, str]] = []
        parts: Parts = {}
        for number, (phrase, (crop, mask)) in enumerate(zip(phrases, self.world.crops(scene), strict=True)):
            if number:
                segments.append({"text": scene.relation})
            if self.rng.random() < 0.3:
                segments.append({"text": phrase})
                continue
            if self.rng.random() < 0.5:
                crop = np.asarray(on_white(Image.fromarray(crop), Image.fromarray(mask)))
            name = f"{number}.png"
            parts[name] = png(crop)
            segments.append({"image": name})
        where = scene.background.phrase
        segments.append({"text": f"{where}: {scene.joined(phrases)} {where}"})
        return {"json": json.dumps({"segments": segments}).encode(), **parts}

    def compositional(self, count: int) -> Iterator[Parts]:
        """A scene, its caption, and each object's square crop with its exact mask.

        The caption tells all that a picture can, so that it is aligned to one condition, not to a mean.
        """
        for _ in range(count):
            scene = self.seen_scene()
            crops = self.world.crops(scene)
            parts: Parts = {"png": png(self.world.render(scene)[0])}
            caption, entities = "", []
            for number, (placed, (crop, mask)) in enumerate(zip(scene.objects, crops, strict=True)):
                caption += f" {scene.relation} " if caption else ""
                phrase = self.world.phrase(placed.identity, self.rng, share=1.0)
                entities.append({"text": phrase, "span": [len(caption), len(caption) + len(phrase)]})
                caption += phrase
                parts |= {f"{number}.png": png(crop), f"{number}.mask.png": png(mask)}
            caption += " " + scene.background.phrase
            parts["json"] = json.dumps({"caption": caption, "entities": entities}).encode()
            yield parts

    def edit(self, count: int) -> Iterator[Parts]:
        """Another background, or the object in grey."""
        for _ in range(count):
            before = self.world.draw(self.rng, self.seen_identities(1))
            if self.rng.random() < 0.75:
                others = [colour for colour in BACKGROUNDS if colour != before.background.colour]
                after = before.edited(background=Background(str(self.rng.choice(others))))
                instruction = after.background.phrase
            else:
                placed = before.objects[0]
                grey = replace(placed, identity=replace(placed.identity, hue=None))
                after, instruction = before.edited(objects=(grey,)), "in grey"
            caption = self.world.caption(before, self.rng)
            output = self.world.caption(after, self.rng, share=1.0)
            images = [png(self.world.render(scene)[0]) for scene in (before, after)]
            described = json.dumps({"input": caption, "edit": instruction, "output": output}).encode()
            yield {"json": described, "0_0.png": images[0], "0_1.png": images[1]}


def write_vocabulary(world: EmojiWorld, texts: list[str], folder: Path, pieces: int) -> tuple[Path, Path]:
    """A vocabulary of the captions and texts; returns the paths of spm.model and dict.txt."""
    rng = np.random.default_rng(0)
    captions = [world.caption(world.draw(rng), rng) for _ in range(max(2000, 20 * len(world.nouns)))]
    captions += [f"on a {colour} background" for colour in BACKGROUNDS] + ["in grey"] * 20
    return train_vocabulary(folder, captions * 2 + texts, pieces)


def write_data(world: EmojiWorld, folder: Path, samples: int, pieces: int = 1000, seed: int = 0) -> int:
    """All data sets and the vocabulary, whose size it returns: what `model.decoder.vocabulary` has to be."""
    folder.mkdir(parents=True, exist_ok=True)
    make, shard = SampleMaker(world, seed), max(1, samples // 4)
    texts = glosses(samples)
    if texts:
        write_tars(folder / "text", ({"txt": text.encode()} for text in texts), shard)
    write_tars(folder / "captions", make.captions(samples, seen=False), shard)
    write_tars(folder / "interleaved", make.interleaved(samples // 2), shard)
    write_tars(folder / "align_captions", make.align_captions(2 * samples), 2 * shard)
    write_tars(folder / "compositional", make.compositional(samples), shard)
    write_tars(folder / "edit", make.edit(samples), shard)
    write_tars(folder / "instruct_captions", make.captions(samples // 2, seen=True), shard)
    write_tars(folder / "words", make.words(samples), shard)
    write_tars(folder / "replay_captions", make.replay_captions(2 * samples), 2 * shard)
    vocabulary = Tokenizer.from_files(*write_vocabulary(world, texts, folder, pieces)).vocabulary
    return vocabulary


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", choices=WORLD_NAMES, default="full")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--samples", type=whole_number(1), default=6000)
    parser.add_argument("--pieces", type=whole_number(1), default=1000)
    arguments = parser.parse_args(words)
    world = EmojiWorld.named(arguments.world)
    vocabulary = write_data(world, arguments.output, arguments.samples, arguments.pieces)
    held = sum(world.held_out_of_instruct(identity) for identity in world.identities)
    print(
        f"{arguments.output}: set model.decoder.vocabulary to {vocabulary}; "
        f"{held} of {len(world.identities)} identities held out from stage 3"
    )


if __name__ == "__main__":
    main()
