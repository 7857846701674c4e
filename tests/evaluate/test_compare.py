"""The page that compares models."""

import json
import re
from pathlib import Path
from urllib.parse import unquote

import pytest
from PIL import Image

from tests.tiny import drawings as tiny
from tests.tiny.kosmos_file import save_tiny_kosmos
from training.base.errors import ConfigError
from training.evaluate.__main__ import main
from training.evaluate.compare import model_names, read_prompts


@pytest.fixture
def prompts(tmp_path) -> Path:
    tiny.drawing(1).save(tmp_path / "mug.png")
    tiny.drawing(2).save(tmp_path / "hat.png")
    listed = tmp_path / "prompts.yaml"
    listed.write_text(
        """
- prompt: a <i> wearing <i> on the beach
  images: [mug.png, hat.png]
- prompt: a red dog & a "cat"
"""
    )
    return listed


def test_a_page_shows_every_model_with_equal_seeds(prompts, weights, sd, dino, clip, tiny_tokenizer, tmp_path):
    other = save_tiny_kosmos(tmp_path / "other.safetensors", seed=5)
    output = tmp_path / "out"
    arguments = [
        "compare",
        "--weights",
        str(weights),
        str(other),
        "sd15",
        "--prompts",
        str(prompts),
        "--sd",
        str(sd),
        "--seeds",
        "3",
        "4",
        "--steps",
        "1",
        "--size",
        "16",
        "--dino",
        str(dino),
        "--clip",
        str(clip),
        "--output",
        str(output),
    ]
    assert main(arguments) == 0
    page = (output / "index.html").read_text()
    assert "a &lt;i&gt; wearing &lt;i&gt; on the beach" in page
    sources = [unquote(source) for source in re.findall(r'img src="([^"]+)"', page)]
    assert len(sources) == 2 + 3 * 2 * 2
    for source in sources:
        assert not source.startswith(("/", "file:", "http"))
        with Image.open(output / source) as image:
            image.load()
    scores = json.loads((output / "scores.json").read_text())["scores"]
    assert list(scores) == ["kosmos-g", "other", "sd15"]
    for records in scores.values():
        assert [record["seed"] for record in records] == [3, 4, 3, 4]
        assert -1 <= records[0]["dino"] <= 1
        assert "dino" not in records[2]
        assert -1 <= records[2]["clip_t"] <= 1
    pixels = {name: (output / records[0]["path"]).read_bytes() for name, records in scores.items()}
    assert len(set(pixels.values())) == 3
    assert main([*arguments, "--resume"]) == 0
    assert {name: (output / records[0]["path"]).read_bytes() for name, records in scores.items()} == pixels


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("- {prompt: a <i> and <i>, images: [mug.png]}", r"entry 1 of .*prompts\.yaml: "),
        ("- {prompt: a dog}\n- {prompt: a dog, images: [mug.png]}", r"entry 2 of .*prompts\.yaml: "),
        ("- {prompt: a <i>, images: [cup.png]}", r"names .*cup\.png, which is no file"),
        ("- {prompt: a dog, picture: mug.png}", "has an unknown key 'picture'"),
        ("prompt: a dog", "must be a list of entries"),
        ("- a dog", "entry 1 .* needs `prompt`, it is 'a dog'"),
        ("[", "cannot be read"),
    ],
)
def test_a_wrong_prompt_file_is_named_with_its_entry(prompts, content, sentence):
    prompts.write_text(content)
    with pytest.raises(ConfigError, match=sentence):
        read_prompts(prompts)


def test_a_wrong_number_of_marks_stops_before_anything_is_written(prompts, weights, sd, tmp_path, capsys):
    prompts.write_text("- {prompt: a <i> and <i>, images: [mug.png]}")
    arguments = ["--prompts", str(prompts), "--sd", str(sd), "--output", str(tmp_path / "out")]
    assert main(["compare", "--weights", str(weights), *arguments]) == 2
    error = capsys.readouterr().err
    assert "More marks than pictures" in error
    assert "(at “<i>” after “a <i> and”" in error
    assert not (tmp_path / "out").exists()
    prompts.write_text("- {prompt: a dog}")
    assert main(["compare", "--weights", str(tmp_path / "none"), *arguments]) == 2
    assert "none is no file; give Kosmos-G files, or 'sd15'" in capsys.readouterr().err


def test_models_with_equal_names_stay_apart():
    assert model_names(["a/m.safetensors", "b/m.safetensors", "sd15"]) == {
        "m": "a/m.safetensors",
        "m-2": "b/m.safetensors",
        "sd15": "sd15",
    }
