"""Old pictures and scores never stand in a new table, and nothing is painted before everything has been opened."""

import json
import shutil
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from filelock import FileLock
from PIL import Image

from tests.tiny import drawings as tiny
from tests.tiny.clip import save_dino
from tests.tiny.kosmos_file import save_tiny_kosmos
from training.base.content_digest import content_digest
from training.base.errors import ConfigError
from training.base.processes import ProcessGroup
from training.evaluate import statistics
from training.evaluate.__main__ import main
from training.evaluate.coco import real_images
from training.evaluate.command_options import contents_of_jobs, open_output, sampling_of
from training.evaluate.compare import model_names
from training.evaluate.fid import ImageFiles, name_of_reals, warning_of_size
from training.evaluate.image_generator import Sampling
from training.evaluate.jobs import Job, dreambench_jobs
from training.evaluate.output_folder import OutputFolder
from training.evaluate.protocols import PROTOCOLS
from training.evaluate.statistics import summarise
from training.evaluate.subjects import open_image, read_subjects, subject_images
from training.evaluate.table import markdown


@pytest.fixture
def bench(weights, sd, dino, clip, tmp_path) -> list[str]:
    """Models and data of its own, to be changed: one subject, one prompt, four pictures."""
    shutil.copy(weights, tmp_path / "w.safetensors")
    shutil.copytree(dino, tmp_path / "dino")
    tiny.save_subjects(tmp_path, {"mug": 2})
    listed(tmp_path, "a {} on the beach")
    words = {
        "--data": tmp_path, "--subjects": tmp_path / "subjects.yaml", "--weights": tmp_path / "w.safetensors",
        "--sd": sd, "--protocol": "kosmosg", "--size": 16, "--steps": 1, "--dino": tmp_path / "dino", "--clip": clip,
        "--output": tmp_path / "out",
    }  # fmt: skip
    return ["dreambench", *(str(word) for pair in words.items() for word in pair)]


def listed(folder: Path, prompt: str, name: str = "mug") -> None:
    subject = {"name": name, "noun": "mug", "kind": "object", "picked": "01.jpg"}
    content = {"name": "one", "prompts": {"object": [prompt]}, "subjects": [subject]}
    (folder / "subjects.yaml").write_text(yaml.safe_dump(content))


def test_resuming_takes_neither_pictures_nor_scores_of_other_content(bench, weights, dino, tmp_path, capsys):
    assert main(bench) == 0
    assert "a mean over 1 subject is no figure to compare" in (tmp_path / "out" / "table.md").read_text()
    picture = next((tmp_path / "dataset" / "mug").glob("01.jpg"))
    for change, restore, said in (
        (
            lambda: save_tiny_kosmos(tmp_path / "w.safetensors", seed=1),
            lambda: shutil.copy(weights, tmp_path / "w.safetensors"),
            f"--resume: --weights {tmp_path}/w.safetensors is not what it was when the pictures in",
        ),
        (
            lambda: (shutil.copy(picture, tmp_path / "kept.jpg"), tiny.drawing(77).save(picture)),
            lambda: shutil.copy(tmp_path / "kept.jpg", picture),
            "--resume: the picture mug/01.jpg is not what it was",
        ),
        (
            lambda: listed(tmp_path, "a {} in the snow"),
            lambda: listed(tmp_path, "a {} on the beach"),
            "--resume: the prompts and their noise are not what they were",
        ),
    ):
        change()
        assert main([*bench, "--resume"]) == 2
        assert said in capsys.readouterr().err
        restore()
    before = records(tmp_path)

    assert main([*bench, "--resume"]) == 0
    assert "anew" not in capsys.readouterr().err
    assert records(tmp_path) == before

    other = tmp_path / "out" / "pictures" / "mug" / "00_2.png"
    tiny.drawing(5).resize((16, 16)).save(other)
    assert main([*bench, "--resume"]) == 0
    assert [old["dino"] == new["dino"] for old, new in zip(before, records(tmp_path), strict=True)] == [1, 1, 0, 1]

    shutil.rmtree(tmp_path / "dino")
    save_dino(tmp_path / "dino", seed=9)
    assert main([*bench, "--resume"]) == 0
    assert "scoring all pictures anew: --dino may differ from what scored them" in capsys.readouterr().err
    assert all(old["dino"] != new["dino"] for old, new in zip(before, records(tmp_path), strict=True))


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "out" / "scores.jsonl").open()]


def test_nothing_is_painted_before_every_model_and_scorer_is_open(bench, weights, sd, dino, tmp_path, capsys):
    (tmp_path / "cut.safetensors").write_bytes(weights.read_bytes()[:-100])
    (tmp_path / "captions.json").write_text(json.dumps({"annotations": [{"image_id": 1, "caption": "a dog"}]}))
    (tmp_path / "prompts.yaml").write_text("- {prompt: a dog}")
    (tmp_path / "reals").mkdir()
    for number in range(2):
        tiny.drawing(number).save(tmp_path / "reals" / f"{number}.png")
    common = ["--sd", str(sd), "--size", "16", "--steps", "1", "--output", str(tmp_path / "out")]
    coco = ["coco", "--annotations", str(tmp_path / "captions.json"), "--images", str(tmp_path / "reals"), *common]
    compare = ["compare", "--prompts", str(tmp_path / "prompts.yaml"), *common, "--weights", str(weights)]
    broken = tmp_path / "broken"
    shutil.copytree(tmp_path / "reals", broken)
    (broken / "0.png").write_bytes((broken / "0.png").read_bytes()[:200])
    single = [word if word != str(tmp_path / "dino") else str(tmp_path / "gone") for word in bench]
    alone = tmp_path / "alone"
    tiny.save_subjects(alone, {"mug": 1})
    (alone / "dataset" / "mug" / "00.jpg").rename(alone / "dataset" / "mug" / "01.jpg")
    for words, said in (
        (single, "--dino: no ViTModel at"),
        ([*bench, "--data", str(alone)], "no subject has two real pictures"),
        ([*coco, "--weights", str(weights), "--inception", str(tmp_path / "gone")], "--inception:"),
        ([*coco, "--weights", str(weights), "--extractor", "nothing"], "--extractor: nothing cannot be used"),
        ([*coco, "--weights", str(tmp_path / "cut.safetensors")], "cut.safetensors"),
        ([*compare, str(tmp_path / "cut.safetensors")], "cut.safetensors"),
        ([*compare, "--dino", str(dino)], "--dino: scores need --clip too"),
        ([*bench, "--size", "15"], "--size: 15 must be a multiple of"),
    ):
        assert main(words) == 2, words
        assert said in capsys.readouterr().err
        assert not (tmp_path / "out").exists(), words


def test_two_evaluations_in_one_folder_at_once(bench, tmp_path, capsys):
    held = FileLock(tmp_path / "out" / ".lock")
    (tmp_path / "out").mkdir()
    with held:
        assert main(bench) == 2
        assert f"--output: another evaluation is writing to {tmp_path / 'out'}; wait" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {".lock"}
    assert main([*bench, "--only", "generate"]) == 0  # what it left is in nobody's way
    unfinished = tmp_path / "out" / "pictures" / "mug" / ".00_0.png.x.tmp"
    unfinished.touch()
    with held:
        assert main([*bench, "--resume"]) == 2
    assert unfinished.exists()
    (tmp_path / "out" / "generated-0.jsonl").write_bytes(b"\0\0\0\n[]\n")  # as a crash of the machine leaves it
    assert main([*bench, "--resume", "--only", "generate"]) == 0
    assert not unfinished.exists()
    assert len(OutputFolder(tmp_path / "out").records("generated")) == 4


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xef\xbb\xbf[]", "cannot be read (it holds []); expected a .json list"),
        (b'{"prompt": "a mug"}', "cannot be read (it holds {'prompt': 'a mug'}); expected a .json list"),
        (b"[3]", "entry 1 needs `prompt` and a list of `image_paths`, it is 3"),
        (b'[{"prompt": 5, "image_paths": ["mug/01.jpg"]}]', "entry 1 needs `prompt` and a list of"),
        (b'[{"prompt": "a mug", "image_paths": "mug/01.jpg"}]', "entry 1 needs `prompt` and a list of"),
        (b'[{"prompt": "a mug", "image_paths": ["mug/01.jpg"], "nouns": "mug"}]', "entry 1 needs `prompt` and a"),
        (b"pairs:", "cannot be read (it holds None)"),
        (b"pairs: [[mug, mug], [mug, mug]]", "has mug+mug twice, with the same pictures; name it once"),
    ],
)
def test_odd_lists_of_pairs_get_a_sentence(bench, tmp_path, capsys, content, said):
    listing = tmp_path / ("pairs.yaml" if content.startswith(b"pairs") else "pairs.json")
    listing.write_bytes(content)
    assert main([*bench, "--pairs", str(listing)]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--steps", "1001"], "--steps: 1001, but Stable Diffusion has 1000 steps of noise"),
        (["--guidance", "nan"], "--guidance: nan must be a number"),
        (["--output", "{tmp}/w.safetensors"], "w.safetensors is a file; choose a folder"),
    ],
)
def test_values_that_paint_nothing_are_refused(bench, tmp_path, capsys, words, said):
    assert main([*bench, *(word.format(tmp=tmp_path) for word in words)]) == 2
    assert said in capsys.readouterr().err


def test_lists_of_other_systems_and_hidden_files_are_read_as_everywhere(tmp_path):
    listed(tmp_path, "a {} with {x} on it")
    listing = tmp_path / "subjects.yaml"
    listing.write_text(listing.read_text(), encoding="utf-16")
    (subject,) = (subjects := read_subjects(listing)).subjects
    for name in ("01.jpg", "02.JPG"):
        (tmp_path / "mug" / name).parent.mkdir(exist_ok=True)
        tiny.drawing(1).save(tmp_path / "mug" / name)
        (tmp_path / "mug" / f"._{name}").write_bytes(b"what macOS leaves on foreign disks")
    tiny.drawing(1).save(tmp_path / "mug/00.Mask.png")  # of training.personalize
    assert [path.name for path in subject_images(tmp_path, subject)] == ["01.jpg", "02.JPG"]
    (tmp_path / "mug/00.Mask.png").unlink()
    assert [path.name for path in real_images(tmp_path / "mug")] == ["01.jpg", "02.JPG"]
    assert dreambench_jobs(subjects, tmp_path, PROTOCOLS["dreambooth"])[0].prompt == "a mug <i> with {x} on it"
    for noun in (" ", "mug <i>"):
        listing.write_text(yaml.safe_dump({**yaml.safe_load(listing.read_text("utf-16")), "subjects": [
            {"name": "mug", "noun": noun, "kind": "object", "picked": "01.jpg"}]}), "utf-16")  # fmt: skip
        with pytest.raises(ConfigError, match=r"the noun of subject 'mug' is .*; expected a word for it"):
            read_subjects(listing)


def test_no_name_from_data_leads_out_of_the_output_folder(tmp_path):
    for name in ("../data/mug", "/tmp/mug", "..", "a/../../b", "mug\\..\\..\\x", 'mu"g', "x" * 121, "con", "é" * 101):
        listed(tmp_path, "a {} on the beach", name)
        with pytest.raises(ConfigError, match=r"the name of subject 1 is .* expected a file name of up to 120"):
            read_subjects(tmp_path / "subjects.yaml")
    listed(tmp_path, "a {} on the beach", "pets/dog")
    assert read_subjects(tmp_path / "subjects.yaml").subjects[0].name == "pets/dog"
    with pytest.raises(ConfigError, match=r"--weights: .* would have its pictures in a folder '\.\.'"):
        model_names([str(tmp_path / "...safetensors")])


def test_two_subjects_of_one_name_are_refused(tmp_path):
    listed(tmp_path, "a {} on the beach")
    content = yaml.safe_load((tmp_path / "subjects.yaml").read_text())
    content["subjects"] *= 2
    (tmp_path / "subjects.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match="two subjects 'mug', whose results would overwrite each other"):
        read_subjects(tmp_path / "subjects.yaml")


def test_own_pictures_of_every_kind_look_alike_to_all_that_read_them(tmp_path):
    grey = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16
    Image.fromarray(grey).save(tmp_path / "grey.png")
    cut = np.zeros((64, 64, 4), dtype=np.uint8)
    cut[16:48, 16:48] = (255, 0, 0, 255)
    Image.fromarray(cut).save(tmp_path / "cut.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((50, 100, 3), dtype=np.uint8)).save(tmp_path / "turned.jpg", exif=exif)
    for reader in (lambda path: np.asarray(open_image(path)), fid_pixels):
        assert (reader(tmp_path / "grey.png")[..., 0] == np.round(grey / 257)).all()
        assert (reader(tmp_path / "cut.png")[0, 0] == 255).all()
        assert reader(tmp_path / "turned.jpg").shape == (100, 50, 3)


def fid_pixels(path: Path) -> np.ndarray:
    return ImageFiles([path], None)[0].permute(1, 2, 0).numpy()


def told(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())["contents"]


def test_pictures_that_are_scored_without_their_models_keep_the_record_of_these(tmp_path):
    alone = ProcessGroup(0, 1, torch.device("cpu"))
    for seen in ({"--weights a": "1", "the picture b": "2"}, {"the picture b": "2"}, {"the picture c": "3"}):
        OutputFolder(tmp_path).start({"steps": 1}, (tmp_path / "run.json").exists(), alone, lambda seen=seen: seen)
    assert told(tmp_path) == {"--weights a": "1", "the picture b": "2", "the picture c": "3"}
    with pytest.raises(ConfigError, match="--resume: --weights a is not what it was"):
        OutputFolder(tmp_path).start({"steps": 1}, True, alone, lambda: {"--weights a": "4"})


@pytest.mark.parametrize("before", [None, '{"--dino": "0"}', "[", '{"--dino": "1"}'])
def test_scores_are_kept_where_the_same_scorer_is_recorded_and_nowhere_else(tmp_path, capsys, before):
    made = ("scores-0.jsonl", "scores-1.jsonl", "results.json", "table.md", "scores.jsonl")
    for name in made:
        (tmp_path / name).write_text("{}\n")
    (tmp_path / "sheets").mkdir()
    if before is not None:
        (tmp_path / "scorer.json").write_text(before)
    OutputFolder(tmp_path).begin_scores({"--dino": "1"}, ProcessGroup(0, 1, torch.device("cpu")))
    kept = before == '{"--dino": "1"}'
    assert [(tmp_path / name).exists() for name in (*made, "sheets")] == [kept] * 6
    assert json.loads((tmp_path / "scorer.json").read_text()) == {"--dino": "1"}
    assert ("scoring all pictures anew" in capsys.readouterr().err) == (not kept)


def test_every_picture_of_one_name_in_folders_of_one_name_is_looked_at(tmp_path):
    paths = [tmp_path / place / "mug" / "00.png" for place in "ab"]
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True)
        tiny.drawing(number).save(path)
    jobs = [Job(f"{number}.png", "a <i>", "a", (path,)) for number, path in enumerate(paths)]
    options = Namespace(only="score", sd="nowhere")
    before = contents_of_jobs(options, ["w"], jobs)
    assert set(before) == {"the prompts and their noise", "the picture mug/00.png", f"the picture {paths[1]}"}
    for path in paths:
        tiny.drawing(9).save(path)
    after = contents_of_jobs(options, ["w"], jobs)
    assert [name for name in before if before[name] == after[name]] == ["the prompts and their noise"]


def test_what_is_left_open_of_sampling_is_the_commands_own_and_a_guidance_of_0_is_none(tmp_path):
    asked = {"only": "score", "scheduler": None, "steps": None, "guidance": None, "size": 64}
    assert sampling_of(Namespace(**asked), "ddim", 50, 7.5) == Sampling("ddim", 50, 7.5, 64)
    asked |= {"scheduler": "pndm", "steps": 3, "guidance": 0.0}
    assert sampling_of(Namespace(**asked), "ddim", 50, 7.5) == Sampling("pndm", 3, 0.0, 64)


def test_scores_alone_take_from_the_record_whatever_made_the_pictures(tmp_path):
    alone, given = ProcessGroup(0, 1, torch.device("cpu")), {"command": "dreambench", "output": tmp_path / "out"}
    made = Namespace(**given, sd="a", dtype="bf16", resume=False)
    sampling = open_output(made, Sampling("ddim", 9, 3.0, 64), alone, dict, weights="w", seeds=[1])[1]
    scored = Namespace(**given, sd="b", dtype="fp32", resume=False, only="score")
    found = open_output(scored, Sampling("pndm", 50, 7.5, 512), alone, dict, weights="x", seeds=[1])[1]
    assert found == sampling == Sampling("ddim", 9, 3.0, 64)
    with pytest.raises(ConfigError, match="made with seeds = "):
        open_output(scored, found, alone, dict, weights="x", seeds=[2])


def test_a_file_of_the_hubs_cache_is_known_by_its_name_and_any_other_by_its_content(tmp_path):
    for folder, trusted in (("blobs", True), ("mine", False)):
        found = set()
        for content in ("one", "two"):
            path = tmp_path / folder / ("0a" * 20)
            path.parent.mkdir(exist_ok=True)
            path.write_text(content)
            (tmp_path / "model.bin").unlink(missing_ok=True)
            (tmp_path / "model.bin").symlink_to(path)
            found.add(content_digest([tmp_path / "model.bin"], [""]))
        assert (len(found) == 1) == trusted


def test_statistics_of_real_pictures_follow_their_content(tmp_path):
    tiny.drawing(1).save(tmp_path / "a.bmp")
    before = name_of_reals([tmp_path / "a.bmp"], "clean", None)
    tiny.drawing(2).save(tmp_path / "a.bmp")  # uncompressed: of the same size
    assert name_of_reals([tmp_path / "a.bmp"], "clean", None) != before


def test_figures_of_few_say_so():
    assert "FID of 6 generated and 30,000 real pictures is no figure to publish" in warning_of_size(6, 30_000)
    assert "no full rank" not in warning_of_size(5_000, 5_000) != ""
    assert warning_of_size(10_000, 40_504) == ""
    assert [bool(statistics.warning_of_size(subjects)) for subjects in (1, 9, 10)] == [True, True, False]
    one, two = ([{"subject": name, "dino": 0.5 + 0.1 * len(name)} for name in names] for names in (["a"], ["a", "bb"]))
    assert summarise(one, ["dino"])["dino"] == {"mean": 0.6, "low": None, "high": None, "subjects": 1}
    table = markdown("t", {"one": summarise(one, ["dino"]), "two": summarise(two, ["dino"])}, {"dino": "DINO"}, "Few.")
    assert "| one | 0.600 |" in table
    assert "| two | 0.650 [0.600, 0.700] |" in table
    assert table.endswith("\n\nFew.\n")
