"""Converters: every layout in its true form, restart at any moment, the same bytes, counted skips."""

import base64
import csv
import io
import itertools
import json
import multiprocessing
import os
import random
import signal
import tarfile
import threading
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from kosmos_core.tokenizer import Tokenizer
from training.data.convert import conversion, image_store, parts, row_files
from training.data.convert.__main__ import main
from training.data.convert.omnigen2_uno import mentions
from training.data.convert.row_files import PIECE, Rows
from training.data.cookers import COOKERS
from training.data.index import index_dataset
from training.data.lint import main as lint
from training.data.reader import Reader, detect_kind
from training.data.sample_types import BadSample
from training.data.sequences import compositional_sequence, edit_sequence
from training.data.shard_writer import write_shard


def image(number, size=(40, 30), kind="JPEG", mode="RGB"):
    file = io.BytesIO()
    colour = (number * 37 % 256, number * 91 % 256, 80)
    Image.new("RGB", size, colour).convert(mode).save(file, kind)
    return file.getvalue()


def samples_of(folder):
    dataset = index_dataset(folder)
    kind = detect_kind(dataset)
    reader = Reader(dataset, kind)
    return kind, [COOKERS[kind](reader[number]) for number in range(len(reader))]


def tree(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.tar"))}


def stats(folder):
    return json.loads((folder / "stats.json").read_text())


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def instruct_folder(root, count=7):
    """`<root>/<name>/prompt.json`, `<seed>_0.jpg`, `<seed>_1.jpg` and the list of seeds, some of it broken."""
    seeds = []
    for number in range(count):
        folder = root / f"{number:07d}"
        folder.mkdir(parents=True)
        prompt = {"input": f"a field {number}", "edit": f"make it {number}", "output": "another field"}
        (folder / "prompt.json").write_text(json.dumps(prompt))
        names = [f"{1000 + number}", f"{2000 + number}"][: 1 + number % 2]
        for name in names:
            for moment in (0, 1):
                (folder / f"{name}_{moment}.jpg").write_bytes(image(number * 10 + moment + int(name) // 1000))
        seeds.append([f"{number:07d}", names])
    (root / "seeds.json").write_text(json.dumps(seeds))
    return root


def test_instructpix2pix_folders_become_edits_with_all_their_seeds(tmp_path, out):
    source = instruct_folder(tmp_path / "ip2p")
    (source / "0000002" / "prompt.json").write_text("{")
    (source / "0000004" / "1004_1.jpg").unlink()
    (source / "0000005" / "prompt.json").write_text(json.dumps({"input": "x", "edit": " "}))
    (source / "0000006" / "1006_0.jpg").write_bytes(b"no picture")
    assert main(["instructpix2pix", str(source), str(out), "--shard-size", "3", "--workers", "1"]) == 0
    kind, samples = samples_of(out)
    assert kind == "edit"
    assert [sample.instruction for sample in samples] == ["make it 0", "make it 1", "make it 3"]
    assert [len(sample.pairs) for sample in samples] == [1, 2, 2]
    assert (samples[0].caption, samples[0].edited) == ("a field 0", "another field")
    assert samples[0].pairs[0] == (image(1), image(2))  # the bytes as they were
    assert stats(out)["skipped"] == {"bad prompt.json": 1, "missing picture": 1, "empty edit": 1, "corrupt picture": 1}
    assert stats(out)["examples"]["corrupt picture"] == [6]
    assert lint([str(out), "--sheet", str(tmp_path / "s.png")]) == 0


def test_rows_of_a_large_row_group_are_read_a_few_at_a_time_and_in_any_order(tmp_path):
    parquet.write_table(pa.table({"n": range(500), "other": range(500)}), tmp_path / "a.parquet", row_group_size=300)
    rows = Rows(tmp_path / "a.parquet", ("n",))
    order = [0, 1, 299, 300, 499, 298, 5, 64, 63, 128]
    assert [rows[number] for number in order] == [{"n": number} for number in order]
    assert len(rows._open[1].rows) == PIECE < 300


@pytest.mark.parametrize("repeated", [True, False])
def test_few_rows_of_huge_values_are_read_in_smaller_pieces(tmp_path, monkeypatch, repeated):
    monkeypatch.setattr(row_files, "PIECE_BYTES", 4000)
    values = [bytes([0 if repeated else number]) * 1000 for number in range(8)]
    parquet.write_table(pa.table({"value": values}), tmp_path / "a.parquet", use_dictionary=repeated)
    pieces = list(Rows(tmp_path / "a.parquet", ("value",))._read(0))
    assert [row["value"] for piece in pieces for row in piece] == values
    assert max(sum(len(row["value"]) for row in piece) for piece in pieces) <= 4000


def test_instructpix2pix_parquet_becomes_edits(tmp_path, out):
    rows = {
        "original_prompt": ["a cat", "a dog"],
        "original_image": [{"bytes": image(1), "path": None}, {"bytes": image(2), "path": None}],
        "edit_prompt": ["make it red", "make it blue"],
        "edited_prompt": ["a red cat", "a blue dog"],
        "edited_image": [{"bytes": image(3), "path": None}, {"bytes": None, "path": None}],
    }
    (tmp_path / "data").mkdir()
    parquet.write_table(pa.table(rows), tmp_path / "data" / "train-00000.parquet", row_group_size=1)
    assert main(["instructpix2pix", str(tmp_path / "data"), str(out), "--workers", "2"]) == 0
    _, samples = samples_of(out)
    assert [(s.caption, s.instruction, s.pairs, s.edited) for s in samples] == [
        ("a cat", "make it red", [(image(1), image(3))], "a red cat")
    ]
    assert stats(out)["skipped"] == {"missing picture": 1}


HEADER = [
    "ImageID",
    "Subset",
    "OriginalURL",
    "OriginalLandingURL",
    "License",
    "AuthorProfileURL",
    "Author",
    "Title",
    "OriginalSize",
    "OriginalMD5",
    "Thumbnail300KURL",
    "Rotation",
]


@pytest.mark.parametrize("stored", ["folder", "tars"])
def test_open_images_are_turned_upright(tmp_path, out, stored):
    corner = np.zeros((30, 40, 3), np.uint8)
    corner[:10, :10] = 255  # white in the upper left
    file = io.BytesIO()
    Image.fromarray(corner).save(file, "JPEG", quality=95)
    rows = [
        ["id0", "train", "u", "land", "cc-by", "", "", 'a "quoted, title"', "1", "m", "", rotation]
        for rotation in ["", "0.0", "90.0", "180.0", "270.0", "nan", "45.0", "x"]
    ]
    for number, row in enumerate(rows):
        row[0] = f"id{number}"
    rows.append([*rows[0]])
    rows[-1][0] = "absent"
    with (tmp_path / "images.csv").open("w", newline="") as table:
        csv.writer(table).writerows([HEADER, *rows])
    images = tmp_path / "pictures"
    if stored == "folder":
        (images / "train").mkdir(parents=True)
        for number in range(8):
            (images / "train" / f"id{number}.jpg").write_bytes(file.getvalue())
    else:
        write_shard(images / "train_0.tar", [(f"train_0/id{n}", {"jpg": file.getvalue()}) for n in range(8)])
    command = ["openimages", str(tmp_path / "images.csv"), str(out), "--pictures", str(images), "--workers", "1"]
    assert main(command) == 0
    kind, samples = samples_of(out)
    assert kind == "pictures"
    assert [sample.__key__.rpartition("/")[2] for sample in samples] == [f"id{number}" for number in range(6)]
    where = []
    for sample in samples:
        shown = np.asarray(Image.open(io.BytesIO(sample.image)).convert("L"))
        height, width = shown.shape
        corners = {
            "upper left": shown[2, 2],
            "upper right": shown[2, -3],
            "lower left": shown[-3, 2],
            "lower right": shown[-3, -3],
        }
        where.append((width, height, max(corners, key=corners.get)))
    assert where == [
        (40, 30, "upper left"),
        (40, 30, "upper left"),
        (30, 40, "lower left"),  # a quarter turn counter-clockwise
        (40, 30, "lower right"),
        (30, 40, "upper right"),
        (40, 30, "upper left"),
    ]
    assert samples[0].image == file.getvalue()
    assert stats(out)["skipped"] == {"bad rotation": 2, "picture not found": 1}


def test_a_file_that_was_changed_and_dated_back_is_another_one(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("one")
    before, times = conversion.file_state(path), path.stat()
    time.sleep(0.02)  # a disk's clock may be coarse
    path.write_text("two")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    after = conversion.file_state(path)
    assert (after[:3], after != before) == (before[:3], True)


def test_a_picture_that_is_stored_anew_keeps_its_colours_and_an_animation_its_first_frame():
    stripes = np.zeros((16, 16, 3), np.uint8)
    stripes[:, ::2, 0], stripes[:, 1::2, 2] = 255, 255  # red and blue columns, one pixel each
    found = np.asarray(Image.open(io.BytesIO(parts.as_jpeg(Image.fromarray(stripes)))).convert("RGB")).astype(int)
    assert np.abs(found - stripes).max() < 40
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    for form, lossless in (("WEBP", {"lossless": True}), ("PNG", {}), ("GIF", {})):
        frames[0].save(file := io.BytesIO(), form, save_all=True, append_images=frames[1:], duration=100, **lossless)
        ((name, content),) = parts.image_part(file.getvalue(), "0.").items()
        kept = Image.open(io.BytesIO(content))
        assert (name, kept.format, getattr(kept, "n_frames", 1)) == ("0.jpg", "JPEG", 1)
        assert np.abs(np.asarray(kept).astype(int) - (255, 0, 0)).max() < 10


def test_mmc4_pictures_stand_before_their_sentences(tmp_path, out):
    documents = [
        {
            "url": "http://x",
            "text_list": ["First.", "Second.", "Third."],
            "image_info": [
                {"image_name": "b.jpg", "raw_url": "u/b", "matched_text_index": 2, "matched_sim": 0.3},
                {"image_name": "a.png", "raw_url": "u/a", "matched_text_index": 0, "matched_sim": 0.31},
                {"image_name": "gone.jpg", "raw_url": "u/g", "matched_text_index": 1, "matched_sim": 0.4},
                {"image_name": "c.jpg", "raw_url": "u/c", "matched_text_index": 1, "matched_sim": 0.1},
            ],
            "similarity_matrix": [[0.1]],
            "could_have_url_duplicate": 0,
        },
        {"text_list": ["Only text."], "image_info": []},
        {"text_list": "broken"},
        {"text_list": ["x"], "image_info": [{"image_name": "a.png", "matched_text_index": 5, "matched_sim": 1}]},
    ]
    (tmp_path / "docs_shard_0_v2.jsonl").write_text("\n".join(map(json.dumps, documents)) + "\n{oops\n")
    images = tmp_path / "pictures"
    images.mkdir()
    (images / "a.png").write_bytes(image(1, kind="PNG"))
    (images / "b.jpg").write_bytes(image(2))
    (images / "c.jpg").write_bytes(image(3))
    command = ["mmc4", str(tmp_path / "docs_shard_0_v2.jsonl"), str(out), "--pictures", str(images)]
    assert main([*command, "--least-similarity", "0.3"]) == 0
    kind, samples = samples_of(out)
    assert kind == "interleaved"
    assert [sample.segments for sample in samples] == [[image(1, kind="PNG"), "First.", "Second.", image(2), "Third."]]
    assert stats(out)["skipped"] == {"bad document": 2, "no picture of the document at hand": 1, "bad json": 1}


def test_obelics_takes_pictures_from_img2dataset_tars_by_their_url(tmp_path, out):
    rows = {
        "texts": [[None, "between", None], ["only text"], [None]],
        "images": [["http://p/1.jpg?x=2", None, "http://p/2.gif"], [None], ["http://p/1.jpg?x=2"]],
        "metadata": ["[]", "[]", "[]"],
        "general_metadata": ["{}", "{}", "{}"],
    }
    parquet.write_table(pa.table(rows), tmp_path / "obelics-train-00000.parquet")
    shard = [
        (f"00000000{number}", {"jpg": content, "json": json.dumps({"url": url, "status": "success"}).encode()})
        for number, (url, content) in enumerate(
            [("http://p/2.gif", image(2, kind="GIF")), ("http://p/1.jpg?x=2", image(1))]
        )
    ]
    write_shard(tmp_path / "pictures" / "00000.tar", shard)
    source = str(tmp_path / "obelics-train-00000.parquet")
    assert main(["obelics", source, str(out), "--pictures", str(tmp_path / "pictures")]) == 0
    _, (sample,) = samples_of(out)
    first, text, second = sample.segments
    assert (first, text) == (image(1), "between")
    assert Image.open(io.BytesIO(second)).format == "JPEG"  # a GIF is kept as its first frame
    assert stats(out)["skipped"] == {"no picture of the document at hand": 1, "no text": 1}


def test_a_list_of_tars_that_was_cut_short_is_made_anew(tmp_path, monkeypatch):
    described = [json.dumps({"url": f"u/{number}"}).encode() for number in range(9)]
    shard = [(str(number), {"jpg": image(number), "json": described[number]}) for number in range(9)]
    write_shard(tmp_path / "tars" / "0.tar", shard)
    names, table = image_store._names, tmp_path / "work" / "table.sqlite"

    def cut(crude, number):
        if number == 5:
            raise KeyboardInterrupt
        return names(crude, number)

    with monkeypatch.context() as patched:
        patched.setattr(image_store, "_names", cut)
        with pytest.raises(KeyboardInterrupt):
            image_store.ImageStore(tmp_path / "tars", table)
    for _ in range(2):  # made anew, then used as it is
        store = image_store.ImageStore(tmp_path / "tars", table)
        assert [store.get(f"u/{number}") for number in range(9)] == [image(number) for number in range(9)]
        monkeypatch.setattr(image_store, "_names", cut)


def test_omnigen2_rows_become_captions_edits_and_compositions(tmp_path, out):
    rows = [
        {"task_type": "t2i", "instruction": "a sunset", "input_images": None, "output_image": "o/0.jpg"},
        {"task_type": "edit", "instruction": "add snow", "input_images": ["i/1.jpg"], "output_image": "o/1.jpg"},
        {
            "task_type": "subject",
            "instruction": "Put the dog of image 2 on the sofa of image 1.",
            "input_images": ["i/1.jpg", "i/2.jpg"],
            "output_image": "o/2.jpg",
        },
        {"task_type": "edit", "instruction": "", "input_images": ["i/1.jpg"], "output_image": "o/1.jpg"},
        {"task_type": "edit", "instruction": "x", "input_images": ["../secret.jpg"], "output_image": "o/1.jpg"},
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "secret.jpg").write_bytes(image(9))
    root = tmp_path / "images"
    for name, number in (("o/0", 0), ("o/1", 1), ("o/2", 2), ("i/1", 3), ("i/2", 4)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / f"{name}.jpg").write_bytes(image(number))
    assert main(["omnigen2", str(tmp_path / "data.jsonl"), str(out), "--pictures", str(root)]) == 0
    assert samples_of(out / "captions")[1][0].caption == "a sunset"
    kind, (edit,) = samples_of(out / "edit")
    assert (kind, edit.caption, edit.pairs) == ("edit", "", [(image(3), image(1))])
    _, (sample,) = samples_of(out / "compositional")
    assert sample.target == image(2)
    assert [(sample.caption[e.start : e.end], e.crop) for e in sample.entities] == [
        ("image 2", image(4)),
        ("image 1", image(3)),
    ]
    assert stats(out)["skipped"] == {"empty instruction": 1, "picture not found": 1}
    for folder in ("captions", "edit", "compositional"):
        assert lint([str(out / folder), "--sheet", str(tmp_path / "s.png")]) == 0


def test_uno_pictures_that_no_words_name_stand_before_the_prompt(tmp_path, out, tiny_tokenizer):
    rows = [{"prompt": "a dog and a cat on the beach", "image_paths": ["1.jpg", "2.jpg"], "image_tgt_path": "0.jpg"}]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(image(number))
    assert main(["uno", str(tmp_path / "train.json"), str(out)]) == 0
    _, (sample,) = samples_of(out / "compositional")
    sequence = compositional_sequence(sample, tiny_tokenizer, random.Random(0), 0.5, 0.5)
    block = [tiny_tokenizer.ids.image_start] * (tiny_tokenizer.latents + 1) + [tiny_tokenizer.ids.image_end]
    assert sequence.token_ids == [0, *block, *block, *tiny_tokenizer.encode(rows[0]["prompt"]), 2]


@pytest.mark.parametrize(
    ("text", "count", "words"),
    [
        ("Replace the cup in image 1 by the one in image 2", 2, ["image 1", "image 2"]),
        ("the person from the second image in the first picture", 2, ["the first picture", "the second image"]),
        ("<img><|image_1|></img> with <|image_2|>", 2, ["<img><|image_1|></img>", "<|image_2|>"]),
        ("image 1 and image 1 again", 1, ["image 1"]),
        ("image 1, for the first picture is large", 1, ["image 1"]),
        ("an image 12 pixels wide", 1, [""]),
        ("a plain prompt", 2, ["", ""]),
    ],
)
def test_words_that_speak_of_a_picture_are_found(text, count, words):
    assert [text[start:end] for start, end in mentions(text, count)] == words


def _tsv(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(line) + "\n" for line in lines))


def _b64(content):
    return base64.b64encode(content).decode()


def test_original_tsv_files_give_the_same_sequences_before_and_after(shared, tmp_path):
    """The recorded lines, converted and read again, against the lines read as they are."""
    files = (shared / "tokenizer/sentencepiece.bpe.model", shared / "tokenizer/dict.txt")
    tokenizer = Tokenizer.from_files(*files)
    for kind in ("openimage", "instructpix2pix", "laion"):
        source, target = tmp_path / kind, tmp_path / f"{kind}-converted"
        source.mkdir()
        (source / "a.tsv").write_bytes((shared / f"golden/loaders/{kind}.tsv").read_bytes())
        assert main(["original-tsv", str(source), str(target), "--set", kind, "--workers", "1"]) == 0
        _, after = samples_of(target)
        reader = Reader(index_dataset(source), f"original-{kind}")
        before = []
        for number in range(len(reader)):
            try:
                sample = COOKERS[f"original-{kind}"](reader[number])
            except BadSample:
                continue
            before.append(sample)
        assert len(before) == len(after)
        for first, second in zip(before, after, strict=True):
            if kind == "laion":
                assert (first.caption, first.image, first.width) == (second.caption, second.image, second.width)
                continue
            for seed in range(4):
                made = [
                    compositional_sequence(sample, tokenizer, random.Random(seed), 0.5, 0.5)
                    if kind == "openimage"
                    else edit_sequence(sample, tokenizer, random.Random(seed), 0.5)
                    for sample in (first, second)
                ]
                assert made[0].token_ids == made[1].token_ids
                for one, other in zip(
                    (*made[0].images, made[0].target), (*made[1].images, made[1].target), strict=True
                ):
                    assert np.array_equal(np.asarray(one), np.asarray(other))


def test_broken_lines_of_a_tsv_are_counted(tmp_path, out):
    good = _b64(image(1, kind="PNG"))
    lines = [
        ["0", "a caption", good, "512", "512"],
        ["1", "no size", good, "x", "512"],
        ["2", "short"],
        ["3", "corrupt", _b64(b"nothing"), "1", "1"],
        ["4", " ", good, "1", "1"],
    ]
    _tsv(tmp_path / "laion" / "a.tsv", lines)
    assert main(["original-tsv", str(tmp_path / "laion"), str(out), "--set", "laion"]) == 0
    assert stats(out)["written"] == {"": 1}
    assert stats(out)["skipped"] == {"size unknown": 1, "missing columns": 1, "corrupt picture": 1, "empty caption": 1}


def uno_row(target="b.png"):
    return json.dumps({"prompt": "a dog", "image_paths": ["a.jpg"], "image_tgt_path": target})


def test_rows_of_two_kinds_are_refused_and_links_and_endings_in_capitals_are_read(tmp_path, out, capsys):
    source, elsewhere = tmp_path / "uno", tmp_path / "elsewhere"
    source.mkdir()
    elsewhere.mkdir()
    (source / "a.jpg").write_bytes(image(1))
    write_shard(source / "pictures.tar", [("b", {"png": image(2, kind="PNG")})])  # beside a loose one
    (source / "X.JSON").write_text(f"[{uno_row()}]")
    (elsewhere / "y.json").write_text(f"[{uno_row()}, {uno_row()}]")
    (source / "linked").symlink_to(elsewhere)
    command = ["uno", str(source), str(out), "--workers", "1"]
    assert main(command) == 0
    assert stats(out)["written"] == {"compositional": 3}
    (elsewhere / "y.json").write_text(f"[{uno_row()}]")
    assert main(command) == 2
    assert "a conversion with another " in capsys.readouterr().err
    (source / "README.json").write_text('{"about": "the rows"}')
    (source / "z.parquet").write_bytes(b"")
    assert main([*command[:2], str(tmp_path / "other")]) == 2
    assert "holds z.parquet and X.JSON, of which only one kind can be read." in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_own_edits_with_other_endings_are_read_and_nothing_is_lost_unsaid(tmp_path, out):
    source = tmp_path / "own"
    for name, ending in (("cat/1", "JPG"), ("cat_1", "png")):  # one key, were slashes all that is replaced
        (source / name).mkdir(parents=True)
        (source / name / "prompt.json").write_text(json.dumps({"edit": name}))
        for moment in (0, 1):
            (source / name / f"7_{moment}.{ending}").write_bytes(image(moment))
    (source / "cat_1" / "8_0.jpg").write_bytes(image(3))
    assert main(["instructpix2pix", str(source), str(out), "--workers", "1"]) == 0
    _, samples = samples_of(out)
    assert [(sample.instruction, len(sample.pairs)) for sample in samples] == [("cat/1", 1), ("cat_1", 1)]
    assert stats(out)["lacking"] == {"picture of a pair": 1}


def test_a_shard_depends_on_its_samples_alone(tmp_path):
    parts = [("jpg", b"x"), ("txt", b"y"), ("json", b"z")]
    for name, order in (("a", parts), ("b", parts[::-1])):
        write_shard(tmp_path / f"{name}.tar", [("0", dict(order))])
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_the_same_input_gives_the_same_bytes_on_any_number_of_workers(tmp_path):
    source = instruct_folder(tmp_path / "ip2p", 23)
    trees = []
    for name, workers in (("a", "1"), ("b", "3")):
        assert (
            main(["instructpix2pix", str(source), str(tmp_path / name), "--shard-size", "4", "--workers", workers]) == 0
        )
        trees.append((tree(tmp_path / name), (tmp_path / name / "stats.json").read_bytes()))
    assert trees[0] == trees[1]
    assert len(trees[0][0]) == 6


def test_a_killed_conversion_goes_on_to_the_same_bytes(tmp_path):
    """SIGKILL at random moments of ever later calls; what an uninterrupted run writes is the measure."""
    source = instruct_folder(tmp_path / "ip2p", 30)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = ["--shard-size", "2", "--workers", "1"]
    assert main(["instructpix2pix", str(source), str(whole), *options]) == 0
    command = ["instructpix2pix", str(source), str(killed), *options]

    def convert_until_killed(last, delay):
        made = itertools.count(1)
        for name in ("write_file", "convert_shard"):
            function = getattr(conversion, name)

            def slow(*given, function=function):
                if next(made) == last:
                    threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
                time.sleep(0.02)
                function(*given)
                time.sleep(0.02)

            setattr(conversion, name, slow)
        main(command)

    rng = random.Random(0)
    for last in range(1, 7):
        given = last, rng.uniform(0, 0.04)
        process = multiprocessing.get_context("fork").Process(target=convert_until_killed, args=given)
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    done = sorted((killed / ".conversion").glob("0*.json"))
    assert 0 < len(done) < 15
    times = {path: path.stat().st_mtime_ns for path in done}
    assert main(["instructpix2pix", str(source), str(killed), *options]) == 0
    assert tree(killed) == tree(whole)
    assert {path: path.stat().st_mtime_ns for path in done} == times  # what was done was not done again
    assert not list(killed.rglob("*.tmp"))


@pytest.mark.parametrize("change", ["shard_size", "source", "foreign"])
def test_an_output_folder_of_something_else_is_refused(tmp_path, out, change, capsys):
    source = instruct_folder(tmp_path / "ip2p", 4)
    command = ["instructpix2pix", str(source), str(out), "--workers", "1"]
    if change == "foreign":
        out.mkdir()
        (out / "precious.txt").write_text("mine")
        assert main(command) == 2
        assert (out / "precious.txt").read_text() == "mine"
        assert "is not empty" in capsys.readouterr().err
        return
    assert main(command) == 0
    if change == "shard_size":
        command += ["--shard-size", "2"]
    else:
        command[1] = str(instruct_folder(tmp_path / "other", 4))
    before = tree(out)
    assert main(command) == 2
    assert f"another {change}" in capsys.readouterr().err
    assert tree(out) == before


def test_a_full_disk_is_a_sentence_and_the_complete_shards_stay(tmp_path, out, capsys, monkeypatch):
    source = instruct_folder(tmp_path / "ip2p", 12)
    command = ["instructpix2pix", str(source), str(out), "--shard-size", "3", "--workers", "1"]
    fsync, calls = os.fsync, []

    def full(file):
        calls.append(file)
        if len(calls) == 6:  # plan.json, two shards with their counts, and this is the third shard
            raise OSError(28, "No space left on device")
        fsync(file)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        assert main(command) == 1
    said = capsys.readouterr().err
    assert "No space left on device" in said
    assert "goes on from there" in said
    assert sorted(tree(out)) == ["00000.tar", "00001.tar"]
    assert not list(out.rglob("*.tmp"))
    assert main(command) == 0
    assert sorted(tree(out)) == [f"0000{number}.tar" for number in range(4)]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["instructpix2pix", "{tmp}/nowhere", "{tmp}/out"], "does not exist"),
        (["instructpix2pix", "{tmp}/in", "{tmp}/out"], "neither seeds.json"),
        (["mmc4", "{tmp}/in", "{tmp}/out", "--pictures", "{tmp}"], "none of .parquet, .jsonl, .json"),
        (["obelics", "{tmp}/x.parquet", "{tmp}/out", "--pictures", "{tmp}"], "cannot be read"),
        (["original-tsv", "{tmp}/in", "{tmp}/out", "--set", "laion"], "holds no data file"),
        (["openimages", "{tmp}/t.csv", "{tmp}/out", "--pictures", "{tmp}"], "no column ImageID"),
        (["openimages", "{tmp}/t.csv", "{tmp}/out", "--pictures", "{tmp}/no"], "picture folder"),
        (["uno", "{tmp}", "{tmp}/out"], "lies in {tmp}, whose files are read"),
        (["uno", "{tmp}/t.csv", "{tmp}/out", "--workers", "0"], "--workers: 0 must be at least 1"),
        (["uno", "{tmp}/t.csv", "{tmp}/t.csv"], "t.csv is a file. Choose a folder"),
    ],
)
def test_input_that_is_not_there_or_of_another_layout_is_a_sentence(tmp_path, command, said, capsys):
    if "obelics" in command:
        (tmp_path / "x.parquet").write_bytes(b"no parquet")
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    (tmp_path / "in").mkdir()
    assert main([word.format(tmp=tmp_path) for word in command]) == 2
    error = capsys.readouterr().err.strip()
    assert said.format(tmp=tmp_path) in error
    assert "\n" not in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def hostile_sources(root):
    """What convert is given, the rest of its command, and what it has to say; escape codes in every name."""
    picture, deep = image(0), b"[" * 200_000
    outside, named = root / "outside", "a\x1b[31m"
    outside.mkdir()
    for name, content in {"prompt.json": b'{"edit": "x"}', "1_0.jpg": picture, "1_1.jpg": picture}.items():
        (outside / name).write_bytes(content)
    (root / "pictures").mkdir()
    (root / "pictures/a.jpg").write_bytes(picture)
    with (root / "pictures/large.jpg").open("wb") as file:
        file.truncate(300_000_000)
    with tarfile.open(root / "pictures/0.tar", "w") as tar:
        for name, content in {"b.jpg": picture, "b.json": b'{"url": "\\ud800"}'}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    often = {"text_list": ["x"], "image_info": [{"image_name": "a.jpg", "matched_text_index": 0}] * 600}
    pictures, uno = ["--pictures", str(root / "pictures")], {"prompt": "x", "image_tgt_path": "a.jpg"}
    seeds = json.dumps([["../outside", ["1"]], [str(outside), ["1"]]])
    columns = io.BytesIO()
    parquet.write_table(pa.table({named: [1]}), columns)
    repeated = io.BytesIO()
    parquet.write_table(pa.table({"texts": [["x"]] * 200_000, "images": [[None]] * 200_000}), repeated)
    return [
        ("uno", f"{named}.json", deep, pictures, "cannot be read: maximum recursion depth"),
        ("instructpix2pix", "seeds.json", deep, [], "is not a list of [name, [seed, ...]]"),
        ("instructpix2pix", "seeds.json", seeds.encode(), [], "'a name outside of the source': 2"),
        ("uno", f"{named}.json", b"{}", pictures, "a\\x1b[31m.json is not a list"),
        ("obelics", "a.parquet", columns.getvalue(), pictures, "no column texts, only a\\x1b[31m"),
        ("obelics", "a.parquet", repeated.getvalue(), pictures, "a.parquet claims 200,000 rows in"),
        ("openimages", "a.csv", b"ImageID,Rotation," + b"x" * 200_000, pictures, "field larger than field limit"),
        ("uno", "a.json", _rows(uno | {"image_paths": ["a.jpg"] * 600}), pictures, "'too many pictures': 1"),
        ("uno", "a.json", _rows(uno | {"image_paths": ["large.jpg"]}), pictures, "'file too large': 1"),
        ("uno", "a.json", _rows(uno | {"image_paths": ["\ud800"]}), pictures, "'broken (UnicodeEncodeError)': 1"),
        ("mmc4", "a.json", _rows(often), pictures, "'too many pictures': 1"),
    ]


def _rows(row):
    return json.dumps([row]).encode()


def test_what_files_from_outside_say_of_themselves_is_a_sentence_and_bounded(tmp_path, out, capsys):
    for number, (layout, name, content, rest, said) in enumerate(hostile_sources(tmp_path)):
        source = tmp_path / f"source{number}"
        source.mkdir()
        (source / name).write_bytes(content)
        given = source / name if layout == "openimages" else source
        assert main([layout, str(given), f"{out}{number}", *rest, "--workers", "1"]) == 2, name
        error = capsys.readouterr().err.strip()
        assert said in error
        assert error.isprintable()


def test_a_record_that_is_none_and_an_output_of_any_name_are_read(tmp_path, capsys):
    (tmp_path / "pictures").mkdir()
    with tarfile.open(tmp_path / "pictures/0.tar", "w") as tar:
        member = tarfile.TarInfo("a.jpg")
        member.size = len(image(0))
        tar.addfile(member, io.BytesIO(image(0)))
    (tmp_path / "a.json").write_bytes(_rows({"prompt": "x", "image_paths": ["a"], "image_tgt_path": "a"}))
    out = tmp_path / "50% of ?#"
    command = ["uno", str(tmp_path / "a.json"), str(out), "--pictures", str(tmp_path / "pictures")]
    assert main(command) == 0
    for name in ("00000.json", "plan.json", "pictures.sqlite"):
        (out / ".conversion" / name).write_bytes(b"[]" * 5000)
        assert main(command) == 2
        assert name in capsys.readouterr().err
