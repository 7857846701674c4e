"""Names of files: what a person may call one, to the last character and byte, and what no system could write."""

from __future__ import annotations

import pytest

from kosmos_core.file_names import LONGEST, LONGEST_PART, file_name_parts

FITTING = "狗" * (LONGEST_PART // 3) + "d" * (LONGEST_PART % 3)  # as many bytes as a part may have, in fewer characters


@pytest.mark.parametrize("name", ["d" * LONGEST, FITTING, f"pets/{FITTING}", "my.dog", "console"])
def test_a_name_of_just_the_most_characters_or_bytes_is_one(name):
    assert file_name_parts(name) == name.split("/")


@pytest.mark.parametrize(
    "name",
    ["d" * (LONGEST + 1), FITTING + "d", f"{FITTING}d/dog", "dog.", "pets./dog", "dog...", "..", "a/../b", "con.x"],
)
def test_a_name_that_some_system_cannot_write_is_refused(name):
    with pytest.raises(ValueError, match=f"expected a file name of up to {LONGEST} characters"):
        file_name_parts(name)
