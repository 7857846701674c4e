"""A server that runs many different prompts stays as large as it was; the benchmark of the same name runs 1,000."""

from __future__ import annotations

from pathlib import Path

import pytest

from dev.benchmarks.soak import grew, soak


@pytest.mark.usefixtures("comfyui_folder")
def test_forty_prompts_leave_the_server_as_large_as_it_was(tmp_path: Path) -> None:
    memory, files = soak(40, tmp_path)
    assert grew(memory, files) is None, (memory, files)


def test_growth_is_noticed() -> None:
    assert "memory grew from 900 to 950 MB" in grew([900, 920, 950], [30, 30, 30])
    assert grew([900, 990, 940], [30, 40, 31]) == "open files grew from 30 to 31"
    assert grew([900, 990, 940], [30, 40, 30]) is None
