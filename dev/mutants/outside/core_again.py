"""More mistakes in kosmos_core, in the files that few others touched, by somebody who had not read the tests."""

from __future__ import annotations

from ..mutant import Mutant

# The tests that are about a module, where more import it than are about it.
TESTS: dict[str, tuple[str, ...]] = {
    "kosmos_core/atomic.py": ("tests/core/test_atomic.py",),
    "kosmos_core/file_names.py": ("tests/core/test_file_names.py",),
    "kosmos_core/safetensors_file.py": ("tests/core/test_weights.py",),
    "kosmos_core/weights.py": ("tests/core/test_weights.py", "tests/core/test_saved_clip.py"),
    "kosmos_core/config.py": ("tests/core/test_model.py",),
    "kosmos_core/saved_clip.py": ("tests/core/test_saved_clip.py",),
    "kosmos_core/weight_file.py": ("tests/core/test_reference.py",),
    "kosmos_core/tokenizer.py": ("tests/core/test_tokenizer.py",),
    "kosmos_core/initialization.py": ("tests/core/test_model.py",),
    "kosmos_core/near_marks.py": ("tests/core/test_prompt.py",),
    "kosmos_core/crops.py": ("tests/core/test_crops.py",),
    "kosmos_core/emphasis.py": ("tests/core/test_emphasis.py",),
    "kosmos_core/blend.py": ("tests/core/test_blend.py",),
    "kosmos_core/original/converter.py": ("tests/core/test_convert.py",),
    "kosmos_core/original/pickle_reader.py": ("tests/core/test_hostile_checkpoints.py", "tests/core/test_convert.py"),
    "kosmos_core/original/strict_pickle.py": ("tests/core/test_hostile_checkpoints.py",),
    "kosmos_core/original/tensor_names.py": ("tests/core/test_convert.py",),
    "kosmos_core/diffusers/checkpoint_file.py": ("tests/training/test_stable_diffusion.py",),
    "kosmos_core/diffusers/no_text_encoder.py": ("tests/evaluate/test_pipeline_habits.py",),
    "kosmos_core/diffusers/pipeline.py": ("tests/evaluate/test_pipeline.py", "tests/evaluate/test_pipeline_habits.py"),
    "kosmos_core/diffusers/sampler.py": ("tests/evaluate/test_pipeline.py",),
    "kosmos_core/diffusers/single_file.py": ("tests/training/test_stable_diffusion.py",),
    "kosmos_core/diffusers/stable_diffusion.py": ("tests/training/test_stable_diffusion.py",),
}

OUTSIDE: tuple[tuple[str, str, str, str], ...] = (
    (
        "a name of just the most characters is refused",
        "kosmos_core/file_names.py",
        "len(name) > LONGEST",
        "len(name) >= LONGEST",
    ),
    (
        "the bytes of a name are its characters",
        "kosmos_core/file_names.py",
        "len(part.encode()) <= LONGEST_PART",
        "len(part) <= LONGEST_PART",
    ),
    (
        "a part of a name may end with a dot",
        "kosmos_core/file_names.py",
        'not part.endswith(".")',
        'part not in (".", "..")',
    ),
    ("an interrupt leaves half a file", "kosmos_core/atomic.py", "except BaseException:", "except Exception:"),
    (
        "a written file is for its owner alone",
        "kosmos_core/atomic.py",
        "os.chmod(unfinished, 0o666 & ~_umask())",
        "os.chmod(unfinished, 0o600)",
    ),
    (
        "tensors of small numbers come first",
        "kosmos_core/safetensors_file.py",
        "(-entry[2].itemsize, entry[0])",
        "(entry[2].itemsize, entry[0])",
    ),
    ("a loaded model's weights want gradients", "kosmos_core/weights.py", "    model.requires_grad_(False)\n", ""),
    (
        "the tokenizer's bytes are a number format",
        "kosmos_core/weights.py",
        "{kind for name, _, kind in entries if name not in TOKENIZER_KEYS}",
        "{kind for name, _, kind in entries}",
    ),
    (
        "a later format version is read",
        "kosmos_core/weights.py",
        "if version != FORMAT_VERSION:",
        "if version is None:",
    ),
    ("a dropout of 1 passes", "kosmos_core/config.py", "not 0 <= value < 1", "not 0 <= value <= 1"),
    (
        "the resampler's heads divide the width of the vision tower",
        "kosmos_core/config.py",
        '("resampler", self.decoder.width, self.resampler.heads)',
        '("resampler", self.vision.width, self.resampler.heads)',
    ),
    ("a description of any size is read", "kosmos_core/saved_clip.py", " or shape[0] > LARGEST_DESCRIPTION", ""),
    (
        "the first numbers of a tensor stand for all",
        "kosmos_core/weight_file.py",
        "torch.linspace(0, tensor.numel() - 1, SAMPLES).long()",
        "torch.arange(min(SAMPLES, tensor.numel()))",
    ),
    (
        "a fingerprint of all is checked on the image part",
        "kosmos_core/weight_file.py",
        "(*PICTURE_PARTS, *PROMPT_PARTS) if whole else PICTURE_PARTS)",
        "PICTURE_PARTS)",
    ),
    (
        "a dictionary that shares one piece belongs",
        "kosmos_core/tokenizer.py",
        "len(missing) > len(pieces) / 2",
        "len(missing) >= len(pieces)",
    ),
    (
        "a byte order mark is part of the first piece",
        "kosmos_core/tokenizer.py",
        'decode("utf-8-sig")',
        'decode("utf-8")',
    ),
    (
        "a dictionary with Windows' line ends is broken",
        "kosmos_core/tokenizer.py",
        'count.rstrip("\\r").isdecimal()',
        "count.isdecimal()",
    ),
    (
        "a pickled tokenizer has 64 latents",
        "kosmos_core/tokenizer.py",
        "(*self.to_bytes(), self.latents)",
        "self.to_bytes()",
    ),
    (
        "biases are not scaled by Magneto's gamma",
        "kosmos_core/initialization.py",
        "            layer.bias.mul_(gamma)\n",
        "",
    ),
    (
        "the pad token's embedding is drawn",
        "kosmos_core/initialization.py",
        "            module.embedding.weight[module.ids.pad] = 0\n",
        "",
    ),
    (
        "AlignerNet's gamma takes one depth for the other",
        "kosmos_core/initialization.py",
        "math.log(3 * len(decoder)) * math.log(2 * len(encoder)) / 3",
        "math.log(3 * len(encoder)) * math.log(2 * len(decoder)) / 3",
    ),
    (
        "a mark's number 0 is a slot",
        "kosmos_core/near_marks.py",
        "int(digits) or None if digits else None",
        "int(digits) if digits else None",
    ),
    ("a mark behind two backslashes is not told of", "kosmos_core/near_marks.py", 'kind != "escaped" and text', "text"),
    (
        "a capital that looks alike is not seen",
        "kosmos_core/near_marks.py",
        "add(part.translate(_ALIKE), position)",
        "add(part, position)",
    ),
    ("the dilation follows the width", "kosmos_core/crops.py", "size[0] // DILATION", "size[1] // DILATION"),
    (
        "an infinite weight is read",
        "kosmos_core/emphasis.py",
        "not 0 <= weight < math.inf",
        "not 0 <= weight <= math.inf",
    ),
    (
        "an infinite likeness is computed",
        "kosmos_core/blend.py",
        "if not math.isfinite(amount):",
        "if math.isnan(amount):",
    ),
    (
        "stage 2 without its training half is stage 3",
        "kosmos_core/original/converter.py",
        '"align" if has_training_half else',
        '"align" if training_half else',
    ),
    (
        "the resampler's own heads are not taken",
        "kosmos_core/original/converter.py",
        'if "decoder.heads" in overrides and "resampler.heads" not in overrides:',
        'if "decoder.heads" in overrides:',
    ),
    (
        "a checkpoint is overwritten by another spelling of its path",
        "kosmos_core/original/converter.py",
        "if Path(target).resolve() == Path(source).resolve():",
        "if str(target) == str(source):",
    ),
    (
        "heads that the checkpoint tells are assumed",
        "kosmos_core/original/converter.py",
        ' and not (part == "decoder" and told_heads)',
        "",
    ),
    (
        "a compressed part is read",
        "kosmos_core/original/pickle_reader.py",
        "if entry.compress_type != zipfile.ZIP_STORED:",
        "if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):",
    ),
    (
        "lines of a pickle take no memory",
        "kosmos_core/original/strict_pickle.py",
        "lambda: counted(readline())",
        "readline",
    ),
    (
        "AlignerNet's depths are swapped",
        "kosmos_core/original/tensor_names.py",
        'encoder_layers=layers("aligner.encoder_proj.layers"),\n'
        '            decoder_layers=layers("aligner.encoder.layers"),',
        'encoder_layers=layers("aligner.encoder.layers"),\n'
        '            decoder_layers=layers("aligner.encoder_proj.layers"),',
    ),
    (
        "a checkpoint that asks for eval is opened",
        "kosmos_core/diffusers/checkpoint_file.py",
        ' or (package == "builtins" and name in CODE)',
        "",
    ),
    (
        "tensors of a checkpoint may share without end",
        "kosmos_core/diffusers/checkpoint_file.py",
        "if told > 2 * size:",
        "if told > 2000 * size:",
    ),
    (
        "a user's own method is lost after a call",
        "kosmos_core/diffusers/no_text_encoder.py",
        "        attributes |= before\n",
        "",
    ),
    (
        "embeddings for an IP-Adapter need its image encoder",
        "kosmos_core/diffusers/no_text_encoder.py",
        'if "ip_adapter_image" in given and',
        "if given and",
    ),
    (
        "a guidance scale of 1 guides",
        "kosmos_core/diffusers/pipeline.py",
        "guidance_scale > 1,",
        "guidance_scale >= 1,",
    ),
    ("a new encoder stays in training", "kosmos_core/diffusers/pipeline.py", "            value = value.eval()\n", ""),
    (
        "one negative condition does not do for all",
        "kosmos_core/diffusers/pipeline.py",
        "(1, count), length, width)",
        "(count,), length, width)",
    ),
    (
        "DPM-Solver ends at 0",
        "kosmos_core/diffusers/sampler.py",
        '"final_sigmas_type": "sigma_min"',
        '"final_sigmas_type": "zero"',
    ),
    (
        "a velocity model predicts noise",
        "kosmos_core/diffusers/single_file.py",
        '"v_prediction" if "v_pred" in self.names else "epsilon"',
        '"v_prediction" if f"{UNET}v_pred" in self.names else "epsilon"',
    ),
    (
        "the U-Net's second half is not mirrored",
        "kosmos_core/diffusers/single_file.py",
        "for x in reversed(attention)]",
        "for x in attention]",
    ),
    (
        "half precision comes before plain weights",
        "kosmos_core/diffusers/stable_diffusion.py",
        '    if (None, "safetensors") in found:\n        return None\n'
        '    if "fp16" in variants:\n        return "fp16"\n',
        '    if "fp16" in variants:\n        return "fp16"\n'
        '    if (None, "safetensors") in found:\n        return None\n',
    ),
    (
        "an inpainting U-Net is taken",
        "kosmos_core/diffusers/stable_diffusion.py",
        "if found != width or unet.config.in_channels != 4:",
        "if found != width:",
    ),
)
MUTANTS = tuple(Mutant(*fields, tests=TESTS[fields[1]], author="outside") for fields in OUTSIDE)
