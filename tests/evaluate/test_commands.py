"""The commands from end to end: results, resuming after a kill, several processes, and everything that can be wrong."""

import dataclasses
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from kosmos_core import Reference, load_model
from kosmos_core.atomic import UNFINISHED
from kosmos_core.reference import Encoded, model_fingerprint, save_reference
from tests.tiny import drawings as tiny
from training.evaluate.__main__ import main
from training.evaluate.feature_networks import ImageFeatures
from training.evaluate.jobs import Job
from training.evaluate.score import References, fidelity

PROMPTS = ["a {} on the beach", "a {} in the snow", "a red {}"]
IMAGES = 2 * 3 * 4


@pytest.fixture(scope="module")
def bench(weights, sd, dino, clip, tmp_path_factory) -> list[str]:
    """Everything of the command but its output: two subjects, three prompts, four pictures of 16 x 16 each."""
    folder = tmp_path_factory.mktemp("bench")
    tiny.save_subjects(folder, {"mug": 3, "hat": 4})
    subjects = [{"name": name, "noun": name, "kind": "object", "picked": "01.jpg"} for name in ("mug", "hat")]
    listed = folder / "subjects.yaml"
    listed.write_text(yaml.safe_dump({"name": "two", "prompts": {"object": PROMPTS}, "subjects": subjects}))
    return [
        "dreambench",
        "--data",
        str(folder),
        "--subjects",
        str(listed),
        "--weights",
        str(weights),
        "--sd",
        str(sd),
        "--protocol",
        "kosmosg",
        "--size",
        "16",
        "--steps",
        "1",
        "--dino",
        str(dino),
        "--clip",
        str(clip),
    ]


def lines(folder: Path, kind: str) -> list[dict]:
    return [json.loads(line) for path in sorted(folder.glob(f"{kind}-*.jsonl")) for line in path.open()]


def command(arguments: list[str], launcher: tuple[str, ...] = ()) -> list[str]:
    return [sys.executable, "-m", *launcher, "training.evaluate", *arguments]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def whole(bench, tmp_path_factory) -> Path:
    """An evaluation that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    assert main([*bench, "--output", str(folder)]) == 0
    return folder


def test_tuned_references_get_a_row_and_a_sheet_beside_zero_shot_and_are_compared_with_all_they_were_made_of(
    bench, weights, tmp_path, capsys
):
    tuned, output = tmp_path / "tuned", tmp_path / "out"
    options = [*bench, "--only-subjects", "mug", "--tuned", str(tuned), "--output", str(output)]
    assert main(options) == 2
    assert "mug.safetensors is missing; make it with" in capsys.readouterr().err
    tuned.mkdir()
    model = load_model(weights)
    numbers = torch.randn(model.config.resampler.latents, model.config.decoder.width)
    for made_by, told, sentence in (
        ("another model", "{}", "mug.safetensors was encoded by another Kosmos-G file"),
        (model_fingerprint(weights), None, "mug.safetensors was encoded from a picture and not tuned"),
    ):
        save_reference(tuned / "mug.safetensors", numbers, Reference(Encoded(numbers, "", "")), made_by, tuned=told)
        assert main(options) == 2
        assert sentence in capsys.readouterr().err
    assert not output.exists()
    whole = model_fingerprint(weights, whole=True)
    save_reference(tuned / "mug.safetensors", numbers, Reference(Encoded(numbers, "", "")), whole, tuned="{}")
    assert main(options) == 0
    rows = json.loads((output / "results.json").read_text())["rows"]
    assert list(rows) == ["real pictures (oracle)", "input echoed", "this model", "tuned references"]
    records = [json.loads(line) for line in (output / "scores.jsonl").open()]
    zero_shot, of_tuned = ([x for x in records if x["path"].startswith(start)] for start in ("pictures/", "tuned/"))
    assert len(zero_shot) == len(of_tuned) == 12
    assert rows["tuned references"]["dino"]["mean"] == pytest.approx(sum(x["dino"] for x in of_tuned) / 12)
    assert rows["this model"]["dino"]["mean"] == pytest.approx(sum(x["dino"] for x in zero_shot) / 12)
    assert (output / "tuned/mug/00_0.png").read_bytes() != (output / "pictures/mug/00_0.png").read_bytes()
    assert {path.name for path in (output / "sheets").iterdir()} == {"mug.png", "mug, tuned.png"}


def test_a_copy_of_any_photograph_counts_where_the_reference_was_tuned_on_all():
    features = ImageFeatures(*(torch.eye(2, 3) for _ in range(3)))
    references = References({"mug": []}, {"mug": features}, {"mug": 0})
    job = Job("", "", "", subjects=("mug",))
    assert fidelity(features, 1, job, references, False)["copy"] == 0
    assert fidelity(features, 1, dataclasses.replace(job, tuned=(Path("mug"),)), references, False)["copy"] == 1


def test_an_evaluation_leaves_pictures_records_a_table_and_sheets(whole):
    assert len(list(whole.glob("pictures/*/*.png"))) == IMAGES
    records = [json.loads(line) for line in (whole / "scores.jsonl").open()]
    assert len(records) == len({record["path"] for record in records}) == IMAGES
    assert {"subject", "prompt", "seed", "path", "dino", "clip_i", "clip_t", "copy"} <= set(records[0])
    results = json.loads((whole / "results.json").read_text())
    assert list(results["rows"]) == ["real pictures (oracle)", "input echoed", "this model"]
    ours = results["rows"]["this model"]["dino"]
    by_hand = {s: [r["dino"] for r in records if r["subject"] == s] for s in ("mug", "hat")}
    assert ours["mean"] == pytest.approx(sum(sum(v) / len(v) for v in by_hand.values()) / 2)
    assert ours["low"] <= ours["mean"] <= ours["high"]
    assert results["rows"]["input echoed"]["dino"]["mean"] == pytest.approx(1, abs=1e-5)
    assert "| input echoed | 1.000 [1.000, 1.000] |" in (whole / "table.md").read_text()
    for name in ("mug", "hat"):
        with Image.open(whole / "sheets" / f"{name}.png") as sheet:
            assert sheet.width > 1000
            assert sheet.getcolors(256) is None  # not blank


def test_killed_at_any_moment_it_resumes_with_nothing_twice_and_nothing_missing(bench, whole, tmp_path):
    output = tmp_path / "out"
    arguments = [*bench, "--output", str(output), "--batch-size", "1"]
    process = subprocess.Popen(command(arguments), env=environment(), stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 300
        while len(list(output.glob("pictures/*/*.png"))) < 3:
            assert time.monotonic() < deadline, "generated nothing"
            assert process.poll() is None, "ended before it was killed"
            time.sleep(0.001)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = {path: path.stat().st_mtime_ns for path in output.glob("pictures/*/*.png")}
    assert 3 <= len(before) < IMAGES, "the kill came too late to prove anything"
    # What other moments leave behind: a picture without its record, a record cut short, a file half written.
    log = output / "generated-0.jsonl"
    recorded = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(recorded[:-1]) + recorded[-1][:25])
    for name in (".unfinished-abc", ".00_0.png.abc.tmp"):  # the first is what earlier versions left behind
        (output / "pictures" / "mug" / name).write_bytes(b"\x89PNG")

    assert main(arguments) == 2  # an earlier evaluation is never overwritten unasked
    assert main([*arguments, "--resume"]) == 0
    after = {path: path.stat().st_mtime_ns for path in output.glob("pictures/*/*.png")}
    assert len(after) == IMAGES
    assert {path: after[path] for path in before} == before
    assert sorted(record["path"] for record in lines(output, "generated")) == sorted(
        str(path.relative_to(output)) for path in after
    )
    assert len({record["path"] for record in lines(output, "scores")}) == len(lines(output, "scores")) == IMAGES
    assert not [*output.rglob(".unfinished-*"), *output.rglob(UNFINISHED)]
    for path in after:
        with Image.open(path) as ours, Image.open(whole / path.relative_to(output)) as undisturbed:
            difference = max(abs(a - b) for a, b in zip(ours.tobytes(), undisturbed.tobytes(), strict=True))
            assert difference <= 1  # batches of another size round differently
    results = [json.loads((folder / "results.json").read_text())["rows"]["this model"] for folder in (output, whole)]
    for metric in ("dino", "clip_i", "clip_t"):
        assert results[0][metric]["mean"] == pytest.approx(results[1][metric]["mean"], abs=1e-3)


def test_processes_of_torchrun_share_the_generating_and_the_scoring(bench, whole, tmp_path):
    output = tmp_path / "out"
    launcher = ("torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m")
    arguments = [*bench, "--output", str(output)]
    subprocess.run(command(arguments, launcher), env=environment(), check=True, capture_output=True)
    for kind in ("generated", "scores"):
        shares = [len((output / f"{kind}-{rank}.jsonl").read_text().splitlines()) for rank in (0, 1)]
        assert shares == [IMAGES // 2] * 2
        assert len({record["path"] for record in lines(output, kind)}) == IMAGES
    ours, theirs = ([json.loads(line) for line in (x / "scores.jsonl").open()] for x in (output, whole))
    assert [record["path"] for record in ours] == [record["path"] for record in theirs]
    for metric in ("dino", "clip_i", "clip_t", "copy"):
        assert [x[metric] for x in ours] == pytest.approx([x[metric] for x in theirs], abs=1e-4)


def test_generating_and_scoring_can_run_apart(bench, whole, tmp_path):
    output = tmp_path / "out"
    assert main([*bench, "--output", str(output), "--only", "generate"]) == 0
    assert len(lines(output, "generated")) == IMAGES
    assert not (output / "results.json").exists()
    scoring = list(bench)
    for option in ("--weights", "--sd", "--steps"):  # known from the generating
        del scoring[scoring.index(option) : scoring.index(option) + 2]
    assert main([*scoring, "--output", str(output), "--only", "score"]) == 0
    assert "dpmsolver++, 1 steps" in (output / "table.md").read_text()
    ours, theirs = (json.loads((folder / "results.json").read_text()) for folder in (output, whole))
    assert ours["rows"]["this model"]["dino"]["mean"] == pytest.approx(theirs["rows"]["this model"]["dino"]["mean"])


def test_two_subjects_share_a_picture(bench, tmp_path):
    pairs, data = tmp_path / "pairs.json", Path(bench[bench.index("--data") + 1])
    entries = [
        {"prompt": f"a mug and a hat in the {place}", "image_paths": ["mug/02.jpg", "hat/01.jpg"]}
        for place in ("snow", "jungle")
    ]
    pairs.write_text(json.dumps(entries))
    output = tmp_path / "out"
    assert main([*bench, "--pairs", str(pairs), "--output", str(output), "--threads", "2"]) == 0
    records = [json.loads(line) for line in (output / "scores.jsonl").open()]
    assert len(records) == 2 * 4
    assert {record["prompt"] for record in records} == {"<i> and <i> in the snow", "<i> and <i> in the jungle"}
    assert records[0]["conditions"][0] == str((data / "dataset" / "mug" / "02.jpg").resolve())
    assert len(records[0]["dino_per_subject"]) == 2
    assert (output / "sheets" / "mug+hat.png").is_file()
    rows = json.loads((output / "results.json").read_text())["rows"]
    assert rows["this model"]["dino"]["subjects"] == 1
    assert rows["input echoed"]["dino"]["mean"] < 1  # each picture shows one of the two


def test_pictures_of_other_programs_can_be_scored(bench, whole, tmp_path):
    shutil.copytree(whole / "pictures", tmp_path / "out" / "pictures")
    assert main([*bench, "--output", str(tmp_path / "out"), "--only", "score"]) == 0
    assert len(lines(tmp_path / "out", "scores")) == IMAGES


def test_resuming_with_other_settings_is_refused(bench, whole, capsys):
    assert main([*bench, "--output", str(whole), "--resume", "--steps", "3"]) == 2
    assert "was made with steps = 1, now it is 3" in capsys.readouterr().err


def test_a_full_disk_stops_with_a_sentence_and_loses_nothing(bench, tmp_path, capsys):
    """The records go to a device that is always full; the pictures meet a limit on the size of files."""
    output = tmp_path / "out"
    output.mkdir()
    (output / "generated-0.jsonl").symlink_to("/dev/full")
    arguments = [*bench, "--output", str(output), "--resume"]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "generated-0.jsonl cannot be written: No space left on device; everything before it is kept" in error
    kept = {path: path.stat().st_mtime_ns for path in output.glob("pictures/*/*.png")}
    assert len(kept) == 4
    (output / "generated-0.jsonl").unlink()

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, hard))  # records fit, pictures of 16 x 16 do not
    try:
        assert main([*arguments, "--only", "generate"]) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "cannot be written: File too large" in capsys.readouterr().err
    assert not list(output.rglob(UNFINISHED))
    assert main([*arguments, "--only", "generate"]) == 0
    assert len(list(output.glob("pictures/*/*.png"))) == IMAGES
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len(lines(output, "generated")) == IMAGES


def test_a_missing_subject_folder_and_an_unreadable_picture_stop_before_anything_is_generated(bench, tmp_path, capsys):
    output = tmp_path / "out"
    data = tiny.save_subjects(tmp_path / "data", {"mug": 3})
    elsewhere = [*bench, "--output", str(output)]
    elsewhere[elsewhere.index("--data") + 1] = str(data)
    assert main(elsewhere) == 2
    assert "the subject 'hat' has no folder" in capsys.readouterr().err
    tiny.save_subjects(tmp_path / "more", {"hat": 3})
    (tmp_path / "more" / "dataset" / "hat").rename(data / "dataset" / "hat")
    broken = data / "dataset" / "hat" / "02.jpg"
    broken.write_bytes(broken.read_bytes()[:500])
    assert main(elsewhere) == 2
    assert f"the picture {broken} cannot be read" in capsys.readouterr().err
    assert not output.exists()


def test_wrong_commands_get_a_sentence(bench, tmp_path, capsys):
    out = ["--output", str(tmp_path / "out")]
    without = [x for x in bench if x != "--sd"]
    without.pop(bench.index("--sd"))
    for arguments, sentence in (
        (without, "--sd is needed to generate pictures"),
        ([*bench, "--steps", "0"], "--steps: 0 must be at least 1"),
        ([*bench, "--only-subjects", "cup"], "--only-subjects: cup is not among hat, mug"),
        ([*bench, "--pairs", str(tmp_path / "no.json")], "the list of pairs"),
        ([*bench, "--only", "score"], "24 of 24 pictures are missing"),
        ([*bench, "--size", "15"], "--size: 15 must be a multiple of 2"),
        ([*bench, "--dino", str(tmp_path), "--only", "score"], "24 of 24 pictures are missing"),
    ):
        assert main([*arguments, *out]) == 2
        error = capsys.readouterr().err
        assert sentence in error, error
        assert "Traceback" not in error
        for path in sorted((tmp_path / "out").glob("*")):
            path.unlink()
    weights = bench[bench.index("--weights") + 1]
    gone = [x if x != weights else str(tmp_path / "gone.safetensors") for x in bench]
    assert main([*gone, *out]) == 2
    assert f"--weights: {tmp_path / 'gone.safetensors'} is missing" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["dreambench", "coco", "compare"])
def test_every_command_names_its_option_for_what_is_no_stable_diffusion(command, bench, weights, tmp_path, capsys):
    tiny.drawing(1).save(tmp_path / "a.png")
    tiny.drawing(2).save(tmp_path / "b.png")
    (tmp_path / "captions.json").write_text(json.dumps({"annotations": [{"image_id": 1, "caption": "a dog"}]}))
    (tmp_path / "prompts.yaml").write_text("- {prompt: a dog}")
    common = ["--weights", str(weights), "--size", "16", "--steps", "1"]
    arguments = {
        "dreambench": [x for x in bench if x not in ("--sd", bench[bench.index("--sd") + 1])],
        "coco": ["coco", "--annotations", str(tmp_path / "captions.json"), "--images", str(tmp_path), *common],
        "compare": ["compare", "--prompts", str(tmp_path / "prompts.yaml"), *common],
    }[command]
    (tmp_path / "empty").mkdir()
    save_file({"lora_unet_down.lora_up.weight": torch.zeros(2)}, tmp_path / "lora.safetensors")
    for number, (name, said) in enumerate(
        (
            ("gone/sd.safetensors", "does not exist: there is no such file or folder"),
            ("gone", "does not exist: there is no such file or folder"),
            ("lora.safetensors", "holds no unet"),
            ("empty", "has no folder 'unet', so it is no diffusers folder"),
        )
    ):
        path, output = tmp_path / name, tmp_path / f"out-{number}"
        assert main([*arguments, "--sd", str(path), "--output", str(output)]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: --sd: {path} {said}"), error
        assert error.count("\n") == 1
        assert not output.exists() or path.exists(), "a mistyped path leaves nothing behind"
