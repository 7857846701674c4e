"""Numbers that cannot be meant are refused by the option's name, before anything is read or written."""

import pytest

from emoji_world import diffusion, train

REFUSED = {
    "--minutes nan": "'nan' must be a number above 0",
    "--minutes -1": "'-1' must be a number above 0",
    "--rate 0": "'0' must be a number above 0",
    "--rate inf": "'inf' must be a number above 0",
    "--rate fast": "'fast' must be a number above 0",
    "--pairs 1.01": "'1.01' must be a number from 0 to 1",
    "--pairs nan": "'nan' must be a number from 0 to 1",
    "--samples 0": "'0' must be a whole number of at least 1",
}


@pytest.mark.parametrize("words", REFUSED)
def test_a_number_that_cannot_be_meant_is_refused_by_its_option(words, tmp_path, capsys):
    output = tmp_path / "sd"
    with pytest.raises(SystemExit):
        diffusion.main(["--vae", "vae", "--clip", "clip", "--output", str(output), *words.split()])
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"argument {words.split()[0]}: {REFUSED[words]}")
    assert not output.exists()


def test_the_minutes_of_a_piece_are_read_before_its_folder_is_made(tmp_path, capsys):
    with pytest.raises(SystemExit):
        train.main(["next", "--folder", str(tmp_path / "new"), "--minutes", "nan"])
    assert "argument --minutes: 'nan' must be a number above 0" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
