"""Mistakes in what training does with files of weights, in personalize and in the emoji world.

By somebody who had not read the tests.
"""

from __future__ import annotations

from ..mutant import Mutant

# The tests that are about a module, where more import it than are about it.
TESTS: dict[str, tuple[str, ...]] = {
    "training/weights/foreign.py": ("tests/training/test_warm_start.py",),
    "training/weights/provenance.py": ("tests/training/test_run_folder.py",),
    "training/weights/warm_start.py": ("tests/training/test_warm_start.py",),
    "training/weights/model_card.py": ("tests/training/test_engine_export.py",),
    "training/export.py": ("tests/training/test_engine_export.py",),
    "training/weights/fp8.py": ("tests/training/test_fp8.py",),
    "training/average.py": ("tests/training/test_average.py",),
    "training/personalize/__main__.py": ("tests/training/test_personalize.py",),
    "training/personalize/photographs.py": ("tests/training/test_personalize.py",),
    "training/personalize/several.py": ("tests/training/test_personalize.py",),
    "training/personalize/subject_run.py": ("tests/training/test_personalize.py",),
    "training/personalize/tuning.py": ("tests/training/test_personalize.py",),
    "training/personalize/unfinished.py": ("tests/training/test_personalize.py",),
    "emoji_world/benchmark.py": ("tests/emoji_world/test_benchmark.py",),
    "emoji_world/benchmark_cases.py": ("tests/emoji_world/test_benchmark.py",),
    "emoji_world/gates.py": ("tests/emoji_world/test_train.py",),
    "emoji_world/judge.py": ("tests/emoji_world/test_judge.py",),
    "emoji_world/open_scenes.py": ("tests/emoji_world/test_open_scenes.py",),
    "emoji_world/pieces.py": ("tests/emoji_world/test_pieces.py",),
    "emoji_world/scenes.py": ("tests/emoji_world/test_scenes.py",),
}

OUTSIDE: tuple[tuple[str, str, str, str], ...] = (
    (
        "packed queries are keys",
        "training/weights/foreign.py",
        'zip("qkv", tensor.chunk(3), strict=True)',
        'zip("kqv", tensor.chunk(3), strict=True)',
    ),
    (
        "the last shard is the whole model",
        "training/weights/foreign.py",
        "tensors |= {name: opened.get_tensor(name) for name",
        "tensors = {name: opened.get_tensor(name) for name",
    ),
    (
        "weights inside of a state_dict are not found",
        "training/weights/foreign.py",
        'content = content.get("state_dict", content)',
        "pass",
    ),
    (
        "the resampler's heads need not be Kosmos-2's",
        "training/weights/foreign.py",
        "if heads != sizes.decoder.heads or heads != sizes.resampler.heads:",
        "if heads != sizes.decoder.heads:",
    ),
    (
        "a run's earlier starts are forgotten",
        "training/weights/provenance.py",
        '(folder / "starts.jsonl").open("a")',
        '(folder / "starts.jsonl").open("w")',
    ),
    (
        "a run that goes on tells its first configuration",
        "training/weights/provenance.py",
        "if not path.is_file() or path.read_bytes() != content:",
        "if not path.is_file():",
    ),
    (
        "a tokenizer of other pieces is taken",
        "training/weights/warm_start.py",
        " and _pieces(stored) != _pieces(tokenizer)",
        " and stored.vocabulary != tokenizer.vocabulary",
    ),
    (
        "of two SentencePiece models the first is taken",
        "training/weights/warm_start.py",
        "if len(models) != 1:",
        "if not models:",
    ),
    (
        "the log of the exported step is left out",
        "training/weights/model_card.py",
        'record.get("step", step + 1) <= step',
        'record.get("step", step + 1) < step',
    ),
    ("a card knows the last record alone", "training/weights/model_card.py", "found |= record", "found = record"),
    (
        "an export names the code of the first start",
        "training/export.py",
        '"git": starts[-1]["git"]',
        '"git": starts[0]["git"]',
    ),
    (
        "biases and norms are fp8",
        "training/export.py",
        'if ".blocks." not in name or tensor.ndim < 2:',
        'if ".blocks." not in name:',
    ),
    (
        "fp8 numbers are rounded to the nearest, and what was learned below half a step is lost",
        "training/weights/fp8.py",
        "size / step + draws.to(size.device)",
        "size / step + 0.5",
    ),
    (
        "one of the averaged files is overwritten by another spelling of its path",
        "training/average.py",
        "path.exists() and path.samefile(output)",
        "path == output",
    ),
    ("shares may be a per cent off 1", "training/average.py", "abs_tol=1e-6", "abs_tol=1e-2"),
    (
        "a size need not fit the autoencoder",
        "training/personalize/__main__.py",
        "if options.size % 8:",
        "if options.size % 4:",
    ),
    (
        "two equal bounds are refused",
        "training/personalize/__main__.py",
        "0 < bounds[0] <= bounds[1] < math.inf",
        "0 < bounds[0] < bounds[1] < math.inf",
    ),
    (
        "a picture that stands there twice is two",
        "training/personalize/photographs.py",
        "if other.digest == photograph.digest",
        "if other.name == photograph.name",
    ),
    (
        "the square of a masked photograph is the central one",
        "training/personalize/photographs.py",
        "x = min(max((left + right - side) // 2, 0), image.width - side)",
        "x = (image.width - side) // 2",
    ),
    (
        "a noun is a word of its own case alone",
        "training/personalize/tuning.py",
        ", caption, re.IGNORECASE)",
        ", caption)",
    ),
    (
        "the rate of a tuning does not fall",
        "training/personalize/tuning.py",
        " * (1 - 0.9 * (now.step - 1) / self.config.steps)",
        "",
    ),
    (
        "what is outside of a mask counts",
        "training/personalize/tuning.py",
        "means = (squared * inside).sum((1, 2, 3))",
        "means = squared.sum((1, 2, 3))",
    ),
    (
        "a mask drawn anew is the same",
        "training/personalize/subject_run.py",
        'one.view.numpy().tobytes() + (b"" if one.inside is None else one.inside.numpy().tobytes())',
        'b"" if one.inside is None else b"mask"',
    ),
    (
        "a tuned file names the last step",
        "training/personalize/subject_run.py",
        '"steps": now.best_step,',
        '"steps": now.step,',
    ),
    (
        "a finished tuning leaves its unfinished file",
        "training/personalize/subject_run.py",
        "    beside.unlink(missing_ok=True)\n    say(_outcome",
        "    say(_outcome",
    ),
    (
        "an unfinished tuning of another shape goes on",
        "training/personalize/unfinished.py",
        "if tensor.shape != like.best.shape:",
        "if tensor.ndim != like.best.ndim:",
    ),
    (
        "a noun keeps its spaces",
        "training/personalize/several.py",
        'noun=" ".join(options.noun.split())',
        "noun=options.noun",
    ),
    (
        "one half nearer to its own reference is enough",
        "emoji_world/judge.py",
        "own.append(float(all(",
        "own.append(float(any(",
    ),
    (
        "subjects of many prompts weigh more",
        "emoji_world/judge.py",
        "values = np.bincount(of, values) / np.bincount(of)",
        "values = values[np.argsort(of)]",
    ),
    (
        "a shuffled reference may be of the same noun",
        "emoji_world/judge.py",
        "others = [x for x in identities if x.noun != chosen[0].noun]",
        "others = [x for x in identities if x != chosen[0]]",
    ),
    (
        "a schedule's last, shorter batch is left out",
        "emoji_world/pieces.py",
        "return -(-self.samples // self.batch)",
        "return self.samples // self.batch",
    ),
    (
        "a state that was written when a piece was stopped is lost",
        "emoji_world/pieces.py",
        "            new.rename(present)  # stopped between two lines of `save`\n",
        "            pass\n",
    ),
    (
        "a resumed piece's mean begins anew",
        "emoji_world/pieces.py",
        '            self.mean.load_state_dict(found["mean"])\n',
        "            pass\n",
    ),
    ("a gate's goal itself is too little", "emoji_world/gates.py", "bool(value >= goal)", "bool(value > goal)"),
    (
        "held-out identities count for a gate",
        "emoji_world/gates.py",
        "for a, b, seen in pairs if seen])",
        "for a, b, seen in pairs])",
    ),
    (
        "a weight that rises once is monotone",
        "emoji_world/benchmark.py",
        "(np.diff(chances, axis=0) > -ENOUGH).all(0)",
        "(np.diff(chances, axis=0) > -ENOUGH).any(0)",
    ),
    (
        "a picture without an object is a grey one",
        "emoji_world/benchmark_cases.py",
        "len(pixels) > 0 and float",
        "len(pixels) == 0 or float",
    ),
    (
        "an edit keeps the background's colour",
        "emoji_world/benchmark_cases.py",
        'if name not in (colour, "white")]',
        'if name != "white"]',
    ),
    (
        "nouns are held out by the alphabet",
        "emoji_world/open_scenes.py",
        "key=lambda noun: hashlib.sha256(noun.encode()).digest())",
        "key=lambda noun: noun)",
    ),
    ("sky is below the horizon", "emoji_world/open_scenes.py", "< HORIZON * self.size", ">= HORIZON * self.size"),
    (
        "what lies on top is drawn beside the edge",
        "emoji_world/open_scenes.py",
        "min(max(above, 0), self.size - upper)",
        "above",
    ),
    (
        "a hidden object's mask is whole",
        "emoji_world/scenes.py",
        "masks = [other & ~mask for other in masks] + [mask]",
        "masks = [*masks, mask]",
    ),
    (
        "a hue changes the brightness",
        "emoji_world/scenes.py",
        "return (turned + luma - (turned @ LUMA)[..., None]).clip(0, 1)",
        "return turned.clip(0, 1)",
    ),
    (
        "held-out identities are of held-out nouns, too",
        "emoji_world/scenes.py",
        "lambda x: x.noun in of.nouns and in_held_out_share(x)",
        "lambda x: in_held_out_share(x)",
    ),
)
MUTANTS = (
    *(Mutant(*fields, tests=TESTS[fields[1]], author="outside") for fields in OUTSIDE),
    Mutant(
        "a tuning without held-out photographs stops early",
        "training/personalize/tuning.py",
        "(self.held_out is not None and waited)",
        "waited",
        equivalent="without them each look is the best, so that no tuning has ever waited for two",
        author="outside",
    ),
)
