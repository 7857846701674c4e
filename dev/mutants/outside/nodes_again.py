"""More mistakes in the nodes, in the files that few others touched, by somebody who had not read the tests."""

from __future__ import annotations

from ..mutant import Mutant

# The tests that are about a module, which the nodes' tests do not import.
TESTS: dict[str, tuple[str, ...]] = {
    "nodes/adapter.py": ("tests/comfyui/test_prompt_alone.py", "tests/comfyui/test_nodes_alone.py"),
    "nodes/attention.py": ("tests/comfyui/test_recording.py",),
    "nodes/connections.py": ("tests/comfyui/test_files_alone.py",),
    "nodes/file_lists.py": ("tests/comfyui/test_files_alone.py",),
    "nodes/loader.py": ("tests/comfyui/test_files_alone.py",),
    "nodes/operations.py": ("tests/comfyui/test_prompt_alone.py",),
    "nodes/prompt_box.py": ("tests/comfyui/test_files_alone.py", "tests/comfyui/test_prompt_box.py"),
    "nodes/reference_files.py": ("tests/comfyui/test_files_alone.py", "tests/comfyui/test_nodes_alone.py"),
    "nodes/sample_files.py": ("tests/comfyui/test_files_alone.py",),
}

OUTSIDE: tuple[tuple[str, str, str, str], ...] = (
    (
        "a text of just the most characters is not counted",
        "nodes/prompt_box.py",
        "len(text) > LONGEST_TEXT",
        "len(text) >= LONGEST_TEXT",
    ),
    (
        "a body may unpack into any size",
        "nodes/prompt_box.py",
        "            if len(content) > LONGEST_BODY:\n                break\n",
        "",
    ),
    (
        "an error of both boxes is shown in the negative one",
        "nodes/prompt_box.py",
        "error.prompt == question.negative and error.prompt != question.text",
        "error.prompt == question.negative",
    ),
    (
        "a replaced file keeps its tokenizer",
        "nodes/prompt_box.py",
        "return _tokenizer(path, status.st_mtime_ns, status.st_size)",
        "return _tokenizer(path, 0, status.st_size)",
    ),
    (
        "any file's attention tells a checkpoint's width",
        "nodes/prompt_box.py",
        'name.startswith("model.") and name.endswith',
        "name.endswith",
    ),
    ("a link to any output of a node counts", "nodes/connections.py", "value[:2] == wanted", "value[:1] == wanted[:1]"),
    (
        "for another pack's call nothing is read",
        "nodes/connections.py",
        "!= node_class:\n            return True",
        "!= node_class:\n            return False",
    ),
    (
        "the first of several running prompts is taken",
        "nodes/connections.py",
        "for item in running if item[1] == context.prompt_id)",
        "for item in running)",
    ),
    (
        "a reference's name with its ending gets a second one",
        "nodes/reference_files.py",
        "file_name_parts(name.removesuffix(SUFFIX))",
        "file_name_parts(name)",
    ),
    (
        "a tuned reference is known by the image part alone",
        "nodes/reference_files.py",
        "encoder.fingerprint(whole=reference.tuned)",
        "encoder.fingerprint()",
    ),
    (
        "a name that another server has just taken ends the graph",
        "nodes/reference_files.py",
        "        except FileExistsError:\n            continue\n",
        "",
    ),
    (
        "a file's end does not count for its hash",
        "nodes/loader.py",
        "* number // (SAMPLED_BLOCKS - 1)",
        "* number // SAMPLED_BLOCKS",
    ),
    (
        "a file that was moved is the same",
        "nodes/loader.py",
        'states.append(f"{path} {_sampled_hash(path, status.st_mtime_ns, status.st_size)}")',
        "states.append(_sampled_hash(path, status.st_mtime_ns, status.st_size))",
    ),
    (
        "a replaced file stays rejected",
        "nodes/loader.py",
        "return _rejection(path, status.st_mtime_ns, status.st_size)",
        "return _rejection(path, 0, 0)",
    ),
    (
        "float16 is computed on a CPU",
        "nodes/adapter.py",
        "slow = dtype == torch.float16 and comfy.model_management.is_device_cpu(load_device)",
        "slow = False",
    ),
    (
        "a hook on the image part leaves the fingerprint",
        "nodes/adapter.py",
        "(*self.applied, *self.hooked))",
        "self.applied)",
    ),
    (
        "remembered images leave the progress bar short",
        "nodes/adapter.py",
        "        bar.update_absolute(bar.total)  # cached pictures take no steps\n",
        "",
    ),
    ("an area may stick out on the right", "nodes/attention.py", "min(wide, width - left)", "min(wide, width)"),
    ("a recorder of no step is made", "nodes/attention.py", "if end_step <= first_step:", "if end_step < first_step:"),
    (
        "small images are enlarged for an overlay",
        "nodes/attention.py",
        "    if scale >= 1:\n        return image\n",
        "",
    ),
    ("a list whose folder has gone stays empty", "nodes/file_lists.py", "for _ in range(2):", "for _ in range(1):"),
    ("a patch of the bias alone waits for nothing", "nodes/operations.py", "        and not layer.bias_function\n", ""),
    (
        "a broken link is no file in the way",
        "nodes/sample_files.py",
        "if not self.target.exists() and not self.target.is_symlink():",
        "if not self.target.exists():",
    ),
)
MUTANTS = tuple(Mutant(*fields, tests=TESTS[fields[1]], author="outside") for fields in OUTSIDE)
