"""Mistakes in construction, evaluation and the emoji world, thought of by somebody who had not read the tests."""

from __future__ import annotations

from ..mutant import Mutant

# The tests that are about a module, where more import it than are about it.
TESTS: dict[str, tuple[str, ...]] = {
    "emoji_world/gates.py": ("tests/emoji_world/test_train.py",),
    "emoji_world/pieces.py": ("tests/emoji_world/test_pieces.py",),
    "training/construct/caption_spans.py": ("tests/construct/test_spans.py",),
    "training/construct/masks.py": ("tests/construct/test_masks.py",),
    "training/construct/ray_cluster.py": ("tests/construct/test_places.py",),
    "training/construct/square_images.py": ("tests/construct/test_bad_input.py",),
    "training/evaluate/coco.py": ("tests/evaluate/test_fid.py",),
    "training/evaluate/dreambench.py": ("tests/evaluate/test_scores.py",),
    "training/evaluate/fid.py": ("tests/evaluate/test_fid.py",),
    "training/evaluate/jobs.py": ("tests/evaluate/test_lists.py",),
    "training/evaluate/protocols.py": ("tests/evaluate/test_lists.py",),
    "training/evaluate/statistics.py": ("tests/evaluate/test_scores.py",),
    "training/evaluate/tuned.py": ("tests/evaluate/test_scores.py",),
}

OUTSIDE: tuple[tuple[str, str, str, str], ...] = (
    (
        "the copy guard takes the mean",
        "training/evaluate/score.py",
        "float(torch.cat(shown).max())",
        "float(torch.cat(shown).mean())",
    ),
    (
        "the copy threshold is the median",
        "training/evaluate/score.py",
        "alike.quantile(COPY_QUANTILE)",
        "alike.quantile(0.5)",
    ),
    (
        "real pictures are compared with themselves",
        "training/evaluate/score.py",
        "off = ~torch.eye(count, dtype=torch.bool)",
        "off = torch.ones(count, count, dtype=torch.bool)",
    ),
    (
        "CLIP-T looks at the subject's text",
        "training/evaluate/score.py",
        "float(result.clip[row] @ text_features[job.text])",
        "float(result.clip[0] @ text_features[job.text])",
    ),
    ("the interval is one of 90 %", "training/evaluate/statistics.py", "[2.5, 97.5]", "[5, 95]"),
    (
        "the mean is over pictures",
        "training/evaluate/statistics.py",
        'values.setdefault(record["subject"], [])',
        'values.setdefault("all", [])',
    ),
    (
        "the clean protocol leaves fakes as they are",
        "training/evaluate/fid.py",
        '"clean": ("pillow", "pillow")',
        '"clean": (None, "pillow")',
    ),
    (
        "the shorter of two tags wins",
        "training/construct/caption_spans.py",
        "key=lambda tag: (-len(tag), tag)",
        "key=lambda tag: (len(tag), tag)",
    ),
    (
        "part of a word is a tag",
        "training/construct/caption_spans.py",
        "pattern = whole_words(rf\"{lead}(?:{'|'.join(map(re.escape, endings))})\", tag[0], last[-1])",
        "pattern = rf\"{lead}(?:{'|'.join(map(re.escape, endings))})\"",
    ),
    ("duplicates within one bit less", "training/construct/duplicates.py", "<= distance\n", "< distance\n"),
    (
        "a duplicate of what was dropped is dropped",
        "training/construct/duplicates.py",
        "kept[later] &= not kept[earlier]",
        "kept[later] = False",
    ),
    ("the mean brightness counts", "training/construct/duplicates.py", "low[0] = 0.0", "low[0] += 0.0"),
    (
        "an image of just the smallest side is left out",
        "training/construct/square_images.py",
        "if min(image.size) < filters.min_side:",
        "if min(image.size) <= filters.min_side:",
    ),
    (
        "an image of just the longest shape is left out",
        "training/construct/square_images.py",
        "if max(image.size) > filters.max_aspect * min(image.size):",
        "if max(image.size) >= filters.max_aspect * min(image.size):",
    ),
    (
        "the threshold is compared with the logit",
        "training/construct/masks.py",
        "return math.log(threshold / (1 - threshold))",
        "return threshold",
    ),
    ("the share is of the box", "training/construct/masks.py", "/ mask.size\n", "/ mask[inside].size\n"),
    ("a sum of parts of a core does not fit", "training/construct/places.py", ">= spare - 1e-6", ">= spare"),
    (
        "tasks go to the smallest node",
        "training/construct/places.py",
        "key=lambda node: (node.gpus, -node.cpus)",
        "key=lambda node: (node.gpus, node.cpus)",
    ),
    (
        "a placed process takes no GPU",
        "training/construct/places.py",
        "            room.gpus -= pool.gpus or 0.0\n",
        "",
    ),
    (
        "parts of a GPU are rounded up",
        "training/construct/ray_cluster.py",
        "int(100 * (gpus - asked) / sharers) / 100",
        "round((gpus - asked) / sharers, 2)",
    ),
    (
        "a GPU is shared by stages, not by processes",
        "training/construct/ray_cluster.py",
        "sum(pools[name].workers for name in undecided)",
        "len(undecided)",
    ),
    (
        "an image of just the largest size is left out",
        "training/construct/tar_members.py",
        "member.size > most else",
        "member.size >= most else",
    ),
    (
        "a chunk that is repeated counts twice",
        "training/construct/stage_progress.py",
        "images - counted.get((shard, chunk), 0)",
        "images",
    ),
    (
        "the last shard is not looked for on all nodes",
        "training/construct/shared_disks.py",
        "sorted({0, len(shards) - 1})",
        "[0]",
    ),
    (
        "tags of five words are clauses",
        "training/construct/listed_nouns.py",
        "word_count(item) <= MOST_WORDS",
        "word_count(item) < MOST_WORDS",
    ),
    (
        "a likeness of just the threshold is a copy",
        "training/evaluate/dreambench.py",
        '["copy"] > threshold',
        '["copy"] >= threshold',
    ),
    (
        "published figures stand beside a part of the subjects",
        "training/evaluate/dreambench.py",
        "if complete and len({job.group for job in jobs}) == len(subjects.subjects):",
        "if complete:",
    ),
    (
        "published distances stand beside few captions",
        "training/evaluate/coco.py",
        "if captions == CAPTIONS:",
        "if captions <= CAPTIONS:",
    ),
    (
        "a tuned reference brings its noun and weight",
        "training/evaluate/tuned.py",
        "return Reference(load_reference(path).source)",
        "return load_reference(path)",
    ),
    (
        "a noun is marked twice in one place",
        "training/evaluate/protocols.py",
        "rest = rest[found + len(noun) :]",
        "rest = rest[found:]",
    ),
    (
        "samples of shared noise are in another order",
        "training/evaluate/jobs.py",
        "sample * shared + index % shared,",
        "index % shared * protocol.samples + sample,",
    ),
    (
        "a linear probe is fitted to what it is judged by",
        "emoji_world/gates.py",
        "states[:-held], torch.nn.functional.one_hot(classes)[:-held].double()",
        "states, torch.nn.functional.one_hot(classes).double()",
    ),
    ("each step of a piece draws the same", "emoji_world/pieces.py", "manual_seed(self.step)", "manual_seed(0)"),
    (
        "a resumed piece's optimiser begins at step 0",
        "emoji_world/pieces.py",
        "torch.tensor(float(self.step), device=self.device)",
        "torch.tensor(0.0, device=self.device)",
    ),
    (
        "references show the picture's own pose",
        "emoji_world/open_scenes.py",
        "pose=1 - placed.pose",
        "pose=placed.pose",
    ),
    ("a flash is another pose", "emoji_world/open_atlas.py", "change * (own and change <= MOVED[1])", "change * own"),
)
MUTANTS = tuple(Mutant(*fields, tests=TESTS.get(fields[1], ()), author="outside") for fields in OUTSIDE)
