"""Numbers that cannot be meant and files that are not there are refused before anything is read or written."""

from importlib import import_module

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


WRONG_FILES = {
    "diffusion --vae nowhere --clip nowhere": "--vae: nowhere holds no config.json; give the folder vae that",
    "evaluate --stable_diffusion nowhere --align x": "--stable_diffusion: nowhere does not exist",
    "evaluate --stable_diffusion nowhere --ablation x": "--ablation: 'x' must be NAME=FILE, each name once",
    "probe --stable_diffusion nowhere x": "--stable_diffusion: nowhere does not exist",
    "image_words --weights nowhere": "nowhere is missing; give a .safetensors file",
    "prompt_weights --kosmos_g nowhere": "nowhere is missing; give a .safetensors file",
    "single_file nowhere": "FOLDER: nowhere holds no model_index.json; give the diffusers folder",
    "single_file --back nowhere": "CLIP: clip holds no config.json; give the folder of CLIP's text half",
}


@pytest.mark.parametrize("words", WRONG_FILES)
def test_a_file_that_is_not_there_is_said_in_a_sentence_before_the_work(words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, *more = words.split()
    more += ["file.safetensors", "clip"] if name == "single_file" else [] if name == "probe" else ["--output", "out/x"]
    monkeypatch.setattr("sys.argv", [name, *more])
    with pytest.raises(SystemExit) as ended:
        import_module(f"emoji_world.{name}").main()
    assert ended.value.code == 2
    assert f"error: {WRONG_FILES[words]}" in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())
