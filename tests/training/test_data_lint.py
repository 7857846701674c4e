"""The checker: what it finds, what it shows, how it ends."""

import json
import random
from collections import Counter

import pytest
from PIL import Image
from rich.console import Console

from training.data.dataset_sheet import dataset_sheet
from training.data.index import index_dataset
from training.data.lint import Checker, Findings, check_all, main
from training.data.shard_writer import write_shard
from training.data.synthetic import LAYOUTS, pair_samples, write_tars


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_sound_data_set_is_fit_and_shown(tmp_path, layout, capsys, monkeypatch):
    """The sheet lies beside the data set; where the command is given, nothing is written unasked."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    write_tars(tmp_path / layout, LAYOUTS[layout](random.Random(0), 30, 48), per_shard=20)
    assert main([f"../{layout}", "--workers", "1", "--json", "../findings.json"]) == 0
    assert not list(elsewhere.iterdir())
    assert "Fit for training" in capsys.readouterr().out
    findings = json.loads((tmp_path / "findings.json").read_text())
    assert (findings["samples"], findings["read"], findings["unusable"]) == (30, 30, {})
    sheet = Image.open(tmp_path / f"{layout}-sheet.png")
    assert sheet.width > 1500
    assert sheet.height > 500


def _spoilt(folder, every):
    def parts(number, sample):
        broken = {"jpg": sample["jpg"][:50]} if number % every == 0 else {}
        return f"{number:05d}", sample | broken

    samples = [parts(number, sample) for number, sample in enumerate(pair_samples(random.Random(0), 60, 48))]
    write_shard(folder / "0.tar", samples)
    return str(folder)


@pytest.mark.parametrize(("every", "code"), [(20, 0), (15, 1)])  # 5 % is just what max_bad allows
def test_corrupt_pictures_are_named_and_more_than_max_bad_of_them_is_unfit(tmp_path, every, code, capsys):
    path = _spoilt(tmp_path / "web", every)
    sheet = str(tmp_path / "s.png")
    assert main([path, "--sheet", sheet, "--json", str(tmp_path / "found.json"), "--workers", "2"]) == code
    found = json.loads((tmp_path / "found.json").read_text())["unusable"]
    assert found == {"corrupt picture": [f"0.tar/{number:05d}" for number in range(0, 60, every)]}
    assert ("Not fit" in capsys.readouterr().out) == bool(code)


def test_findings_of_several_chunks_are_added_up_by_reason():
    one = Findings(2, 3, 1, 10, {"a": ["1"]}, {"odd": ["2"]}, Counter({"left": 1, "right": 4}))
    two = Findings(5, 7, 2, 20, {"a": ["3"], "b": ["4"]}, {"odd": ["5"]}, Counter({"left": 2}))
    expected = Findings(
        7, 10, 3, 30, {"a": ["1", "3"], "b": ["4"]}, {"odd": ["2", "5"]}, Counter({"left": 3, "right": 4})
    )
    assert one + two == expected
    assert expected.bad_samples == 3


def test_every_sample_is_read_in_whatever_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr("training.data.lint.CHUNK", 7)
    path = _spoilt(tmp_path / "web", 6)
    checker = Checker(index_dataset(path), "captions", 10**8, 100)
    for limit, samples in ((0, 60), (15, 15), (14, 14)):
        found = check_all(checker, limit, 1, Console(quiet=True))
        assert (found.samples, found.images) == (samples, samples - found.bad_samples)
        assert found.bad_samples == -(-samples // 6)


def test_a_truncated_file_is_unfit(tmp_path, capsys):
    write_tars(tmp_path / "web", pair_samples(random.Random(0), 20, 48), per_shard=10)
    broken = tmp_path / "web" / "00001.tar"
    whole = broken.read_bytes()
    for length in (9000, 100):
        broken.write_bytes(whole[:length])
        assert main([str(tmp_path / "web"), "--sheet", str(tmp_path / "s.png")]) == 1
        assert "1 damaged files" in capsys.readouterr().out


def test_oddities_are_shown_but_no_fault(tmp_path):
    samples = list(LAYOUTS["compositional"](random.Random(0), 10, 48))
    image = next(pair_samples(random.Random(1), 1, 30))["jpg"]
    for sample in samples[:3]:
        sample["0.jpg"] = image
    write_tars(tmp_path / "set", samples, 10)
    found = tmp_path / "found.json"
    assert main([str(tmp_path / "set"), "--sheet", str(tmp_path / "s.png"), "--json", str(found)]) == 0
    assert len(json.loads(found.read_text())["odd"]["mask and crop differ in size"]) == 3


def test_a_corrupt_picture_on_white_makes_its_sample_unusable(tmp_path):
    samples = list(LAYOUTS["compositional"](random.Random(0), 10, 48))
    image = next(pair_samples(random.Random(1), 1, 30))["jpg"]
    for sample, white in ((samples[2], image[:100]), (samples[3], image)):
        sample["0.white.jpg"] = white
    write_tars(tmp_path / "set", samples, 10)
    found = tmp_path / "found.json"
    main([str(tmp_path / "set"), "--sheet", str(tmp_path / "s.png"), "--json", str(found), "--workers", "1"])
    assert json.loads(found.read_text())["unusable"] == {"corrupt picture": ["00000.tar/000000002"]}


@pytest.mark.parametrize("option", ["--sheet", "--json"])
def test_a_file_that_cannot_be_written_is_a_sentence(tmp_path, option, capsys):
    write_tars(tmp_path / "web", pair_samples(random.Random(0), 20, 48), per_shard=10)
    target = tmp_path / "missing" / "found.png"
    assert main([str(tmp_path / "web"), option, str(target)]) == 2
    said = capsys.readouterr().err.strip()
    assert said == f"{target} cannot be written (No such file or directory); give another file with {option}."


@pytest.mark.parametrize("path", ["nowhere", "empty", "strange"])
def test_what_is_no_data_set_ends_with_code_two_and_a_sentence(tmp_path, path, capsys):
    (tmp_path / "empty").mkdir()
    write_tars(tmp_path / "strange", [{"bin": b"x"}], 10)
    assert main([str(tmp_path / path)]) == 2
    said = capsys.readouterr().err.strip()
    assert said
    assert "\n" not in said
    assert str(tmp_path / path) in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--limit", "-1"], "--limit: -1 must be at least 0."),
        (["--workers", "0"], "--workers: 0 must be at least 1."),
        (["--max-bad", "nan"], "--max-bad: nan must be at least 0 and at most 100."),
    ],
)
def test_a_limit_that_lets_everything_pass_is_refused(tmp_path, words, said, capsys):
    assert main([str(tmp_path), *words]) == 2
    assert capsys.readouterr().err.strip() == said


def test_the_sheet_shows_sound_samples_only(tmp_path):
    path = _spoilt(tmp_path / "web", 2)
    sheet = dataset_sheet(index_dataset(path), "captions", 12)
    assert sheet.height > 1000  # three rows: twelve sound samples were found among as many spoilt ones
    everything = _spoilt(tmp_path / "bad", 1)
    assert dataset_sheet(index_dataset(everything), "captions", 12) is None


def test_a_long_text_in_any_script_stays_on_its_card(tmp_path):
    texts = ["word " * 500, "x" * 3000, "日本語の文章" * 200, "\n\n\n a"]
    write_shard(tmp_path / "t.tar", [(str(number), {"txt": text.encode()}) for number, text in enumerate(texts)])
    sheet = dataset_sheet(index_dataset(tmp_path / "t.tar"), "text", 12)
    assert sheet.height < 700
