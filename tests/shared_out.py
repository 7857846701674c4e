"""Which tests keep together where several processes share the tests, and which come first (`make test`).

Files that want the same thing of the whole session - a ComfyUI, a Ray, a trained world, the walked road - go to one
process, which makes it once; all others go file by file to whoever is free.
"""

from __future__ import annotations

import pytest
from xdist.scheduler import LoadScopeScheduling

TOGETHER = {
    "tests/comfyui": "comfyui",
    "tests/training/test_dry_run.py": "comfyui",  # the road's last file is loaded by ComfyUI, too
    "tests/construct": "construct",
    "tests/emoji_world": "emoji_world",
}
# By measured time, down to about 20 s. What is long and comes last is waited for by all.
FIRST = (
    "comfyui",
    "construct",
    "tests/training/test_engine_checkpoint.py",
    "emoji_world",
    "tests/training/test_engine_launch.py",
    "tests/dev/test_gpu_check.py",
    "tests/training/test_run_folder.py",
    "tests/training/test_validation.py",
    "tests/evaluate/test_commands.py",
    "tests/training/test_personalize.py",
    "tests/training/test_several_machines.py",
    "tests/training/test_trainable.py",
)


def group(test: str) -> str:
    """What a test is kept together with, from its node id: a name of `TOGETHER`, or its file."""
    file = test.partition("::")[0]
    return TOGETHER.get(file) or TOGETHER.get("/".join(file.split("/")[:2])) or file


def longest_first(items: list[pytest.Item]) -> None:
    """Bring the groups of `FIRST` to the front; the order is otherwise as it was."""
    items.sort(key=lambda item: FIRST.index(name) if (name := group(item.nodeid)) in FIRST else len(FIRST))


class Sharing(LoadScopeScheduling):
    """xdist's scheduler with these groups, in the order of the tests."""

    def __init__(self, config: pytest.Config, log: object) -> None:
        config.option.loadscopereorder = False
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        return group(nodeid)
