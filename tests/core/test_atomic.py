"""A file is complete or absent, whatever ends its writing, and for those to read whom the system lets read others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kosmos_core.atomic import atomic_write, write_file


@pytest.mark.parametrize("stopped_by", [ValueError, KeyboardInterrupt, SystemExit])
def test_whatever_ends_the_writing_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path, stopped_by):
    write_file(tmp_path / "kept", "as it was")

    def write() -> None:
        with atomic_write(tmp_path / "kept") as file:
            file.write(b"half")
            raise stopped_by

    with pytest.raises(stopped_by):
        write()
    assert os.listdir(tmp_path) == ["kept"]
    assert (tmp_path / "kept").read_text() == "as it was"


@pytest.mark.parametrize("new", [False, True])
def test_a_file_has_the_rights_that_the_system_gives_to_new_ones(tmp_path: Path, new):
    before = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "a", new=new) as file:
            file.write(b"a")
        assert os.umask(0o027) == 0o027, "the process keeps its own"
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640
