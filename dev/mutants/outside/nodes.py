"""Mistakes in the nodes, thought of by somebody who had not read the tests."""

from __future__ import annotations

from ..mutant import Mutant

# The tests that are about a module, where more import it than are about it.
TESTS: dict[str, tuple[str, ...]] = {
    "nodes/adapter.py": ("tests/comfyui/test_prompt_alone.py",),
    "nodes/analysis.py": ("tests/comfyui/test_analysis.py",),
    "nodes/attention.py": ("tests/comfyui/test_recording.py",),
    "nodes/charts.py": ("tests/comfyui/test_recording.py",),
    "nodes/conditioning.py": ("tests/comfyui/test_nodes_alone.py",),
    "nodes/image_inputs.py": ("tests/comfyui/test_nodes_alone.py",),
    "nodes/loader.py": ("tests/comfyui/test_prompt_alone.py",),
    "nodes/number_format.py": ("tests/comfyui/test_nodes_alone.py",),
    "nodes/prepare_reference.py": ("tests/comfyui/test_nodes_alone.py",),
    "nodes/recording.py": ("tests/comfyui/test_recording.py",),
    "nodes/reference_files.py": ("tests/comfyui/test_nodes_alone.py",),
    "nodes/sample_files.py": ("tests/comfyui/test_prompt_alone.py",),
    "nodes/text_encode.py": ("tests/comfyui/test_prompt_alone.py",),
    "nodes/tokens.py": ("tests/comfyui/test_prompt_alone.py",),
}

OUTSIDE: tuple[tuple[str, str, str, str], ...] = (
    ("a mask marks what is barely grey", "nodes/prepare_reference.py", "(mask.cpu() > 0.5)", "(mask.cpu() > 0.4)"),
    (
        "alpha stays beside a background that is kept",
        "nodes/prepare_reference.py",
        'if background == "keep":\n            pixels = pixels[..., :3]\n',
        'if background == "keep":\n            pass\n',
    ),
    (
        "the view mask is cut at a quarter",
        "nodes/prepare_reference.py",
        "(shown[..., 0] > 127)",
        "(shown[..., 0] > 63)",
    ),
    (
        "every mask takes the first image",
        "nodes/prepare_reference.py",
        "image[index if len(image) > 1 else 0]",
        "image[0]",
    ),
    (
        "a mask's noun is its neighbour's",
        "nodes/prepare_reference.py",
        "weight, names[index]))",
        "weight, names[index - 1]))",
    ),
    (
        "the other mean keeps the norm",
        "nodes/prepare_reference.py",
        "keep_norm=mode == MEANS[1]",
        "keep_norm=mode == MEANS[0]",
    ),
    (
        "a hand-off widens a time range",
        "nodes/conditioning.py",
        'max(start, options.get("start_percent", 0.0))',
        'min(start, options.get("start_percent", 0.0))',
    ),
    (
        "a range of no length stays",
        "nodes/conditioning.py",
        "return None if first >= last",
        "return None if first > last",
    ),
    (
        "the blend keeps CLIP's options",
        "nodes/conditioning.py",
        "for (one, options), (other, _) in",
        "for (one, _), (other, options) in",
    ),
    (
        "one each takes the first image of a batch",
        "nodes/image_inputs.py",
        "references[index if len(references) > 1 else 0] for references",
        "references[0] for references",
    ),
    (
        "NaN in an image passes",
        "nodes/image_inputs.py",
        "if not torch.isfinite(image).all():",
        "if torch.isfinite(image).all() is None:",
    ),
    (
        "a taken name is overwritten",
        "nodes/reference_files.py",
        "        if free.exists():\n            continue\n",
        "        if free.exists():\n            free.unlink()\n",
    ),
    (
        "an encoder of just 250 million numbers is large",
        "nodes/number_format.py",
        "parameters <= SMALL",
        "parameters < SMALL",
    ),
    (
        "ComfyUI's options for the type of text encoders are overruled",
        "nodes/number_format.py",
        "parameters <= SMALL or asked or not",
        "parameters <= SMALL or not",
    ),
    (
        "one step more than asked is recorded",
        "nodes/attention.py",
        "first <= step_of(options) < last",
        "first <= step_of(options) <= last",
    ),
    ("every image of a batch has the first one's mask", "nodes/attention.py", "mask[image % len(mask)]", "mask[0]"),
    ("a condition of strength 0 acts", "nodes/attention.py", "    if not strength:\n        opacity.zero_()\n", ""),
    (
        "the last image alone says how far its condition is",
        "nodes/attention.py",
        "farthest = max(farthest, distance)",
        "farthest = distance",
    ),
    (
        "passes of earlier runs are counted",
        "nodes/recording.py",
        "before is not None and run and (before.run, before.title) == (run, title)",
        "before is not None",
    ),
    (
        "one sampling fewer than promised is held",
        "nodes/recording.py",
        "len(self.samplings) > MOST_SAMPLINGS",
        "len(self.samplings) >= MOST_SAMPLINGS",
    ),
    ("the order of a node's inputs counts", "nodes/recording.py", "sort_keys=True", "sort_keys=False"),
    (
        "heat is stretched over what has no place",
        "nodes/charts.py",
        "low, high = inside.min(), inside.max()",
        "low, high = amounts.min(), amounts.max()",
    ),
    (
        "the first fault is counted among the others",
        "nodes/analysis.py",
        "And {len(faults) - 1} more",
        "And {len(faults)} more",
    ),
    (
        "the pooled output of a batch is the first one's",
        "nodes/text_encode.py",
        'torch.cat([entry[1]["pooled_output"] for entry in entries])',
        'entries[0][1]["pooled_output"]',
    ),
    (
        "a prompt of just the training's length is called too long",
        "nodes/text_encode.py",
        "if lengths[0] > CONTEXT:",
        "if lengths[0] >= CONTEXT:",
    ),
    (
        "the progress bar outlives its node",
        "nodes/adapter.py",
        "    finally:\n        encoder.on_block = None\n",
        "    finally:\n        pass\n",
    ),
    (
        "memory is estimated for one reading of a weighted prompt",
        "nodes/adapter.py",
        "aligner = readings * longest *",
        "aligner = longest *",
    ),
    ("the last of two folders wins", "nodes/loader.py", "found.setdefault(name, path)", "found[name] = path"),
    ("a sample file of the same size and time is the same", "nodes/sample_files.py", "shallow=False", "shallow=True"),
    (
        "a prompt of just as many tokens as the model reads is refused",
        "nodes/tokens.py",
        "if len(layout.token_ids) > longest:",
        "if len(layout.token_ids) >= longest:",
    ),
)
MUTANTS = tuple(Mutant(*fields, tests=TESTS.get(fields[1], ()), author="outside") for fields in OUTSIDE)
